"""The settings of an evaluation, from which the options of `tok1d evaluate` are made.

This module imports neither torch nor models; `tok1d.evaluate.prepare` opens the models and images of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tok1d.config.budget import Budgeting
from tok1d.config.fields import option
from tok1d.config.options import adding, fields_from
from tok1d.config.sampling import Decoding, Sampling
from tok1d.inference.request import LABEL_HELP

Kind = Literal["reconstruction", "generation"]
# The ways to choose the classes of samples, and their names in records.
CLASSES = {"balanced": "balanced", "random": "uniformly random", "train": "as in the reference images"}
METRICS_HELP = (
    "all, or any of psnr, mse, ssim, lpips, semantic, semantic5, labels, fd, sfd, kid, score, precision, recall, "
    "density, coverage, memorised, separated by commas; default: all whose networks and weights are available"
)
NETWORK_HELP = (
    "inception[:FILE], efficientnet-lite0, timm:NAME[:SIZE][:FILE] (DINOv2, CLIP, ...), or model:FOLDER (a classifier "
    "trained with tok1d); default: inception; for fashion_mnist the bundled classifier"
)


@dataclass(frozen=True, kw_only=True)
class Reconstructions(Decoding):
    """The reconstructions of an evaluation, and how their tokens are decoded."""

    keep: tuple[int, ...] = option(
        (),
        "decode from these numbers of leading tokens, such as 1,4,8; default: 1,2,4,...,all (SMAP: also 0); for "
        "unordered tokens all",
        ge=0,
        axis=False,
    )
    num: int | None = option(
        None,
        "number of images: the first ones of fashion_mnist, of other data spread evenly over the set; default: all",
        ge=1,
        axis=False,
    )
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    batch_size: int = option(250, "number of images in a forward pass", ge=1, axis=False)
    seed: int = option(0, "seed of all random numbers", ge=0, axis=False)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self)


@dataclass(frozen=True, kw_only=True)
@adding(Decoding, "decoder_")
class Samples(Sampling):
    """The samples of an evaluation, and how they are generated and decoded."""

    keep: tuple[int, ...] = option(
        (), "decode from these numbers of leading tokens, such as 1,4,8; default: all", ge=1, axis=False
    )
    num_samples: int | None = option(None, "number of samples of all classes together; default: 1000", ge=1, axis=False)
    classes: str = option(
        "balanced",
        "classes of the samples: balanced, random, or train (with the frequencies of the training images); or classes "
        "by name, number or range, such as car,2,5-7: as many samples of each, compared with images of these classes",
        axis=False,
    )
    batch_size: int = option(250, "number of samples in a forward pass", ge=1, axis=False)
    seed: int = option(0, "seed of all random numbers", ge=0, axis=False)

    @property
    def sampling(self) -> Sampling:
        """How tokens are sampled."""
        return fields_from(Sampling, self)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self, "decoder_")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The model, the data and the metrics of an evaluation."""

    kind: ClassVar[Kind]

    model: str = option(
        help="a model folder (RUN/model for a run), a bundled model such as fashion-mnist-semanticist, or OWNER/NAME "
        "on the Hugging Face hub",
        argument=True,
        axis=False,
        path="path",
    )
    data: str = option(
        "",
        "fashion_mnist, emoji, a folder of images, a folder of webdataset shards (.tar files), or a folder written by "
        "save_to_disk of Hugging Face datasets; default for a generator trained on fashion_mnist: fashion_mnist",
        argument=True,
        axis=False,
        path="path",
    )
    metrics: tuple[str, ...] = option((), METRICS_HELP, axis=False)
    network: tuple[str, ...] = option(
        (), f"feature network, repeatable: {NETWORK_HELP}", repeated=True, axis=False, path="prefixed"
    )
    reference: tuple[str, ...] = option(
        (),
        "file of reference statistics, from tok1d reference or ADM; repeatable, one for each network",
        repeated=True,
        axis=False,
        path="path",
    )
    allow_other_reference: bool = option(
        False, "accept training images as reference for reconstructions, and test images for samples", axis=False
    )
    eight_bit: bool | None = option(
        None,
        "round images to 8 bits before the feature network, as image files do; default: yes, except for the bundled "
        "classifier",
        flags="--eight-bit/--float",
        axis=False,
    )
    data_root: str | None = option(
        None,
        "folder with the files of Fashion-MNIST; default: searched for, else downloaded",
        axis=False,
        elsewhere=True,
        path="path",
    )
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU if there is one", axis=False, elsewhere=True)


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Budgeting, Reconstructions, Request):
    """A request of `tok1d evaluate reconstruction`."""

    kind = "reconstruction"

    split: Literal["train", "test", "all"] | None = option(
        None,
        "split of the images: train, test or all; default: test, or all of a folder without class folders or splits "
        "and of one named like a test split (val2017)",
        axis=False,
    )

    @property
    def budgeting(self) -> Budgeting:
        """The quality for which each image is also decoded from as many tokens as it needs."""
        return fields_from(Budgeting, self)


@dataclass(frozen=True, kw_only=True)
class Generation(Samples, Request):
    """A request of `tok1d evaluate generation`."""

    kind = "generation"

    split: Literal["train", "test", "all"] = option(
        "train", "split of the reference images: train (gFID), test or all", axis=False
    )

"""What an evaluation is asked to measure: settings that the command line, the grid and Python share.

Nothing heavy is imported here; `tok1d.evaluate.prepare` opens what a request names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tok1d.config.fields import option
from tok1d.config.options import adding, fields_from
from tok1d.config.sampling import Decoding, Sampling

Kind = Literal["reconstruction", "generation"]
# How the classes of samples are chosen, and what a record calls it.
CLASSES = {"balanced": "balanced", "random": "uniformly random", "train": "as in the reference images"}
METRICS_HELP = (
    "all, or some of psnr,mse,ssim,lpips,labels,fd,sfd,kid,score,precision,recall,density,coverage; default: all whose "
    "networks and weights are available"
)
NETWORK_HELP = (
    "inception[:FILE], timm:NAME[:SIZE][:FILE] (DINOv2, CLIP, ...), model:FOLDER (a classifier trained here); default: "
    "inception, of fashion_mnist its bundled classifier"
)


@dataclass(frozen=True, kw_only=True)
class Reconstructions(Decoding):
    """Which reconstructions are measured, and how they are made."""

    keep: tuple[int, ...] = option(
        (),
        "numbers of leading tokens to decode, such as 1,4,8; default: 1,2,4,...,all (SMAP: 0 too); of unordered "
        "tokens all",
        ge=0,
        axis=False,
    )
    num: int | None = option(
        None,
        "number of images: the first of fashion_mnist, of other data spread evenly; default: all",
        ge=1,
        axis=False,
    )
    label: Literal["true", "null"] | None = option(
        None,
        "condition of the tokenizer (SMAP): true, class or caption of the image, or null; default: true where the "
        "images have the classes of the training",
    )
    batch_size: int = option(250, "images of one forward pass", ge=1, axis=False)
    seed: int = option(0, "seed of all random numbers", ge=0, axis=False)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self)


@dataclass(frozen=True, kw_only=True)
@adding(Decoding, "decoder_")
class Samples(Sampling):
    """Which samples are measured, and how they are made."""

    keep: tuple[int, ...] = option(
        (), "numbers of leading tokens to decode, such as 1,4,8; default: all generated", ge=1, axis=False
    )
    num: int | None = option(None, "number of samples; default: 1000", ge=1, axis=False)
    classes: Literal["balanced", "random", "train"] = option(
        "balanced", "classes of the samples: balanced, random, or train: as often as in the training images", axis=False
    )
    batch_size: int = option(250, "samples of one forward pass", ge=1, axis=False)
    seed: int = option(0, "seed of all random numbers", ge=0, axis=False)

    @property
    def sampling(self) -> Sampling:
        """How tokens are sampled."""
        return fields_from(Sampling, self)

    @property
    def decoding(self) -> Decoding:
        """How they are decoded."""
        return fields_from(Decoding, self, "decoder_")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated, by which metrics."""

    kind: ClassVar[Kind]

    model: str = option(
        help="a model folder (of a run: RUN/model), a bundled name such as fashion-mnist-semanticist, or OWNER/NAME on "
        "the hub",
        argument=True,
        axis=False,
    )
    data: str = option(
        "",
        "fashion_mnist, a folder of images, webdataset shards (a folder of .tar files), or a folder that Hugging Face "
        "datasets' save_to_disk wrote; for a generator by default fashion_mnist if it was trained on it",
        argument=True,
        axis=False,
    )
    metrics: tuple[str, ...] = option((), METRICS_HELP, axis=False)
    network: tuple[str, ...] = option((), f"feature network, repeatable: {NETWORK_HELP}", repeated=True, axis=False)
    reference: tuple[str, ...] = option(
        (), "reference statistics of tok1d reference or ADM, one for each network", repeated=True, axis=False
    )
    allow_other_reference: bool = option(
        False, "accept the training images as reference of reconstructions, and test images for samples", axis=False
    )
    eight_bit: bool | None = option(
        None,
        "round images to 8 bits before the network, as image files are; default: except for the bundled classifier",
        flags="--eight-bit/--float",
        axis=False,
    )
    data_root: str | None = option(
        None, "folder of Fashion-MNIST's files; default: found or downloaded", axis=False, elsewhere=True
    )
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU where there is one", axis=False, elsewhere=True)


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Reconstructions, Request):
    """A request of `tok1d evaluate reconstruction`."""

    kind = "reconstruction"


@dataclass(frozen=True, kw_only=True)
class Generation(Samples, Request):
    """A request of `tok1d evaluate generation`."""

    kind = "generation"

    split: Literal["train", "test"] = option(
        "train", "split whose images are the reference: train (gFID) or test", axis=False
    )

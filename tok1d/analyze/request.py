"""The settings of the analyses of several tokenizers, from which their options are made. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.evaluate.request import NETWORK_HELP, Reconstructions

LABEL_OF_CODES = (
    "condition of the encoder (SMAP): null, so that the tokens do not hold the class that they are given, or true; "
    "default: null"
)


@dataclass(frozen=True, kw_only=True)
class JudgedReconstructions(Reconstructions):
    """Reconstructions by number of tokens, how they are decoded, and the network whose classes they are compared in."""

    num: int | None = option(
        500, "number of images: the first ones of fashion_mnist, of other data spread evenly over the set", ge=1
    )
    temperature: float | None = option(
        None, "scale of the initial noise of a flow decoder; 1 samples without bias; default: the model's own", ge=0
    )
    shift: float | None = option(
        None, "shift of the sampling times of a flow decoder; 1: equal steps; default: the model's own", gt=0
    )
    network: tuple[str, ...] = option(
        (),
        f"network whose most likely class is compared, repeatable: {NETWORK_HELP}; or clip:MODEL, a CLIP of "
        "transformers (hub name or folder) with a prompt for each class",
        repeated=True,
        path="prefixed",
    )


@dataclass(frozen=True, kw_only=True)
class Spectra(JudgedReconstructions):
    """The settings of `tok1d analyze spectrum`."""

    partial: bool = option(
        False,
        "unordered tokenizers too are decoded from their first tokens; the others are their means over the images",
    )
    components: bool = option(
        False,
        "tokens are projected on their first principal components and decoded; --keep is then of components",
    )
    num_fit: int = option(2000, "training images on whose tokens the principal components are fitted", ge=2)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """The settings of `tok1d analyze probe`."""

    keep: tuple[int, ...] = option(
        (), "numbers of leading tokens, such as 1,4,8; default: the powers of two and all", ge=1
    )
    num_train: int = option(10_000, "number of training images: the first ones of fashion_mnist, else spread", ge=10)
    num: int = option(10_000, "number of test images: the first ones of fashion_mnist, else spread", ge=1)
    label: Literal["true", "null"] | None = option(None, LABEL_OF_CODES)
    batch_size: int = option(250, "number of images in a forward pass", ge=1)


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The settings of `tok1d analyze map`."""

    keep: int | None = option(None, "number of leading tokens, concatenated; default: all", ge=1)
    method: Literal["tsne", "umap"] = option("tsne", "tsne (scikit-learn) or umap (needs the package umap-learn)")
    num: int = option(1000, "number of images: the first ones of fashion_mnist, else spread over the set", ge=1)
    label: Literal["true", "null"] | None = option(None, LABEL_OF_CODES)
    batch_size: int = option(250, "number of images in a forward pass", ge=1)
    seed: int = option(0, "seed of the map", ge=0)

"""The settings of the analyses of several tokenizers, from which their options are made. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tok1d.config.fields import option
from tok1d.evaluate.request import NETWORK_HELP, Reconstructions
from tok1d.inference.request import LABEL_HELP

if TYPE_CHECKING:
    from tok1d.tokenizers.base import Tokenizer

NUM_HELP = "number of images: the first ones of fashion_mnist, of other data spread evenly over the set"
LENGTHS_HELP = "numbers of leading tokens, such as 1,4,8, or all; 0 and the number of tokens are always included"
TIMES_HELP = "number of noise levels of a diffusion decoder, the midpoints of equal parts of the time interval"
BATCH_HELP = "number of images in a forward pass"

LABEL_OF_CODES = (
    "condition of the encoder (SMAP): null, so that the tokens do not hold the class that they are given, or true; "
    "default: null"
)


@dataclass(frozen=True, kw_only=True)
class JudgedReconstructions(Reconstructions):
    """Reconstructions by number of tokens, how they are decoded, and the network whose classes they are compared in."""

    num: int | None = option(500, NUM_HELP, ge=1)
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


@dataclass(frozen=True, kw_only=True)
class PrefixCurves:
    """The settings of `tok1d analyze prefix`."""

    keep: str = option("", f"{LENGTHS_HELP}; default: all up to 16 tokens, else the powers of two")
    num: int = option(500, NUM_HELP, ge=1)
    times: int | None = option(None, f"{TIMES_HELP}; default: 20", ge=1)
    partial: bool = option(
        False,
        "unordered tokenizers too are decoded from their first tokens; the others are their means over the images",
    )
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    batch_size: int = option(100, BATCH_HELP, ge=1)
    seed: int = option(0, "seed of the noise", ge=0)


@dataclass(frozen=True, kw_only=True)
class IncrementProducts:
    """The settings of `tok1d analyze increments`."""

    keep: str = option("", f"{LENGTHS_HELP}; each increment is between two of them; default: all, one per token")
    num: int = option(500, NUM_HELP, ge=1)
    times: int | None = option(None, f"{TIMES_HELP}; default: 10", ge=1)
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    batch_size: int = option(100, f"{BATCH_HELP}; memory grows with its product with the number of increments", ge=1)
    seed: int = option(0, "seed of the noise", ge=0)


@dataclass(frozen=True, kw_only=True)
class MixtureFits:
    """The settings of `tok1d analyze mixture`."""

    components: tuple[int, ...] = option((), "numbers of modes, such as 50,100,200; default: 5,10,20", ge=1)
    dims: int | None = option(
        None, "number of principal components; default: as few as keep --variance of every model's variance", ge=1
    )
    variance: float = option(0.9, "share of the variance that the principal components keep", gt=0, le=1)
    covariance: Literal["diag", "full"] = option("diag", "covariance of a mode: diag or full")
    seeds: tuple[int, ...] = option(
        (), "seeds of the fits, such as 0,1,2; the most likely fit counts; default: 0", ge=0
    )
    num_train: int = option(5000, f"{NUM_HELP}: training images, which the mixtures are fitted to", ge=2)
    num: int = option(5000, f"{NUM_HELP}: test images, on which they are measured", ge=1)
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    batch_size: int = option(250, BATCH_HELP, ge=1)


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """The settings of `tok1d analyze swap`."""

    keep: tuple[int, ...] = option((), "numbers of leading tokens, such as 1,4,8; default: all", ge=1)
    num: int = option(500, f"{NUM_HELP}; pairs are formed from them", ge=2)
    num_train: int = option(5000, f"{NUM_HELP}: training images, whose mean by class is the baseline", ge=1)
    label: Literal["true"] | None = option(
        None, "true: classes by position where their names do not agree; default: by name"
    )
    batch_size: int = option(100, f"{BATCH_HELP}; pairs are formed within it", ge=2)


@dataclass(frozen=True, kw_only=True)
class TokenUses:
    """The settings of `tok1d analyze idle`."""

    num: int = option(2000, NUM_HELP, ge=2)
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    batch_size: int = option(250, BATCH_HELP, ge=2)
    seed: int = option(0, "seed of a diffusion decoder's noise", ge=0)


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The settings of `tok1d analyze budget`."""

    quality: tuple[float, ...] = option(
        (),
        "qualities in dB for which numbers of tokens are chosen, such as 15,18; default: the mean qualities of a "
        "quarter, half and three quarters of the tokens",
        ge=0,
    )
    quality_metric: str = option("psnr", "see tok1d reconstruct", path="prefixed")
    num: int = option(1000, NUM_HELP, ge=2)
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    batch_size: int = option(256, "number of decoded images in a forward pass", ge=1)
    seed: int = option(0, "seed of a diffusion decoder's noise", ge=0)


class Opened(Protocol):
    """A tokenizer that is analyzed, with others."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        ...


def label_of(opened: Opened, all_opened: Sequence[Opened], label: str | None) -> Any:
    """`label` for one of several tokenizers: None for one without a condition, if another one has one."""
    conditioned = any(each.tokenizer.spec.needs_label for each in all_opened)
    return label if opened.tokenizer.spec.needs_label or not conditioned else None

"""The settings of `tok1d reconstruct`, `tok1d generate` and `tok1d encode`. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.budget import Budgeting
from tok1d.config.fields import option
from tok1d.config.options import adding, fields_from
from tok1d.config.sampling import Decoding, Sampling

LABEL_HELP = (
    "condition of the tokenizer (SMAP): true (class or caption of the image; classes by position if their names do not "
    "agree) or null; default: true if the names of the classes are among the tokenizer's, or unknown and as many"
)


@dataclass(frozen=True, kw_only=True)
class ReconstructionPictures(Budgeting, Decoding):
    """The images to reconstruct, the numbers of tokens, and how they are decoded."""

    keep: tuple[int, ...] = option(
        (),
        "decode from these numbers of leading tokens, such as 1,4,8; default: 1,2,4,...,all (SMAP: also 0); for "
        "unordered tokens all",
        ge=0,
    )
    num: int = option(
        8, "number of images: the first ones of fashion_mnist, of other data spread evenly over the set", ge=1
    )
    split: Literal["train", "test", "all"] | None = option(
        None, "split of the data: train, test or all; default: test, of a folder without splits in its names all"
    )
    size: int | None = option(
        None, "side of the square images before encoding and after decoding, in pixels; default: the model's own", ge=1
    )
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    seed: int = option(0, "seed of all random numbers", ge=0)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self)

    @property
    def budgeting(self) -> Budgeting:
        """How many tokens each image is decoded from."""
        return fields_from(Budgeting, self)


VERIFIER_HELP = (
    "model:FOLDER, a bundled classifier, timm:NAME or efficientnet-lite0 (log-probability of the sample's class); "
    "clip:MODEL (similarity with its caption or class); or MODULE:FUNCTION, see --import (called with images "
    "(N, C, H, W) in [0, 1] and a list of their classes or captions, returns N scores)"
)


@dataclass(frozen=True, kw_only=True)
class Searching:
    """A search for samples that a verifier scores highly."""

    search: str = option(
        "",
        "best-of=N: of N samples keep the one with the highest score; beam=W: keep the W best sequences after every "
        "token (generators of one token after the other, with ordered tokens); default: no search",
    )
    search_candidates: int | None = option(
        None, "beam: continuations of each sequence between two comparisons; default: W", ge=1
    )
    search_every: int = option(1, "beam: tokens between two comparisons", ge=1)
    verifier: str = option(
        "",
        f"what scores the decoded prefixes of a search: {VERIFIER_HELP}; default: the classifier bundled for the data",
        path="prefixed",
    )
    judge: str = option(
        "",
        "a verifier that the search does not see: prints its mean score of the samples and of samples without search",
        path="prefixed",
    )


@dataclass(frozen=True, kw_only=True)
@adding(Decoding, "decoder_")
class SamplePictures(Searching, Sampling):
    """The samples to generate, and how they are decoded."""

    classes: tuple[str | int, ...] = option(
        (),
        "classes by name, number or range, such as car,2,5-7; repeatable, as for a name with a comma; a number is the "
        "class that is called so, else (unless all names are numbers) its position from 0; default: all",
        repeated=True,
    )
    captions: tuple[str, ...] = option(
        (),
        "for generators that read captions: a caption, or a .txt file with one caption per line; repeatable",
        repeated=True,
    )
    num: int = option(
        8,
        "number of samples for each class or caption, or in total without classes and captions",
        ge=1,
    )
    keep: int | None = option(None, "generate, or decode from, this number of leading tokens only; default: all", ge=1)
    decode_keep: str = option(
        "",
        "also decode the samples from these numbers of leading tokens, such as 1,2,4, or every; writes progressive.png "
        "with one row for each number",
    )
    nearest: str = option(
        "",
        "the training data, such as emoji or a folder: also write nearest.png, with the nearest training images (by "
        "distance of pixels) below each row of samples",
        path="path",
    )
    batch_size: int = option(100, "number of samples in a forward pass", ge=1)
    seed: int = option(0, "seed of all random numbers", ge=0)

    @property
    def sampling(self) -> Sampling:
        """How tokens are sampled."""
        return fields_from(Sampling, self)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self, "decoder_")

    @property
    def searching(self) -> Searching:
        """How a search goes."""
        return fields_from(Searching, self)


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """What a cache stores for each view of an image."""

    num_tokens: int | None = option(None, "store this number of leading tokens only; default: all", ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "type of stored continuous tokens: float32, float16 or bfloat16"
    )
    moments: bool = option(
        False, "KL tokenizers: store means and standard deviations, for recipes with sample_latents=true"
    )
    rows_per_shard: int = option(65536, "number of rows (views) in a file; a process writes at least one file", ge=1)


@dataclass(frozen=True, kw_only=True)
class Encoding(Budgeting, CacheFormat):
    """The images and views that `tok1d encode` encodes, and what it stores."""

    split: Literal["train", "test", "all"] = option("train", "split to encode: train, test or all images")
    views: Literal["center", "center+flip", "random", "tencrop"] = option(
        "center",
        "views of each image: center (1 view), center+flip (2), random (1, with random crop and flip), tencrop (20)",
    )
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    seed: int = option(0, "seed of random views", ge=0)

    @property
    def budgeting(self) -> Budgeting:
        """For which quality the number of tokens of each view is stored."""
        return fields_from(Budgeting, self)

    @property
    def format(self) -> CacheFormat:
        """What the cache stores."""
        return fields_from(CacheFormat, self)

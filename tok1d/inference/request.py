"""What pictures are asked for by `tok1d reconstruct` and `tok1d generate`; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.config.options import adding, fields_from
from tok1d.config.sampling import Decoding, Sampling


@dataclass(frozen=True, kw_only=True)
class ReconstructionPictures(Decoding):
    """Which images are reconstructed, from how many tokens, and how they are decoded."""

    keep: tuple[int, ...] = option(
        (),
        "numbers of leading tokens, such as 1,4,8; default: 1,2,4,...,all (SMAP: 0 too); of unordered tokens all",
        ge=0,
    )
    num: int = option(8, "number of images: the first of fashion_mnist, of other data spread evenly", ge=1)
    size: int | None = option(
        None, "side of the images before encoding and after decoding, in pixels; default: the model's own", ge=1
    )
    label: Literal["true", "null"] | None = option(
        None,
        "condition of the tokenizer (SMAP): true, class or caption of the image, or null; default: true where the "
        "images have the classes of the training",
    )
    seed: int = option(0, "seed of all random numbers", ge=0)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self)


@dataclass(frozen=True, kw_only=True)
@adding(Decoding, "decoder_")
class SamplePictures(Sampling):
    """Which samples are made, and how they are decoded."""

    classes: tuple[int, ...] = option((), "class ids, such as 3,7; default: all", ge=0)
    captions: tuple[str, ...] = option(
        (),
        "for generators of captions: a caption, or a .txt file with one on each line; repeatable",
        repeated=True,
    )
    num: int = option(8, "number of samples for each class or caption, or in all without them", ge=1)
    keep: int | None = option(None, "generate or decode the first tokens only; default: all", ge=1)
    decode_keep: str = option(
        "",
        "also decode the same samples from these numbers of first tokens, such as 1,2,4, or every; writes "
        "progressive.png with one row for each number",
    )
    batch_size: int = option(100, "samples of one forward pass", ge=1)
    seed: int = option(0, "seed of all random numbers", ge=0)

    @property
    def sampling(self) -> Sampling:
        """How tokens are sampled."""
        return fields_from(Sampling, self)

    @property
    def decoding(self) -> Decoding:
        """How they are decoded."""
        return fields_from(Decoding, self, "decoder_")


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """What a cache holds of each view of an image."""

    num_tokens: int | None = option(None, "keep the first tokens only; default: all", ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = option("float32", "type of continuous tokens in the cache")
    moments: bool = option(
        False, "KL tokenizers: store means and standard deviations, for recipes with sample_latents=true"
    )
    rows_per_shard: int = option(65536, "rows of a file, the least that one process writes", ge=1)


@dataclass(frozen=True, kw_only=True)
class Encoding(CacheFormat):
    """Which images and views `tok1d encode` encodes, and what it writes."""

    split: Literal["train", "test"] = option("train", "train or test")
    views: Literal["center", "center+flip", "random", "tencrop"] = option(
        "center", "views of an image: center (1), center+flip (2), random (1, crop and flip), tencrop (20)"
    )
    seed: int = option(0, "seed of --views random", ge=0)

    @property
    def format(self) -> CacheFormat:
        """What a cache holds."""
        return fields_from(CacheFormat, self)

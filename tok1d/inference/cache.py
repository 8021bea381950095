"""Tokens for generators, encoded into a cache by one process or several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.bottleneck.kl import KL
from tok1d.config.fields import flat, to_mapping
from tok1d.data.broken import report_broken
from tok1d.data.images import ArrayImages, ImageSet, prefetch
from tok1d.data.lazy import LazyImages
from tok1d.data.token_writer import TokenWriter, free_bytes, show_bytes
from tok1d.data.tokens import Layout, TokenCache
from tok1d.data.transforms import Crop
from tok1d.errors import ConfigError, DataError
from tok1d.inference.conditions import ConditionedImages, cond_for
from tok1d.inference.request import CacheFormat
from tok1d.tokenizers.base import Tokenizer, TokenSpec
from tok1d.zoo.weights import fingerprint


def with_views(images: ImageSet, views: Crop) -> ArrayImages | LazyImages:
    """The same images with other views of each; "random" is a random crop with a random flip."""
    assert isinstance(images, ArrayImages | LazyImages)
    images.transform = replace(images.transform, crop=views, flip=views == "random")
    return images


def parse_part(text: str) -> tuple[int, int]:
    """ "1/4" as (1, 4); raises ConfigError where it is not I/N with 0 <= I < N."""
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise ConfigError(f"--shard: expected I/N with I in 0..N-1, such as 0/4, got {text!r}")
    return int(number), int(parts)


@torch.no_grad()
def encode_batch(
    tokenizer: Tokenizer,
    images: Tensor,
    cond: Tensor | None,
    length: int,
    *,
    label: str | None = "true",
    moments: bool = False,
) -> Tensor:
    """The first `length` tokens (B, K, D) or (B, K) of images (B, C, H, W), in float32 also under autocast.

    Args:
        cond: class ids (B,), or captions (B, T, E) for a tokenizer of captions; others ignore it.
        label: see `choose_condition`; only with "true" the tokenizer receives `cond`.
        moments: of a KL tokenizer, (B, K, 2 D): the mean of a token, then its standard deviation.
    """
    device = next(tokenizer.parameters()).device
    cond = cond_for(label, cond, device) if tokenizer.spec.needs_label else None
    with torch.autocast(device.type, enabled=False):
        if moments:
            variational: Any = tokenizer
            posterior = variational.posterior(images.to(device), cond)
            return torch.cat([posterior.mean, posterior.std], dim=-1)[:, :length]
        return tokenizer.encode(images.to(device), cond)[:, :length]


def encoder_settings(tokenizer: Tokenizer) -> dict[str, object]:
    """Settings that its tokens depend on beside its weights (heads, normalisation), by dotted key; {} if unknown."""
    config = getattr(tokenizer, "config", None)
    found = flat(to_mapping(config)) if is_dataclass(config) else {}
    deciding = ("image_size", "encoder", "bottleneck", "condition", "normalise", "normalise_eps")
    # Only of the training, or the location of a text encoder, which does not identify it.
    ignored = {f"bottleneck.{key}" for key in ("weight", "beta", "entropy", "revival", "decay")}
    ignored |= {"encoder.drop_path", "condition.encoder", "condition.dropout"}
    return {key: value for key, value in found.items() if key.split(".")[0] in deciding and key not in ignored}


def check_variational(tokenizer: Tokenizer, key: str) -> None:
    """Refuse a tokenizer without a KL bottleneck, which has no posterior; `key` is the setting that needs one.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(getattr(tokenizer, "bottleneck", None), KL):
        raise ConfigError(f"{key}: expected a tokenizer with a KL bottleneck, got {tokenizer.config.name}")


def check_places(images: ArrayImages | LazyImages) -> None:
    """Refuse captioned images of which one could not be decoded and was replaced: captions of cached tokens are found
    by the number of the image.

    Raises:
        DataError: naming the image.
    """
    replaced = getattr(images, "replaced", [])
    if replaced and any(images.captions):
        path, why = replaced[0]
        raise DataError(
            f"{path}: broken image: {why}: captions of cached tokens are found by the image's number: "
            "repair or remove it"
        )


def captions_fingerprint(captions: Sequence[str]) -> str:
    """16 hex digits of captions in their order; a cache of tokens that depend on them stores it."""
    return hashlib.sha256(repr(list(captions)).encode()).hexdigest()[:16]


def tokens_kept(spec: TokenSpec, num_tokens: int | None) -> int:
    """The number of first tokens that are kept; None: all. Raises ConfigError for more than the tokenizer makes."""
    length = spec.length if num_tokens is None else num_tokens
    if not 1 <= length <= spec.length:
        raise ConfigError(f"num_tokens: expected 1..{spec.length} (the tokenizer's length), got {length}")
    return length


def cache_layout(spec: TokenSpec, views: int, format: CacheFormat) -> Layout:
    """The layout of a cache of a tokenizer's first tokens; ids are int64 whatever `format.dtype` is.

    With `format.moments` a token takes twice as many numbers: mean and standard deviation. A shard holds whole images:
    as many as fit into `format.rows_per_shard` rows, at least one.

    Args:
        views: of an image; each is a row.

    Raises:
        ConfigError: more tokens than the tokenizer makes.
    """
    length, rows = tokens_kept(spec, format.num_tokens), format.rows_per_shard
    stored = format.dtype if spec.vocab_size is None else "int64"
    dim = 0 if spec.dim is None or spec.vocab_size is not None else (2 if format.moments else 1) * spec.dim
    return Layout(length, dim, stored, max(views, rows // views * views))


def forecast(layout: Layout, num_images: int, views: int, folder: Path) -> str:
    """The content of a cache, its size and the free space for it, in two lines."""
    rows = num_images * views
    numbers = f"{layout.num_tokens} x {layout.dim} {layout.dtype} numbers" if layout.dim else f"{layout.num_tokens} ids"
    return (
        f"{num_images} images x {views} views = {rows} rows of {numbers}\n"
        f"needs {show_bytes(layout.num_bytes(rows))} in {layout.num_shards(rows)} shard files; "
        f"{folder} has {show_bytes(free_bytes(folder))} free"
    )


def encode_images(
    tokenizer: Tokenizer,
    images: ArrayImages | LazyImages,
    folder: Path,
    *,
    format: CacheFormat | None = None,
    part: tuple[int, int] = (0, 1),
    seed: int = 0,
    batch_size: int = 500,
    overwrite: bool = False,
    quiet: bool = False,
) -> TokenCache | None:
    """Write the first tokens of every view of every image into a cache, and open it.

    An unfinished cache is resumed. The cache stores the tokenizer's and the data's fingerprints. Tokens are stored as
    the tokenizer gives them, encoded in float32 with the tokenizer in eval mode. ImageNet's 1,281,167 images in 20
    views, 32 tokens of 16 numbers: 26.2 GB in bfloat16 (all 256 tokens: 210 GB). The published code takes 52.5 (419.8)
    GB of shared memory.

    Args:
        images: their transform says which views (`with_views`).
        part: (i, n), this process writes the i-th of n parts; several can write at once, on several machines. A part
            is at least one file of `format.rows_per_shard` rows.
        seed: of random views.
        batch_size: views in one forward pass.

    Returns:
        The cache, or None where other parts are missing.

    Raises:
        DataError: no free space, or another cache in the folder.
        ConfigError: more tokens than the tokenizer makes, or moments of one without a KL bottleneck.
    """
    format = CacheFormat() if format is None else format
    if format.moments:
        check_variational(tokenizer, "--moments")
    views, model = images.transform.num_views, tokenizer.eval()
    layout, conditioned = cache_layout(model.spec, views, format), ConditionedImages(model, images)
    meta = _meta(conditioned, images, layout, format, seed)
    about = {"tokenizer_settings": encoder_settings(model)}
    writer = TokenWriter(folder, layout, len(images) * views, meta=meta, about=about, part=part, overwrite=overwrite)
    name = "encode" if part[1] == 1 else f"encode {part[0]}/{part[1]}"
    step, shown = max(1, batch_size // views), "" if quiet else name
    _write(conditioned, images, writer, step=step, seed=seed, moments=format.moments, name=shown)
    return TokenCache(folder) if writer.close() else None


def _meta(
    conditioned: ConditionedImages,
    images: ArrayImages | LazyImages,
    layout: Layout,
    format: CacheFormat,
    seed: int,
) -> dict[str, object]:
    """All that the tokens of a cache depend on."""
    meta: dict[str, object] = {
        "tokenizer_fingerprint": fingerprint(conditioned.tokenizer),
        "data_fingerprint": images.fingerprint(),
        "transform": images.transform.fingerprint(),
        "views": images.transform.num_views,
        "keep": layout.num_tokens,
        "num_classes": images.num_classes,
    }
    if format.moments:
        meta["moments"] = True
    if conditioned.condition is not None:
        meta["label"] = conditioned.condition
    if conditioned.embed is not None:
        meta["captions"] = captions_fingerprint(images.captions)
    if images.transform.crop == "random":
        meta["seed"] = seed
    return meta


def _write(
    conditioned: ConditionedImages,
    images: ArrayImages | LazyImages,
    writer: TokenWriter,
    *,
    step: int,
    seed: int,
    moments: bool,
    name: str,
) -> None:
    """Encode the images of a part, `step` images at a time; `name` is the progress bar's, "" for none."""
    from tqdm import tqdm

    views = images.transform.num_views

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for first, end in ((start // views, stop // views) for start, stop in writer.ranges):
            for start in range(first, end, step):
                yield conditioned.batch(range(start, min(start + step, end)), seed=seed)

    bar = tqdm(total=writer.num_rows, initial=writer.rows_done, disable=not name, unit="row", desc=name)
    with bar, closing(prefetch(batches())) as ahead:
        for x, labels, cond in ahead:
            check_places(images)
            tokens = encode_batch(conditioned.tokenizer, x, cond, writer.layout.num_tokens, moments=moments)
            writer.write(tokens, labels)
            bar.update(len(labels))
    report_broken(images)

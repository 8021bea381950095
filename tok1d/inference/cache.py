"""Tokens for generators: encoded into a cache by one process or many, and which rows of it a training step reads."""

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
from tok1d.inference.labels import ConditionedImages, labels_given
from tok1d.zoo.weights import fingerprint

ROWS_PER_SHARD = 65536


def with_views(images: ImageSet, views: Crop) -> ArrayImages | LazyImages:
    """An opened set of images, now with those views; "random" is a random crop with a random flip."""
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
    tokenizer: Any,
    images: Tensor,
    labels: Tensor | None,
    length: int,
    *,
    label: str | None = "true",
    moments: bool = False,
) -> Tensor:
    """The first `length` tokens (B, K, D) or (B, K) of images (B, C, H, W), in float32 whatever autocast is on.

    Args:
        labels: (B,), or captions (B, T, E) of a tokenizer that reads those.
        label: as `label_used` gives it; "true" hands the labels to a tokenizer that wants them.
        moments: of a KL tokenizer, (B, K, 2 D): a token's mean, then its standard deviation.
    """
    device = next(tokenizer.parameters()).device
    cond = labels_given(label, labels, device) if tokenizer.spec.needs_label else None
    with torch.autocast(device.type, enabled=False):
        if moments:
            posterior = tokenizer.posterior(images.to(device), cond)
            return torch.cat([posterior.mean, posterior.std], dim=-1)[:, :length]
        return tokenizer.encode(images.to(device), cond)[:, :length]


def encoder_settings(tokenizer: Any) -> dict[str, Any]:
    """Dotted key -> value of what decides its tokens beside its weights (heads, normalisation); {} if unknown."""
    config = getattr(tokenizer, "config", None)
    found = flat(to_mapping(config)) if is_dataclass(config) else {}
    deciding = ("image_size", "encoder", "bottleneck", "condition", "normalise", "normalise_eps")
    # Of the training alone, and where a text encoder lies, which says not which one it is.
    beside = {f"bottleneck.{key}" for key in ("weight", "beta", "entropy", "revival", "decay")}
    beside |= {"encoder.drop_path", "condition.encoder", "condition.dropout"}
    return {key: value for key, value in found.items() if key.split(".")[0] in deciding and key not in beside}


def check_variational(tokenizer: Any, key: str) -> None:
    """Refuse a tokenizer whose tokens are no samples; `key` is the setting that asks for them.

    Raises:
        ConfigError: so it is.
    """
    if not isinstance(getattr(tokenizer, "bottleneck", None), KL):
        raise ConfigError(f"{key}: expected a tokenizer with a KL bottleneck, got {tokenizer.config.name}")


def check_places(images: ArrayImages | LazyImages) -> None:
    """Refuse captioned images of which one that cannot be decoded has another in its place: captions of cached tokens
    are found by the image's number.

    Raises:
        DataError: so it is, naming the image.
    """
    replaced = getattr(images, "replaced", [])
    if replaced and any(images.captions):
        path, why = replaced[0]
        raise DataError(
            f"{path}: broken image: {why}: captions of cached tokens are found by the image's number: mend or remove it"
        )


def captions_fingerprint(captions: Sequence[str]) -> str:
    """16 hex digits of captions in their order; a cache of tokens that depend on them remembers it."""
    return hashlib.sha256(repr(list(captions)).encode()).hexdigest()[:16]


def tokens_kept(spec: Any, num_tokens: int | None) -> int:
    """How many first tokens are kept, None being all; raises ConfigError for more than the tokenizer makes."""
    length = spec.length if num_tokens is None else num_tokens
    if not 1 <= length <= spec.length:
        raise ConfigError(f"num_tokens: expected 1..{spec.length} (the tokenizer's length), got {length}")
    return length


def cache_layout(
    spec: Any,
    views: int,
    *,
    num_tokens: int | None = None,
    dtype: str = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
    moments: bool = False,
) -> Layout:
    """The layout of a cache of a tokenizer's first tokens (None: all); ids are int64 whatever `dtype` is.

    With `moments` a token is twice as many numbers: mean and standard deviation.

    A shard holds whole images: as many as fit into `rows_per_shard` rows, at least one.

    Raises:
        ConfigError: more tokens than the tokenizer makes.
    """
    length = tokens_kept(spec, num_tokens)
    stored = dtype if spec.vocab_size is None else "int64"
    dim = (2 if moments else 1) * spec.dim if spec.vocab_size is None else 0
    return Layout(length, dim, stored, max(views, rows_per_shard // views * views))  # type: ignore[arg-type]


def forecast(layout: Layout, num_images: int, views: int, folder: Path) -> str:
    """What a cache would hold, its size and the room for it, in two lines."""
    rows = num_images * views
    numbers = f"{layout.num_tokens} x {layout.dim} {layout.dtype} numbers" if layout.dim else f"{layout.num_tokens} ids"
    return (
        f"{num_images} images x {views} views = {rows} rows of {numbers}\n"
        f"needs {show_bytes(layout.num_bytes(rows))} in {layout.num_shards(rows)} shard files; "
        f"{folder} has {show_bytes(free_bytes(folder))} free"
    )


def encode_images(
    tokenizer: Any,
    images: ArrayImages | LazyImages,
    folder: Path,
    *,
    num_tokens: int | None = None,
    dtype: str = "float32",
    part: tuple[int, int] = (0, 1),
    seed: int = 0,
    batch_size: int = 500,
    rows_per_shard: int = ROWS_PER_SHARD,
    moments: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> TokenCache | None:
    """Write the first `num_tokens` tokens of every view of every image into a cache, and open it.

    An unfinished cache is resumed. The cache remembers the tokenizer's and the data's fingerprints; tokens are stored
    raw, encoded in float32 with the tokenizer in eval mode. ImageNet's 1,281,167 images in 20 views, 32 tokens of 16
    numbers: 26.2 GB in bfloat16 (all 256 tokens: 210 GB). The release holds 52.5 (419.8) GB of shared memory.

    Args:
        images: their transform says which views (`with_views`).
        part: (i, n), this process writes the i-th of n parts; several may write at once, on several machines.
        seed: of random views.
        batch_size: views that are encoded at once.
        rows_per_shard: rows of a file; a part is at least one file.
        moments: of a KL tokenizer, hold means and standard deviations, for `sample_latents`.

    Returns:
        The cache, or None where other parts are missing.

    Raises:
        DataError: no room, or another cache is there.
        ConfigError: more tokens than the tokenizer makes, or moments of one without a KL bottleneck.
    """
    from tqdm import tqdm

    if moments:
        check_variational(tokenizer, "--moments")
    views = images.transform.num_views
    layout = cache_layout(
        tokenizer.eval().spec,
        views,
        num_tokens=num_tokens,
        dtype=dtype,
        rows_per_shard=rows_per_shard,
        moments=moments,
    )
    told = ConditionedImages(tokenizer, images)
    meta = {
        "tokenizer_fingerprint": fingerprint(tokenizer),
        "data_fingerprint": images.fingerprint(),
        "transform": images.transform.fingerprint(),
        "views": views,
        "keep": layout.num_tokens,
        "num_classes": images.num_classes,
        **({"moments": True} if moments else {}),
        **({"label": told.used} if told.used is not None else {}),
        **({"captions": captions_fingerprint(images.captions)} if told.embed is not None else {}),
        **({"seed": seed} if images.transform.crop == "random" else {}),
    }
    about = {"tokenizer_settings": encoder_settings(tokenizer)}
    writer = TokenWriter(folder, layout, len(images) * views, meta=meta, about=about, part=part, overwrite=overwrite)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        step = max(1, batch_size // views)
        for first, end in ((start // views, stop // views) for start, stop in writer.ranges):
            for start in range(first, end, step):
                yield told.batch(range(start, min(start + step, end)), seed=seed)

    name = "encode" if part[1] == 1 else f"encode {part[0]}/{part[1]}"
    bar = tqdm(total=writer.num_rows, initial=writer.rows_done, disable=quiet, unit="row", desc=name)
    with bar, closing(prefetch(batches())) as ahead:
        for x, labels, cond in ahead:
            check_places(images)
            writer.write(encode_batch(tokenizer, x, cond, layout.num_tokens, moments=moments), labels)
            bar.update(len(labels))
    report_broken(images)
    return TokenCache(folder) if writer.close() else None

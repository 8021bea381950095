"""Token caches for the training of generators, written by one or several processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tok1d.bottleneck.kl import KL
from tok1d.config.budget import Budgeting
from tok1d.config.fields import flat, to_mapping
from tok1d.data.broken import report_broken
from tok1d.data.images import ArrayImages, ImageSet, prefetch
from tok1d.data.lazy import LazyImages, fingerprint_like
from tok1d.data.token_writer import TokenWriter, free_bytes, show_bytes
from tok1d.data.tokens import Layout, TokenCache
from tok1d.data.transforms import FIT, Crop
from tok1d.errors import ConfigError, DataError, reason_of
from tok1d.inference.budget import Counter, counter
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.request import CacheFormat
from tok1d.locks import FOLDER_LOCK, hold_part
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer, TokenSpec
from tok1d.zoo.weights import fingerprint


def with_views(images: ImageSet, views: Crop) -> ArrayImages | LazyImages:
    """Set the views of an image set and return it; "random" is a random crop with a random flip.

    Views of images with crop=fit are those of whole images; "random" is then a random flip.

    Raises:
        ConfigError: "tencrop" of images with crop=fit.
    """
    assert isinstance(images, ArrayImages | LazyImages)
    crops: dict[Crop, Crop] = {}
    if images.transform.crop in FIT:
        crops = {"center": "fit", "center+flip": "fit+flip", "random": "fit"}
        if views not in crops:
            raise ConfigError(f"views: crop=fit has {', '.join(crops)} (of whole images), got {views}")
    images.transform = replace(images.transform, crop=crops.get(views, views), flip=views == "random")
    return images


def parse_part(text: str) -> tuple[int, int]:
    """ "1/4" as (1, 4); raises ConfigError if it is not I/N with 0 <= I < N."""
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
    moments: bool = False,
) -> Tensor:
    """The first `length` tokens (B, K, D) or ids (B, K) of images (B, C, H, W), encoded in float32 even under autocast.

    Args:
        cond: class ids (B,) of the tokenizer, or captions (B, T, E) for a tokenizer of captions; others ignore it.
        moments: for a KL tokenizer, return (B, K, 2 D) instead: mean and standard deviation of each token.
    """
    device = next(tokenizer.parameters()).device
    cond = cond.to(device) if tokenizer.spec.needs_label and cond is not None else None
    with torch.autocast(device.type, enabled=False):
        if moments:
            variational: Any = tokenizer
            posterior = variational.posterior(images.to(device), cond)
            return torch.cat([posterior.mean, posterior.std], dim=-1)[:, :length]
        return tokenizer.encode(images.to(device), cond)[:, :length]


def encoder_settings(tokenizer: Tokenizer) -> dict[str, object]:
    """Settings that the tokens depend on besides the weights, such as the number of heads, by dotted key."""
    config = getattr(tokenizer, "config", None)
    found = flat(to_mapping(config)) if is_dataclass(config) else {}
    deciding = ("image_size", "encoder", "bottleneck", "quantiser", "condition", "normalise", "normalise_eps")
    # Settings of the training, and the location of a text encoder, which does not identify it.
    trained = ("weight", "beta", "entropy", "revival", "decay")
    ignored = {f"{part}.{key}" for part in ("bottleneck", "quantiser") for key in trained}
    ignored |= {
        "encoder.drop_path",
        "condition.encoder",
        "condition.dropout",
        "condition.max_words",
        "condition.vocabulary",
    }
    return {key: value for key, value in found.items() if key.split(".")[0] in deciding and key not in ignored}


def check_variational(tokenizer: Tokenizer, key: str) -> None:
    """Check that a tokenizer has a KL bottleneck, and thus a posterior.

    Args:
        key: the setting that needs it, for the message.

    Raises:
        ConfigError: it has another bottleneck.
    """
    if not isinstance(getattr(tokenizer, "bottleneck", None), KL):
        raise ConfigError(f"{key}: expected a tokenizer with a KL bottleneck, got {tokenizer.config.name}")


def check_captions(images: ArrayImages | LazyImages) -> None:
    """Check that no image with a caption was replaced because it cannot be read.

    The caption of a cached token is found by the number of its image, so a replaced image would get a wrong caption.

    Raises:
        DataError: an image was replaced.
    """
    replaced = getattr(images, "replaced", [])
    if replaced and any(images.captions):
        path, why = replaced[0]
        raise DataError(f"{path}: broken image: {why}; its caption would belong to another image: repair or remove it")


def captions_fingerprint(captions: Sequence[str]) -> str:
    """16 hex digits: a hash of the captions, for a cache whose tokens depend on them."""
    return hashlib.sha256(repr(list(captions)).encode()).hexdigest()[:16]


def inputs_fingerprint(images: ImageSet, like: str | None = None) -> str:
    """The fingerprint of images and, if they have any, of their captions, for results that depend on both.

    Args:
        like: another fingerprint; the new one sees what that one sees.
    """
    captions = images.captions if any(images.captions) else []
    found = images.fingerprint() if like is None else fingerprint_like(images, like)
    return found + (f" captions {captions_fingerprint(captions)}" if captions else "")


def tokens_kept(spec: TokenSpec, num_tokens: int | None) -> int:
    """The number of leading tokens to store; None: all. Raises ConfigError for more than the tokenizer has."""
    length = spec.length if num_tokens is None else num_tokens
    if not 1 <= length <= spec.length:
        raise ConfigError(f"num_tokens: expected 1..{spec.length} (the tokenizer's length), got {length}")
    return length


def cache_layout(spec: TokenSpec, views: int, format: CacheFormat) -> Layout:
    """The layout of a cache. Ids are stored as int64 for any `format.dtype`.

    With `format.moments` a token has twice as many numbers: mean and standard deviation. A shard file holds all views
    of its images: as many images as fit into `format.rows_per_shard` rows, but at least one.

    Args:
        views: number of views of an image, each of which is a row.

    Raises:
        ConfigError: more tokens than the tokenizer has.
    """
    length, rows = tokens_kept(spec, format.num_tokens), format.rows_per_shard
    stored = format.dtype if spec.vocab_size is None else "int64"
    dim = 0 if spec.dim is None or spec.vocab_size is not None else (2 if format.moments else 1) * spec.dim
    return Layout(length, dim, stored, max(views, rows // views * views))


def forecast(layout: Layout, num_images: int, views: int, folder: Path) -> str:
    """Two lines of text: the rows of a cache, and its size and the free space."""
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
    label: Literal["true", "null"] | None = None,
    seed: int = 0,
    batch_size: int = 500,
    overwrite: bool = False,
    quiet: bool = False,
    budgeting: Budgeting | None = None,
) -> TokenCache | None:
    """Write the leading tokens of all views of all images into a cache, and open it.

    An unfinished cache is resumed. The cache stores the fingerprints of tokenizer and data. Tokens are encoded in
    float32 with the tokenizer in eval mode, and are not normalised. The 1,281,167 images of ImageNet in 20 views with
    32 tokens of 16 numbers take 26.2 GB in bfloat16 (with 256 tokens 210 GB); the published code needs 52.5 (419.8) GB
    of shared memory.

    Args:
        images: their transform determines the views, see `with_views`.
        part: (i, n): this process writes part i of n. Processes on several machines can write at the same time. A part
            is at least one file of `format.rows_per_shard` rows.
        label: condition of the tokenizer, see `conditions.conditioning_of`.
        seed: seed of random views.
        batch_size: number of views in a forward pass.
        budgeting: with a quality, also store the number of tokens that each view needs for it.

    Returns:
        The cache, or None if other parts are missing.

    Raises:
        DataError: too little free space, or another cache in the folder.
        ConfigError: another process writes another cache, or this part, into the folder; more tokens than the tokenizer
            has, or moments of a tokenizer without a KL bottleneck.
    """
    format = CacheFormat() if format is None else format
    budgeting = Budgeting() if budgeting is None else budgeting
    if format.moments:
        check_variational(tokenizer, "--moments")
    views, model = images.transform.num_views, tokenizer.eval()
    layout, conditioned = cache_layout(model.spec, views, format), ConditionedImages(model, images, label)
    conditioned.conditioning.say()
    meta, count = _meta(conditioned, images, layout, format, seed), counter(model, budgeting, seed=seed)
    if budgeting.quality is not None:
        meta |= {name: str(value) if value == math.inf else value for name, value in asdict(budgeting).items()}
    about = {"tokenizer_settings": encoder_settings(model), "classes": list(images.class_names)}
    if isinstance(images, LazyImages):
        about["files"] = images.keys
    name = "encode" if part[1] == 1 else f"encode {part[0]}/{part[1]}"
    step, shown = max(1, batch_size // views), "" if quiet else name
    with _locked(folder, part, f"{meta} {layout} {len(images)}"):
        writer = TokenWriter(
            folder, layout, len(images) * views, meta=meta, about=about, part=part, overwrite=overwrite
        )
        _write(conditioned, images, writer, count, step=step, seed=seed, moments=format.moments, name=shown)
        return TokenCache(folder) if writer.close() else None


@contextmanager
def _locked(folder: Path, part: tuple[int, int], about: str) -> Iterator[None]:
    """Hold the lock of a cache with other parts of the same cache; raises DataError where it cannot be written."""
    try:
        with hold_part(Path(folder) / FOLDER_LOCK, str(folder), part, hashlib.sha256(about.encode()).hexdigest()):
            yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {reason_of(error)}: choose another folder") from None


def _meta(
    conditioned: ConditionedImages,
    images: ArrayImages | LazyImages,
    layout: Layout,
    format: CacheFormat,
    seed: int,
) -> dict[str, object]:
    """Everything that the tokens of a cache depend on."""
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
    if conditioned.conditioning.label is not None:
        meta["label"] = conditioned.conditioning.label
    if conditioned.embed is not None:
        meta["captions"] = captions_fingerprint(images.captions)
    if images.transform.is_random:
        meta["seed"] = seed
    return meta


def _write(
    conditioned: ConditionedImages,
    images: ArrayImages | LazyImages,
    writer: TokenWriter,
    count: Counter | None,
    *,
    step: int,
    seed: int,
    moments: bool,
    name: str,
) -> None:
    """Encode the images of a part, `step` images at a time; `name` is the text of the progress bar, "" for no bar."""
    views = images.transform.num_views

    def batches() -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor | None]]]:
        for first, end in ((start // views, stop // views) for start, stop in writer.ranges):
            for start in range(first, end, step):
                yield start * views, conditioned.batch(range(start, min(start + step, end)), seed=seed)

    bar = Bar(writer.num_rows, done=writer.rows_done, unit="row", name=name, quiet=not name)
    with bar, closing(prefetch(batches())) as ahead:
        for first, (x, labels, cond) in ahead:
            check_captions(images)
            tokens = encode_batch(conditioned.tokenizer, x, cond, writer.layout.num_tokens, moments=moments)
            writer.write(tokens, labels, None if count is None else count(x, cond, first))
            bar.update(len(labels))
    report_broken(images)

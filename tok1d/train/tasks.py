"""From a recipe to something the loop can train: the model, its batches, its previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tok1d.config import Recipe
from tok1d.data.folder import tell_broken
from tok1d.data.images import ImageSet, open_images
from tok1d.data.order import batch_indices
from tok1d.data.tokens import TokenCache, TokenWriter
from tok1d.errors import ConfigError, DataError
from tok1d.pictures import grid, save_png
from tok1d.train.loop import Batch, Task
from tok1d.zoo import store


def open_split(recipe: Recipe, split: str, *, augment: bool = False) -> ImageSet:
    """The recipe's images; augmented only for training."""
    data = recipe.data
    return open_images(
        data.name,
        split,  # type: ignore[arg-type]
        root=data.root,
        image_size=data.image_size,
        channels=data.channels,
        crop=data.crop if augment else "center",
        flip=data.flip and augment,
        on_broken=data.on_broken,
        limit=data.limit if split == "train" else data.limit_test,
    )


def build_task(recipe: Recipe) -> Task:
    """The task of any recipe, with freshly initialised weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    if recipe.kind == "generator":
        return _generator_task(recipe)
    model = store.build_model(recipe.model)
    images = open_split(recipe, "train", augment=True)
    tell_broken(images)
    size, seed = recipe.train.batch_size, recipe.seed

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        indices, epoch = batch_indices(len(images), size // world, seed=seed, step=micro_step, rank=rank, world=world)
        return images.batch(indices, seed=seed, epoch=epoch)

    return Task(model, batch, _reconstruction_preview(recipe) if recipe.kind == "tokenizer" else None)


def _reconstruction_preview(recipe: Recipe) -> Any:
    def preview(model: nn.Module, path: Path) -> None:
        from tok1d.evaluate.reconstruction import prefix_lengths

        x, _ = open_split(recipe, "test").batch(range(10))
        x = x.to(next(model.parameters()).device)
        tokens = model.encode(x)  # type: ignore[operator]
        rows = [model.decode(tokens, keep=k) for k in prefix_lengths(model.spec.length)]  # type: ignore
        save_png(grid(torch.cat([x, *rows]), len(x), zoom=2), path)

    return preview


def encode_images(
    tokenizer: Any,
    images: ImageSet,
    folder: Path,
    *,
    num_tokens: int | None = None,
    dtype: str = "float32",
    batch_size: int = 500,
    overwrite: bool = False,
    quiet: bool = False,
) -> TokenCache:
    """Write the first `num_tokens` tokens of every image into a cache (resuming an unfinished one) and open it.

    The cache remembers the tokenizer's and the data's fingerprints; tokens are stored raw.
    """
    from tqdm import tqdm

    spec = tokenizer.spec
    length = spec.length if num_tokens is None else num_tokens
    if not 1 <= length <= spec.length:
        raise ConfigError(f"num_tokens: expected 1..{spec.length} (the tokenizer's length), received {length}")
    if spec.vocab_size is not None:
        dtype = "int64"
    meta = {
        "tokenizer_fingerprint": store.fingerprint(tokenizer),
        "data_fingerprint": images.fingerprint(),
        "keep": length,
        "num_classes": images.num_classes,
    }
    device = next(tokenizer.parameters()).device
    writer = TokenWriter(
        folder,
        num_tokens=length,
        dim=spec.dim or 0,
        dtype=dtype,  # type: ignore[arg-type]
        meta=meta,
        overwrite=overwrite,
    )
    with writer, torch.inference_mode(), tqdm(total=len(images), disable=quiet, unit="image", desc="encode") as bar:
        bar.update(writer.rows_done)
        for start in range(writer.rows_done, len(images), batch_size):
            x, labels = images.batch(range(start, min(start + batch_size, len(images))))
            tokens = tokenizer.encode(x.to(device), labels.to(device) if spec.needs_label else None)
            writer.write(tokens[:, :length].cpu(), labels)
            bar.update(len(labels))
    tell_broken(images)
    return TokenCache(folder)


def open_cache(recipe: Recipe, tokenizer: Any) -> TokenCache:
    """The recipe's token cache, made now if it is not there; refused if it belongs to another tokenizer or data."""
    assert recipe.cache is not None
    folder = Path(recipe.cache)
    images = open_split(recipe, "train")
    if (folder / "index.json").exists():
        cache = TokenCache(folder)
        cache.check(tokenizer_fingerprint=store.fingerprint(tokenizer), data_fingerprint=images.fingerprint())
        return cache
    return encode_images(tokenizer, images, folder, num_tokens=recipe.num_tokens)


def _generator_task(recipe: Recipe) -> Task:
    assert recipe.tokenizer is not None
    tokenizer = store.load(recipe.tokenizer)
    if not hasattr(tokenizer, "spec"):
        raise ConfigError(f"tokenizer: expected a tokenizer's model folder, {recipe.tokenizer} is another model")
    spec, config = tokenizer.spec, recipe.model
    length = recipe.num_tokens or spec.length
    for key, expected in (("num_tokens", length), ("token_dim", spec.dim)):
        if getattr(config, key, expected) != expected:
            received = getattr(config, key)
            raise ConfigError(f"model.{key}: expected {expected} as the tokenizer makes them, received {received}")
    cache = open_cache(recipe, tokenizer)
    if cache.num_tokens < length:
        raise DataError(f"{recipe.cache}: holds {cache.num_tokens} tokens an image, {length} are needed; encode again")
    classes = int(cache.meta.get("num_classes", 0))
    if config.num_classes and config.num_classes != classes:
        raise ConfigError(f"model.num_classes: the data have {classes} classes, received {config.num_classes}")
    size, seed = recipe.train.batch_size, recipe.seed

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        indices, _ = batch_indices(len(cache), size // world, seed=seed, step=micro_step, rank=rank, world=world)
        tokens, labels = cache.batch(indices)
        return tokens[:, :length], labels

    def preview(model: nn.Module, path: Path) -> None:
        device = next(model.parameters()).device
        labels = torch.arange(10, device=device) % max(config.num_classes, 1)
        cond = {"cond": labels} if config.num_classes else {"num": 10}
        images = tokenizer.to(device).decode(model.sample(**cond))  # type: ignore[operator]
        save_png(grid(images, 10, zoom=2), path)

    return Task(store.build_model(config), batch, preview)

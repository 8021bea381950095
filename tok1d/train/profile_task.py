"""A recipe's task for measuring its speed: real networks of random weights, real data where they are at hand.

Nothing is fetched and nothing is written: no weights are downloaded, no token cache is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.config.condition import text_condition
from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.cost.forecast import meta_batch
from tok1d.cost.measure import AUTOENCODERS
from tok1d.data.decoded import report_broken
from tok1d.data.records import nothing_written
from tok1d.data.tokens import INDEX, TokenCache
from tok1d.errors import ConfigError, DataError, WeightsError
from tok1d.losses.classifier import LogitsDistance
from tok1d.losses.discriminator import DinoConfig
from tok1d.losses.perceptual import LPIPS, WIDTHS, PerceptualLoss, vgg16
from tok1d.losses.total import Batch
from tok1d.tokenizers.auxiliary import TEACHER
from tok1d.train.adversarial import build_players
from tok1d.train.images import open_split
from tok1d.train.rows import every_image, released, sampled
from tok1d.train.task import Task
from tok1d.train.tasks import BatchFunction, check_classes, read_batches
from tok1d.zoo import store
from tok1d.zoo.adapters.autoencoder import autoencoder_class
from tok1d.zoo.pretrained.autoencoder import locate
from tok1d.zoo.pretrained.classifier import classifier_network
from tok1d.zoo.pretrained.teachers import give_teachers


@dataclass(frozen=True)
class Rehearsal:
    """A task, and where its batches come from, in words.

    Args:
        loads: whether they are read as in training, so that waiting for them says something.
    """

    task: Task
    source: str
    loads: bool


def rehearsal(recipe: Recipe) -> Rehearsal:
    """The task of a recipe of any kind.

    Raises:
        ConfigError, WeightsError: a network whose shape cannot be known here.
        DataError: data that are here and do not fit.
    """
    recipe = untrained(recipe)
    torch.manual_seed(recipe.seed)
    model: Any = store.build_model(recipe.model)
    give_teachers(model)
    players = build_players(recipe, model, resumed=True, perceptual=_perceptual(recipe))
    _use_autoencoder(model)
    with nothing_written():
        batch, source, loads = (_tokens if recipe.kind == "generator" else _images)(recipe, model)
    return Rehearsal(Task(model, batch, players=players), source, loads)


def untrained(recipe: Recipe) -> Recipe:
    """The recipe with random weights in place of those that timm would download, for teachers and discriminators.

    Raises:
        ConfigError: a discriminator that only its weights, which would have to be fetched, could make.
    """
    changes: dict[str, Any] = {}
    alignment, auxiliary = getattr(recipe.model, "alignment", None), getattr(recipe.model, "auxiliary", [])
    if alignment is not None and _of_timm(alignment.teacher):
        changes["alignment"] = replace(alignment, weights="random")
    if auxiliary:
        changes["auxiliary"] = [
            replace(each, weights="random") if each.is_teacher and _of_timm(each.target.removeprefix(TEACHER)) else each
            for each in auxiliary
        ]
    model = replace(recipe.model, **changes) if changes else recipe.model
    adversarial, config = recipe.adversarial, recipe.adversarial.discriminator
    if adversarial.weight > 0 and isinstance(config, DinoConfig):
        if config.backbone == DinoConfig().backbone:
            adversarial = replace(adversarial, discriminator=replace(config, weights="random"))
        elif config.weights is None:
            raise ConfigError(
                f"adversarial.discriminator.weights: --measure fetches none, expected a file of {config.backbone}'s"
            )
    return replace(recipe, model=model, adversarial=adversarial)


def _of_timm(name: str) -> bool:
    return bool(name) and name not in store.bundled_names() and not (Path(name) / "config.json").is_file()


def _perceptual(recipe: Recipe) -> PerceptualLoss | None:
    """The configured distances by networks of random weights: what they compute is as much."""
    config = recipe.perceptual
    if not config.used:
        return None
    lpips = LPIPS(vgg16(), [torch.rand(width) for width in WIDTHS]) if config.weight > 0 else None
    logits = LogitsDistance(classifier_network(config.classifier, pretrained=False)) if config.logits > 0 else None
    return PerceptualLoss(config, lpips, None if logits is None else logits.requires_grad_(False).eval())


def _use_autoencoder(model: Any) -> None:
    """Give a tokenizer of latents its autoencoder where it is at hand, else a random one of the same shape."""
    space = getattr(model, "latent_space", None)
    if space is None or not hasattr(space, "use"):
        return
    try:
        found = locate(space.config.path, space.base)
    except WeightsError:
        found = None
    if found is not None:
        return
    shape = AUTOENCODERS.get((space.channels, space.factor))
    if shape is None:
        raise WeightsError(f"--measure: the autoencoder {space.config.path} is not here; fetch it first")
    network = autoencoder_class()(latent_channels=space.channels, layers_per_block=2, norm_num_groups=32, **shape)
    space.use(network)


def _images(recipe: Recipe, model: Any) -> tuple[BatchFunction, str, bool]:
    """Batches of the recipe's images, with random numbers for their captions; random ones where there are no images."""
    try:
        images = open_split(recipe, "train", augment=True)
    except DataError as error:
        return _random(recipe), f"random images ({error})", False
    report_broken(images)
    check_classes(model, images.num_classes)
    read, captioned = read_batches(recipe, images), text_condition(recipe.model) is not None
    words, told = recipe.learns_words, _told(recipe)

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        pixels, labels, _ = read(micro_step, rank, world)
        rest = told(len(labels)) if captioned or words else ()
        return (pixels, *rest) if captioned else (pixels, labels, *rest[1:])

    return batch, f"{len(images):,} images of {recipe.data.name}" + ", random captions" * (captioned or words), True


def _tokens(recipe: Recipe, model: Any) -> tuple[BatchFunction, str, bool]:
    """Batches of the recipe's token cache where it is made, else random tokens."""
    if recipe.cache == NO_CACHE:
        return _random(recipe), "random tokens; encoding every batch (cache=none) comes on top", False
    if not (Path(str(recipe.cache)) / INDEX).exists():
        return _random(recipe), f"random tokens ({recipe.cache} is not made yet)", False
    cache, length = TokenCache(Path(str(recipe.cache))), recipe.num_tokens or recipe.model.num_tokens
    moments = bool(cache.meta.get("moments"))
    if recipe.sample_latents and not moments:
        return _random(recipe), f"random tokens ({recipe.cache} holds means alone)", False
    wanted, found = meta_batch(recipe, 1)[0], cache.batch([0])[0]
    found = found.chunk(2, dim=-1)[0] if moments else found
    if cache.num_tokens < length or found.shape[2:] != wanted.shape[2:] or found.dtype != wanted.dtype:
        return _random(recipe), f"random tokens ({recipe.cache} holds others)", False
    rows_of = released if recipe.row_order == "released" else every_image
    size, seed = recipe.train.batch_size, recipe.seed
    captioned, told = text_condition(recipe.model) is not None, _told(recipe)

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        rows = rows_of(len(cache), cache.views, size // world, seed=seed, step=micro_step, rank=rank, world=world)
        tokens, labels = cache.batch(rows)
        tokens = tokens[:, :length]
        if recipe.sample_latents:
            tokens = sampled(tokens, seed=seed, step=micro_step, rank=rank)
        elif moments:
            tokens = tokens.chunk(2, dim=-1)[0]
        return tokens, *(told(len(labels)) if captioned else (labels,))

    return batch, f"{len(cache):,} cached rows of tokens" + ", random captions" * captioned, True


def _random(recipe: Recipe) -> BatchFunction:
    """The same random batch every time, of each size that images have."""
    sizes = recipe.data.image_sizes

    @lru_cache
    def of_size(num: int, size: int | None) -> Batch:
        return _filled(recipe, meta_batch(recipe, num, size))

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        return of_size(recipe.train.batch_size // world, sizes[micro_step % len(sizes)] if sizes else None)

    return batch


def _told(recipe: Recipe) -> Callable[[int], Batch]:
    """What follows so many images or tokens in a batch, random and always the same."""
    return lru_cache(lambda num: _filled(recipe, meta_batch(recipe, num)[1:]))


def _filled(recipe: Recipe, shapes: Batch) -> Batch:
    """Random values in the shapes of `meta_batch`: ids, labels, and numbers in 0..1."""
    generator = torch.Generator().manual_seed(recipe.seed)
    vocabulary = getattr(recipe.model, "vocab_size", None)

    def fill(shape: Tensor) -> Tensor:
        if shape.dtype == torch.int64:
            most = vocabulary if shape.ndim == 2 and vocabulary else getattr(recipe.model, "num_classes", 0)
            return torch.randint(max(most or 1, 1), shape.shape, generator=generator)
        return torch.rand(shape.shape, generator=generator)

    return tuple(fill(shape) for shape in shapes)

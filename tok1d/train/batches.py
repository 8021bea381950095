"""Batches of images, cached tokens and captions, as pure functions of (micro_step, rank, world)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from tok1d.config.condition import ConditionConfig, text_condition
from tok1d.config.recipe import Recipe
from tok1d.data.images import at_size
from tok1d.data.labels import image_classes
from tok1d.data.order import batch_indices, choice
from tok1d.data.tokens import TokenCache
from tok1d.devices import process_device
from tok1d.errors import DataError
from tok1d.inference.cache import encode_batch
from tok1d.inference.captions import CaptionReader, caption_reader
from tok1d.inference.conditions import conditioning_of, reads_captions
from tok1d.losses.total import Batch
from tok1d.train.images import Images
from tok1d.train.rows import every_image, released, sampled
from tok1d.train.task import BatchFunction
from tok1d.zoo.loaded import LoadedTokenizer
from tok1d.zoo.pretrained.text import CaptionWords

# Stream of random numbers for a batch's image size; 0 is for augmentation, 1 for the views of a cache (rows.py).
_SIZE_STREAM = 2

Condition = Callable[[Tensor, list[str]], Batch]  # (labels (B,), captions) -> what follows images in a batch


def read_batches(recipe: Recipe, images: Images) -> Callable[[int, int, int], tuple[Tensor, Tensor, list[str]]]:
    """Batches of images (B, C, H, W), labels (B,) and captions; every image occurs once an epoch.

    With `data.image_sizes` each batch has one of these sizes, the same in all processes.
    """
    size, seed = recipe.train.batch_size, recipe.seed
    sets = [at_size(images, side) for side in recipe.data.image_sizes] or [images]

    def batch(micro_step: int, rank: int, world: int) -> tuple[Tensor, Tensor, list[str]]:
        indices, epoch = batch_indices(len(images), size // world, seed=seed, step=micro_step, rank=rank, world=world)
        current = sets[choice(len(sets), seed=seed, step=micro_step, stream=_SIZE_STREAM)]
        return current.captioned_batch(indices, seed=seed, epoch=epoch)

    return batch


def sample_names(recipe: Recipe, images: Images) -> Callable[[int, int, int], list[str]]:
    """The names of the images in the batches of `read_batches`: their files, or their numbers in the set."""
    size, seed, files = recipe.train.batch_size, recipe.seed, getattr(images, "files", None)
    name: Callable[[int], str] = getattr(images, "name", "image {}".format)

    def names(micro_step: int, rank: int, world: int) -> list[str]:
        indices, _ = batch_indices(len(images), size // world, seed=seed, step=micro_step, rank=rank, world=world)
        return [name(i) if files is None else files[i] for i in indices]

    return names


def image_batches(recipe: Recipe, images: Images, condition: Condition) -> BatchFunction:
    """Batches of images, followed by the tensors that `condition` returns for their labels and captions."""
    read = read_batches(recipe, images)

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        pixels, labels, captions = read(micro_step, rank, world)
        return pixels, *condition(labels, captions)

    return batch


def image_condition(recipe: Recipe, images: Images) -> Condition:
    """Return the function that computes the tensors after the images in a tokenizer's or classifier's batch.

    Labels (B,); for a model conditioned on captions their embeddings (B, T, E) or words (B, T) instead; and for a
    model that learns to predict the words of captions the labels and the words (B, vocabulary).

    Raises:
        Tok1dError: see `caption_embeddings` and `caption_words`.
    """
    words = caption_words(recipe, images)
    embed, device = caption_embeddings(recipe, text_condition(recipe.model), images), process_device()

    def condition(labels: Tensor, captions: list[str]) -> Batch:
        if embed is not None:
            return (embed(captions, device),)
        return (labels,) if words is None else (labels, words(captions))

    return condition


def cached_batches(
    recipe: Recipe, cache: TokenCache, length: int, condition: Callable[[np.ndarray, Tensor], Tensor]
) -> BatchFunction:
    """Batches of the first `length` cached tokens (B, length, D) or ids (B, length), and their condition.

    With the recipe's `budget.quality` followed by the numbers of tokens (B,) of the images.

    Args:
        condition: (rows of the cache, labels (B,)) -> labels, caption embeddings (B, T, E) or words (B, T).
    """
    rows_of = released if recipe.row_order == "released" else every_image
    size, seed = recipe.train.batch_size, recipe.seed
    moments = bool(cache.meta.get("moments"))

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        rows = rows_of(len(cache), cache.views, size // world, seed=seed, step=micro_step, rank=rank, world=world)
        tokens, labels = cache.batch(rows)
        tokens = tokens[:, :length]
        if recipe.sample_latents:
            tokens = sampled(tokens, seed=seed, step=micro_step, rank=rank)
        elif moments:
            tokens = tokens.chunk(2, dim=-1)[0]
        given = condition(rows, labels)
        return (tokens, given) if recipe.budget.quality is None else (tokens, given, cache.lengths(rows))

    return batch


def encoded_batches(recipe: Recipe, images: Images, tokenizer: LoadedTokenizer, length: int) -> BatchFunction:
    """Batches of the first `length` tokens or ids of images that are encoded at every step, and their condition."""
    frozen = tokenizer.to(process_device())
    read, generator_condition = read_batches(recipe, images), text_condition(recipe.model)
    used = conditioning_of(tokenizer, image_classes(images), captioned=any(images.captions))
    captions_read = tokenizer.config.condition if reads_captions(tokenizer) and used.label == "true" else None
    embed = caption_embeddings(recipe, generator_condition or captions_read, images)
    used.say()
    device = process_device()

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        x, labels, captions = read(micro_step, rank, world)
        cond = labels if embed is None else embed(captions, device)
        tokens = encode_batch(frozen, x, used.of(cond, device), length, moments=recipe.sample_latents)
        if recipe.sample_latents:
            tokens = sampled(tokens, seed=recipe.seed, step=micro_step, rank=rank)
        return tokens, labels if generator_condition is None else cond

    return batch


def caption_embeddings(recipe: Recipe, condition: ConditionConfig | None, images: Images) -> CaptionReader | None:
    """Turns captions of the training images into what a model with this condition reads; None without a condition.

    Raises:
        Tok1dError: see `caption_reader`; or none of the images has a caption.
    """
    if condition is None:
        return None
    _check_captions(recipe, images)
    return caption_reader(condition, images.captions)


def caption_words(recipe: Recipe, images: Images) -> CaptionWords | None:
    """Turns captions into the words that the model learns to predict; None for a model that predicts none.

    Raises:
        Tok1dError: see `CaptionWords`; or none of the images has a caption.
    """
    if not recipe.learns_words:
        return None
    _check_captions(recipe, images)
    target = next(each for each in recipe.model.auxiliary if each.target == "text")
    words = CaptionWords(target.tokenizer, target.dim)
    if target.idf:
        words.fit(images.captions)
    return words


def _check_captions(recipe: Recipe, images: Images) -> None:
    if not any(images.captions):
        raise DataError(f"data.captions={recipe.data.captions}: none of the training images has a caption")

"""From a recipe to something the loop can train: the model, its batches, its previews."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.config.condition import ConditionConfig, text_condition
from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.data.decoded import report_broken
from tok1d.data.images import at_size
from tok1d.data.order import batch_indices, choice
from tok1d.data.subset import subset
from tok1d.data.tokens import INDEX, TokenCache
from tok1d.devices import process_device
from tok1d.errors import ConfigError, DataError
from tok1d.generators.statistics import NormalisedTokens
from tok1d.inference.cache import (
    captions_fingerprint,
    check_variational,
    encode_batch,
    encode_images,
    encoder_settings,
    tokens_kept,
    with_views,
)
from tok1d.inference.conditions import ConditionedImages, choose_condition, cond_for, reads_captions
from tok1d.inference.request import CacheFormat
from tok1d.losses.total import Batch
from tok1d.pictures import grid, save_png
from tok1d.tokenizers.prefix import token_counts
from tok1d.train.adversarial import build_players
from tok1d.train.images import Images, open_split
from tok1d.train.proxies import Proxies
from tok1d.train.rows import every_image, released, sampled
from tok1d.train.task import Measure, Task
from tok1d.zoo import store
from tok1d.zoo.card import padding_of
from tok1d.zoo.pairs import check_condition, check_num_classes, check_tokens, shared_classes
from tok1d.zoo.pretrained.teachers import give_teachers
from tok1d.zoo.pretrained.text import CaptionEmbeddings, CaptionWords
from tok1d.zoo.transfer import init_from
from tok1d.zoo.weights import fingerprint

BatchFunction = Callable[[int, int, int], Batch]
_SIZE_DRAWS = 2  # stream of the draws of a batch's image size; 0 are the augmentations', 1 the cached views'
STATISTICS_ROWS = 10_000  # token sequences that mean and std are measured on


def build_task(recipe: Recipe) -> Task:
    """The task of any recipe, with weights drawn from the recipe's seed, or those it starts from.

    Where a checkpoint is to replace the weights anyway, nothing is read to start from.
    """
    recipe = replace(recipe, model=with_encoder(recipe.model))
    torch.manual_seed(recipe.seed)
    if recipe.kind == "generator":
        return _generator_task(recipe)
    model = store.build_model(recipe.model)
    give_teachers(model)
    if recipe.init_from is not None and not resumes(recipe):
        init_from(model, recipe.init_from)
    players = build_players(recipe, model, resumed=resumes(recipe))
    images = open_split(recipe, "train", augment=True)
    report_broken(images)
    check_classes(model, images.num_classes)
    preview = _reconstruction_preview(recipe) if recipe.kind == "tokenizer" else None
    task = Task(model, image_batches(recipe, images), preview, players, sample_names(recipe, images), images)
    if recipe.train.proxies_every:
        task.measures.append(Measure(recipe.train.proxies_every, Proxies(recipe)))
    return task


def with_encoder(config: Any) -> Any:
    """A model's configuration, in which a local text encoder has its absolute path: models are used from anywhere.

    Raises:
        ConfigError: a model of captions without a text encoder.
    """
    told = text_condition(config)
    if told is None:
        return config
    told.check_encoder()
    local = Path(told.encoder)
    return replace(config, condition=replace(told, encoder=str(local.resolve()))) if local.exists() else config


def check_classes(model: Any, num_classes: int) -> None:
    """Refuse images of another number of classes than a tokenizer that is told the class knows.

    Raises:
        ConfigError: there are more or fewer.
    """
    known = getattr(getattr(model, "spec", None), "num_classes", 0)
    if known and known != num_classes:
        raise ConfigError(f"model.num_classes: the data have {num_classes} classes, got {known}")


def resumes(recipe: Recipe) -> bool:
    """Whether a checkpoint lies in the recipe's run folder."""
    return any((Path(recipe.out) / "checkpoints").glob("step-*.pt"))


def read_batches(recipe: Recipe, images: Images) -> Callable[[int, int, int], tuple[Tensor, Tensor, list[str]]]:
    """Batches of images, labels and captions, every image once an epoch; pure functions of (micro_step, rank, world).

    With `data.image_sizes` a batch has one of these sizes, the same on all ranks.
    """
    size, seed = recipe.train.batch_size, recipe.seed
    sets = [at_size(images, side) for side in recipe.data.image_sizes] or [images]

    def batch(micro_step: int, rank: int, world: int) -> tuple[Tensor, Tensor, list[str]]:
        indices, epoch = batch_indices(len(images), size // world, seed=seed, step=micro_step, rank=rank, world=world)
        at_hand = sets[choice(len(sets), seed=seed, step=micro_step, stream=_SIZE_DRAWS)]
        return at_hand.captioned_batch(indices, seed=seed, epoch=epoch)

    return batch


def sample_names(recipe: Recipe, images: Images) -> Callable[[int, int, int], list[str]]:
    """The names of the images in the batches of `read_batches`: their files, or their numbers in the set."""
    size, seed, files = recipe.train.batch_size, recipe.seed, getattr(images, "files", None)
    name: Callable[[int], str] = getattr(images, "name", "image {}".format)

    def names(micro_step: int, rank: int, world: int) -> list[str]:
        indices, _ = batch_indices(len(images), size // world, seed=seed, step=micro_step, rank=rank, world=world)
        return [name(i) if files is None else files[i] for i in indices]

    return names


def image_batches(recipe: Recipe, images: Images) -> BatchFunction:
    """What a tokenizer or classifier trains on: images and labels of `read_batches`.

    A third entry are the words of captions, (B, vocabulary), where the model learns them; a tokenizer of captions has
    their embeddings (B, T, E) instead of labels.
    """
    read, words = read_batches(recipe, images), caption_words(recipe, images)
    embed, device = caption_embeddings(recipe, text_condition(recipe.model), images), process_device()

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        pixels, labels, captions = read(micro_step, rank, world)
        if embed is not None:
            return pixels, embed(captions, device)
        return (pixels, labels) if words is None else (pixels, labels, words(captions))

    return batch


def caption_embeddings(recipe: Recipe, condition: ConditionConfig | None, images: Images) -> CaptionEmbeddings | None:
    """What turns captions of the training images into what a model is told; None for one that is told no caption.

    Raises:
        Tok1dError: see `CaptionEmbeddings`; or none of the images has a caption.
    """
    if condition is None:
        return None
    _check_captions(recipe, images)
    return CaptionEmbeddings(condition, images.captions)


def _check_captions(recipe: Recipe, images: Images) -> None:
    if not any(images.captions):
        raise DataError(f"data.captions={recipe.data.captions}: none of the training images has a caption")


def caption_words(recipe: Recipe, images: Images) -> CaptionWords | None:
    """What turns captions into the words that the model learns to tell; None for a model that learns none.

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


def _reconstruction_preview(recipe: Recipe) -> Any:
    test = cache(lambda: subset(open_split(recipe, "test"), 10))

    def preview(model: Any, path: Path) -> None:

        x, _, cond = ConditionedImages(model, test()).batch(range(len(test())))
        x = x.to(next(model.parameters()).device)
        tokens = model.encode(x, cond)
        rows = [model.decode(tokens, cond, keep=k) for k in token_counts(model.spec)]
        save_png(grid(torch.cat([x, *rows]), len(x), zoom=2), path)

    return preview


def open_cache(recipe: Recipe, tokenizer: Any, images: Images) -> TokenCache:
    """The recipe's token cache of these images, made now if it is not there; refused if it belongs to another tokenizer
    or other data."""
    assert recipe.cache is not None
    folder = Path(recipe.cache)
    if not (folder / INDEX).exists():
        cache = encode_images(
            tokenizer.to(process_device()),
            images,
            folder,
            format=CacheFormat(num_tokens=recipe.num_tokens, dtype=recipe.cache_dtype, moments=recipe.sample_latents),
            seed=recipe.seed,
        )
        assert cache is not None, "one process writes all parts"
        return cache
    cache = TokenCache(folder)
    wanted = images.transform.fingerprint()
    found = cache.meta.get("transform", wanted)  # caches of before there were views do not say
    if found != wanted:
        raise DataError(
            f"{folder}: holds views {found}, the recipe asks for {wanted}: set cache_views as it was encoded, "
            "or cache to another folder"
        )
    if recipe.sample_latents and not cache.meta.get("moments"):
        raise DataError(
            f"{folder}: holds means alone, sample_latents=true needs their standard deviations too: encode with "
            "--moments, or cache to another folder"
        )
    cache.check(
        tokenizer_fingerprint=fingerprint(tokenizer),
        tokenizer_settings=encoder_settings(tokenizer),
        data_fingerprint=images.fingerprint(),
    )
    told = reads_captions(tokenizer) and any(images.captions)
    if cache.meta.get("captions") != (captions_fingerprint(images.captions) if told else None):
        raise DataError(f"{folder}: encoded with other captions than data.captions gives now: cache to another folder")
    return cache


def _generator_task(recipe: Recipe) -> Task:
    assert recipe.tokenizer is not None
    tokenizer = store.load(recipe.tokenizer)
    if not hasattr(tokenizer, "spec"):
        raise ConfigError(f"tokenizer: expected a tokenizer's model folder, {recipe.tokenizer} is another model")
    spec, config = tokenizer.spec, recipe.model
    length = tokens_kept(spec, recipe.num_tokens)
    check_tokens(config, spec, length)
    pad = padding_of(tokenizer)
    if tokenizer.card.recipe and pad != recipe.data.pad:
        raise ConfigError(f"data.pad: expected {pad} as in the tokenizer's training, got {recipe.data.pad}")
    if recipe.sample_latents:
        check_variational(tokenizer, "sample_latents")
    check_condition(config, tokenizer, recipe.tokenizer)
    class_table = shared_classes(config, tokenizer, recipe.tokenizer)
    from_images = recipe.cache == NO_CACHE
    batch, classes, images = (_encoded if from_images else _cached)(recipe, tokenizer, length)
    check_num_classes(config, classes)
    model = store.build_model(config)
    if recipe.init_from is not None and not resumes(recipe):
        init_from(model, recipe.init_from)
    if class_table is not None:
        model.label_embed.set_table(class_table)  # type: ignore[operator, union-attr]
    if isinstance(model, NormalisedTokens) and not resumes(recipe):
        # Every process measures the same rows, so that all of them start from equal buffers.
        count = -(-STATISTICS_ROWS // recipe.train.batch_size)
        model.fit_statistics(batch(step, 0, 1)[0] for step in range(count))
    return Task(model, batch, _sample_preview(recipe, tokenizer), images=images)


def _sample_preview(recipe: Recipe, tokenizer: Any) -> Any:
    """Ten samples, of the first classes or of some test images' captions, as the tokenizer decodes them."""
    test = cache(lambda: subset(open_split(recipe, "test"), 10))

    def preview(model: Any, path: Path) -> None:
        device, told, num_classes = (
            next(model.parameters()).device,
            text_condition(model.config),
            recipe.model.num_classes,
        )
        cond: Tensor | None = None
        if told is not None:
            captions = test().captioned_batch(range(len(test())))[2]
            cond = CaptionEmbeddings(told, captions)(captions, device)
        elif num_classes:
            cond = torch.arange(10, device=device) % num_classes
        used = choose_condition(tokenizer, num_classes, captioned=told is not None)
        images = tokenizer.to(device).decode(model.sample(cond, num=10), cond_for(used, cond, device))
        save_png(grid(images, len(images), zoom=2), path)

    return preview


def _cached(recipe: Recipe, tokenizer: Any, length: int) -> tuple[BatchFunction, int, Images]:
    """Batches of cached tokens (B, length, D) or ids (B, length), the number of classes, and the images."""
    images = with_views(open_split(recipe, "train"), recipe.cache_views)
    embed, device = caption_embeddings(recipe, text_condition(recipe.model), images), process_device()
    if not (Path(str(recipe.cache)) / INDEX).exists():
        check_num_classes(recipe.model, images.num_classes)  # before it is made, not after
    cache = open_cache(recipe, tokenizer, images)
    if cache.num_tokens < length:
        raise DataError(f"{recipe.cache}: holds {cache.num_tokens} tokens an image, {length} are needed; encode again")
    rows_of = released if recipe.row_order == "released" else every_image
    size, seed = recipe.train.batch_size, recipe.seed

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        rows = rows_of(len(cache), cache.views, size // world, seed=seed, step=micro_step, rank=rank, world=world)
        tokens, labels = cache.batch(rows)
        tokens = tokens[:, :length]
        if recipe.sample_latents:
            tokens = sampled(tokens, seed=seed, step=micro_step, rank=rank)
        elif cache.meta.get("moments"):
            tokens = tokens.chunk(2, dim=-1)[0]
        if embed is None:
            return tokens, labels
        return tokens, embed([images.captions[row // cache.views] for row in rows], device)

    return batch, int(cache.meta.get("num_classes", 0)), images


def _encoded(recipe: Recipe, tokenizer: Any, length: int) -> tuple[BatchFunction, int, Images]:
    """Batches of tokens (B, length, D) or ids encoded as they are needed, the number of classes, and the images."""
    images, frozen = open_split(recipe, "train", augment=True), tokenizer.to(process_device())
    report_broken(images)
    read, own = read_batches(recipe, images), text_condition(recipe.model)
    used = choose_condition(tokenizer, images.num_classes, captioned=any(images.captions))
    reads = tokenizer.config.condition if reads_captions(tokenizer) and used == "true" else None
    embed, device = caption_embeddings(recipe, own or reads, images), process_device()

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        x, labels, captions = read(micro_step, rank, world)
        told = labels if embed is None else embed(captions, device)
        tokens = encode_batch(frozen, x, told, length, label=used, moments=recipe.sample_latents)
        if recipe.sample_latents:
            tokens = sampled(tokens, seed=recipe.seed, step=micro_step, rank=rank)
        return tokens, labels if own is None else told

    return batch, images.num_classes, images

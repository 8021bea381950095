"""The training task of a generator's recipe: its tokenizer, token cache and batches."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from tok1d.config.classes import set_class_names
from tok1d.config.condition import text_condition
from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.data.broken import report_broken
from tok1d.data.labels import image_classes
from tok1d.data.lazy import LazyImages, fingerprint_like
from tok1d.data.prints import FULL_HASH, SEES, asked_kind, kind_of_print
from tok1d.data.tokens import INDEX, TokenCache
from tok1d.devices import process_device
from tok1d.errors import ConfigError, DataError
from tok1d.generators.statistics import NormalisedTokens
from tok1d.images.framing import framing_of
from tok1d.inference.cache import (
    captions_fingerprint,
    check_variational,
    encode_images,
    encoder_settings,
    tokens_kept,
    with_views,
)
from tok1d.inference.conditions import Conditioning, conditioning_of, reads_captions
from tok1d.inference.request import CacheFormat
from tok1d.train.batches import cached_batches, caption_embeddings, encoded_batches
from tok1d.train.folder import has_checkpoint
from tok1d.train.images import Images, open_split, with_vocabulary
from tok1d.train.previews import sample_preview
from tok1d.train.task import BatchFunction, Task
from tok1d.zoo import store
from tok1d.zoo.loaded import LoadedTokenizer
from tok1d.zoo.pairs import check_condition, check_num_classes, check_tokens, shared_classes
from tok1d.zoo.pretrained.teachers import give_teachers
from tok1d.zoo.transfer import init_from
from tok1d.zoo.weights import fingerprint

STATISTICS_ROWS = 10_000  # token sequences from which a generator's input mean and standard deviation are computed


def generator_task(recipe: Recipe) -> Task:
    """The task of a generator's recipe.

    Raises:
        Tok1dError: the tokenizer cannot be loaded, or does not match the generator, the data or the cache.
    """
    name = recipe.tokenizer
    assert name is not None, "Recipe.check ensures it"
    tokenizer: LoadedTokenizer = store.load(name)
    if not hasattr(tokenizer, "spec"):
        raise ConfigError(f"tokenizer: expected the model folder of a tokenizer, got another model, {name}")
    recipe = replace(recipe, model=with_vocabulary(recipe.model, of=tokenizer))
    length = _check_tokenizer(recipe, tokenizer)
    images = _images(recipe)
    recipe = replace(recipe, model=with_vocabulary(recipe.model, images.captions))
    config = recipe.model
    check_num_classes(config.num_classes, images)
    class_table = shared_classes(config, tokenizer, name, images)
    batch = (_encoded if recipe.cache == NO_CACHE else _cached)(recipe, tokenizer, images, length)
    resumes = has_checkpoint(Path(recipe.out))
    model = store.build_model(config)
    set_class_names(model, image_classes(images).names)
    if recipe.init_from is not None and not resumes:
        init_from(model, recipe.init_from)
    if class_table is not None:
        model.label_embed.set_table(class_table)  # type: ignore[operator, union-attr]
    if isinstance(model, NormalisedTokens) and not resumes:
        # Every process reads the batches of a single process (rank 0 of 1), so that all have the same statistics.
        count = -(-STATISTICS_ROWS // recipe.train.batch_size)
        model.fit_statistics(batch(step, 0, 1)[0] for step in range(count))
    give_teachers(model, initialised=not resumes)
    return Task(model, batch, sample_preview(recipe, tokenizer), images=images, tokenizer=fingerprint(tokenizer))


def _check_tokenizer(recipe: Recipe, tokenizer: LoadedTokenizer) -> int:
    """The number of tokens that the generator models; raises ConfigError if it does not match the tokenizer."""
    assert recipe.tokenizer is not None
    length = tokens_kept(tokenizer.spec, recipe.num_tokens)
    check_tokens(recipe.model, tokenizer.spec, length)
    if tokenizer.card.recipe:
        for key, expected in framing_of(tokenizer).items():
            got = getattr(recipe.data, key)
            if got != expected and (key != "crop" or "fit" in (got, expected)):  # else it is only of augmented images
                raise ConfigError(f"data.{key}: expected {expected} as in the tokenizer's training, got {got}")
    if recipe.sample_latents:
        check_variational(tokenizer, "sample_latents")
    check_condition(recipe.model, tokenizer, recipe.tokenizer)
    return length


def open_cache(recipe: Recipe, tokenizer: LoadedTokenizer, images: Images) -> TokenCache:
    """Open the recipe's token cache of these images; encode them if there is none.

    Raises:
        DataError: the cache was made by another tokenizer, from other data, views or captions, or without the
            standard deviations that `sample_latents` needs.
    """
    assert recipe.cache is not None, "set by load_recipe"
    folder = Path(recipe.cache)
    if not (folder / INDEX).exists():
        cache = encode_images(
            tokenizer.to(process_device()),
            images,
            folder,
            format=CacheFormat(num_tokens=recipe.num_tokens, dtype=recipe.cache_dtype, moments=recipe.sample_latents),
            seed=recipe.seed,
            budgeting=recipe.budget,
        )
        assert cache is not None, "one process writes all parts"
        return cache
    cache = TokenCache(folder)
    wanted = images.transform.fingerprint()
    found = cache.meta.get("transform", wanted)  # absent from caches of versions that had only one view
    if found != wanted:
        raise DataError(
            f"{folder}: expected views {wanted} as in the recipe, got {found}: set cache_views as it was encoded, "
            "or cache to another folder"
        )
    if recipe.sample_latents and not cache.meta.get("moments"):
        raise DataError(
            f"{folder}: contains only means, but sample_latents=true also needs standard deviations: encode with "
            "--moments, or set cache to another folder"
        )
    if recipe.budget.quality is not None:
        asked = asdict(recipe.budget)
        stored = {name: cache.meta.get(name) for name in asked}
        if stored != asked:
            raise DataError(
                f"{folder}: expected numbers of tokens for {asked}, got {stored}: encode with --quality "
                f"{recipe.budget.quality:g}, or set cache to another folder"
            )
    cache.check(
        tokenizer_fingerprint=fingerprint(tokenizer),
        tokenizer_settings=encoder_settings(tokenizer),
        data_fingerprint=_data_fingerprint(cache, images),
        classes=images.class_names,
    )
    _check_label(cache, conditioning_of(tokenizer, image_classes(images), captioned=any(images.captions)))
    captioned = reads_captions(tokenizer) and any(images.captions)
    if cache.meta.get("captions") != (captions_fingerprint(images.captions) if captioned else None):
        raise DataError(
            f"{folder}: encoded with other captions than those of data.captions: set cache to another folder"
        )
    return cache


def _data_fingerprint(cache: TokenCache, images: Images) -> str:
    """The fingerprint of the images, which sees what that of the cache sees; prints a line if this is less."""
    made: object = cache.meta.get("data_fingerprint", "")
    if not isinstance(made, str):
        return images.fingerprint()
    if isinstance(images, LazyImages) and (kind := kind_of_print(made)) != (asked := asked_kind()) and kind != "whole":
        why = "made by an older version" if kind == "names" else f"made without {FULL_HASH}=1 or --full-hash"
        print(
            f"{cache.folder}: {why}: compared are {SEES[kind]}; to compare {SEES[asked]}, run tok1d encode again",
            file=sys.stderr,
        )
    return fingerprint_like(images, made)


def _check_label(cache: TokenCache, now: Conditioning) -> None:
    """Say if a cache was encoded under another condition than it would be now."""
    found = cache.meta.get("label", now.label)
    if found != now.label:
        print(
            f"{cache.folder}: encoded with label {found}, now it would be {now.label}; encode again if the labels of "
            "these images are not the tokenizer's"
        )
    elif now.places is not None and not cache.class_names:
        print(f"{cache.folder}: encoded with labels by position; encode again to map them by name")
    elif now.said:
        print(f"{cache.folder}: {now.said}")


def _images(recipe: Recipe) -> Images:
    """The training images, with the views of the cache, or augmented if they are encoded at every step."""
    if recipe.cache == NO_CACHE:
        images = open_split(recipe, "train", augment=True)
    else:
        images = with_views(open_split(recipe, "train"), recipe.cache_views)
    report_broken(images)
    return images


def _cached(recipe: Recipe, tokenizer: LoadedTokenizer, images: Images, length: int) -> BatchFunction:
    """Batches from the token cache."""
    embed, device = caption_embeddings(recipe, text_condition(recipe.model), images), process_device()
    cache = open_cache(recipe, tokenizer, images)
    if cache.num_tokens < length:
        raise DataError(
            f"{recipe.cache}: expected at least {length} tokens per image, got {cache.num_tokens}; encode again"
        )

    def condition(rows: np.ndarray, labels: Tensor) -> Tensor:
        return labels if embed is None else embed([images.captions[row // cache.views] for row in rows], device)

    return cached_batches(recipe, cache, length, condition)


def _encoded(recipe: Recipe, tokenizer: LoadedTokenizer, images: Images, length: int) -> BatchFunction:
    """Batches that are encoded at every step."""
    return encoded_batches(recipe, images, tokenizer, length)

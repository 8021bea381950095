"""The images of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from tok1d.config.condition import text_condition
from tok1d.config.fields import build, to_mapping
from tok1d.config.recipe import Recipe
from tok1d.data.images import ArrayImages, open_images
from tok1d.data.lazy import LazyImages, fingerprint_like
from tok1d.data.source import ImageSource
from tok1d.data.splits import Split
from tok1d.data.words import vocabulary_of
from tok1d.images.framing import framing_in
from tok1d.inference.cache import inputs_fingerprint
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")  # a model's configuration

Images = ArrayImages | LazyImages


def data_print(recipe: Recipe, images: object, like: str | None = None) -> str | None:
    """The fingerprint of training images, and of their captions if the model reads them; None for other sequences.

    Args:
        like: another fingerprint; the new one sees what that one sees.
    """
    if not isinstance(images, ArrayImages | LazyImages):
        return None
    if recipe.reads_captions or recipe.learns_words:
        return inputs_fingerprint(images, like)
    return images.fingerprint() if like is None else fingerprint_like(images, like)


def open_split(recipe: Recipe, split: Split, *, augment: bool = False) -> Images:
    """The recipe's images of a split.

    Args:
        augment: apply the recipe's random crop and flip; only for training.

    Raises:
        DataError: as `open_images`.
    """
    data = recipe.data
    source = ImageSource(
        data.name,
        root=data.root,
        image_size=data.image_size,
        channels=data.channels,
        crop=data.crop if augment else framing_in(data)["crop"],
        flip=data.flip and augment,
        pad=data.pad,
        background=data.background,
        on_broken=data.on_broken,
        limit=data.limit if split == "train" else data.limit_test,
        captions=data.captions,
        image_key=data.image_key,
        label_key=data.label_key,
        class_order=data.class_order,
        classes=data.classes,
        needs_classes=recipe.kind not in ("tokenizer", "budget") or bool(getattr(recipe.model, "num_classes", 0)),
        workers=data.workers,
    )
    return open_images(source, split)


def with_data_classes(recipe: Recipe) -> Recipe:
    """The recipe with the number of classes of its training images, if it has `classes_from_data`.

    Raises:
        DataError: as `open_images`.
        ConfigError: fewer classes than the model accepts.
    """
    if not recipe.classes_from_data:
        return recipe
    values = to_mapping(recipe.model) | {"num_classes": open_split(recipe, "train").num_classes}
    return replace(recipe, model=build(type(recipe.model), values, "model"), classes_from_data=False)


def with_vocabulary(config: C, captions: Sequence[str] = (), *, of: Tokenizer | None = None) -> C:
    """A model's configuration with the vocabulary of its captions, for `condition.kind=words` without one.

    Args:
        captions: the training captions, whose words are the vocabulary.
        of: a generator's tokenizer; if it has a vocabulary, that is taken.
    """
    text = text_condition(config)
    if text is None or text.kind != "words" or text.vocabulary:
        return config
    theirs = None if of is None else text_condition(of.config)
    words = vocabulary_of(captions, text.max_words) if theirs is None else list(theirs.vocabulary)
    return replace(config, condition=replace(text, vocabulary=words))

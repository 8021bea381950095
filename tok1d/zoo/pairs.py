"""Checks that a generator and a tokenizer fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.config.classes import agreement, model_classes, shortened
from tok1d.config.condition import text_condition
from tok1d.data.base import ImageSet
from tok1d.data.labels import image_classes
from tok1d.errors import ConfigError
from tok1d.generators.base import GeneratorConfig
from tok1d.tokenizers.base import Tokenizer, TokenSpec


def shared_classes(config: GeneratorConfig, tokenizer: Tokenizer, name: str, images: ImageSet) -> Tensor | None:
    """The class vectors (num_classes, class_dim) for a generator with `shares_classes`, else None.

    They are the tokenizer's class embeddings, in the order of the images' classes, by name. With `class_source: random`
    they are random directions (torch's global generator) with the lengths of the tokenizer's.

    Raises:
        ConfigError: a tokenizer without class embeddings, with embeddings of another size than the generator's, or of
            other classes than the images'.
    """
    if not getattr(config, "shares_classes", False):
        return None
    source = getattr(config, "class_source", "shared")
    class_vectors = getattr(tokenizer, "class_vectors", None)
    if class_vectors is None or not tokenizer.spec.needs_label:
        raise ConfigError(
            f"model.class_source: {source} needs a tokenizer with class vectors, {name} has none; "
            "set model.class_source=independent"
        )
    table: Tensor = class_vectors()
    for key, expected in zip(("num_classes", "class_dim"), table.shape):
        got = getattr(config, key)
        if got != expected:
            raise ConfigError(f"model.{key}: expected {expected} as the tokenizer's class table, got {got}")
    found = agreement(image_classes(images), model_classes(tokenizer))
    if not found.agrees:
        raise ConfigError(
            f"model.class_source: {source} needs data of the tokenizer's classes; {found.said}; "
            "set model.class_source=independent"
        )
    if found.places is not None:
        table = table[list(found.places)]
    if source == "random":
        noise = torch.randn(table.shape).to(table)
        table = noise / noise.norm(dim=1, keepdim=True) * table.norm(dim=1, keepdim=True)
    return table


def check_condition(config: GeneratorConfig, tokenizer: Tokenizer, name: str) -> None:
    """Check that a generator and its tokenizer's decoder have the same kind of condition.

    Raises:
        ConfigError: classes for a decoder that reads captions or the reverse, or another text encoder.
    """
    own, spec = text_condition(config), tokenizer.spec
    theirs = text_condition(tokenizer.config) if spec.reads_captions else None
    if own is None:
        if theirs is not None and config.num_classes:
            kind = theirs.kind
            raise ConfigError(
                f"tokenizer: {name} is conditioned on captions, expected a generator with model.condition.kind={kind}, "
                f"or unconditional (model.num_classes=0), got one of {config.num_classes} classes"
            )
        return
    if spec.needs_label and not spec.reads_captions:
        raise ConfigError(f"model.condition.kind: {name} is conditioned on classes, expected class, got {own.kind}")
    if theirs is None:
        return
    for key in ("kind", "length") if own.kind == theirs.kind == "words" else ("kind", "encoder", "dim", "length"):
        expected, got = getattr(theirs, key), getattr(own, key)
        if expected != got:
            raise ConfigError(f"model.condition.{key}: expected {expected} as the tokenizer's, got {got}")
    if own.vocabulary != theirs.vocabulary:
        other = sorted({*own.vocabulary} ^ {*theirs.vocabulary})
        raise ConfigError(
            f"model.condition.vocabulary: expected the tokenizer's {len(theirs.vocabulary)} words, or [] for these, "
            f"got {len(own.vocabulary)} words" + (f", different ones are {shortened(other, 3)}" if other else "")
        )


def check_tokens(config: GeneratorConfig, spec: TokenSpec, length: int) -> None:
    """Check that a generator's configuration fits the first `length` tokens of a tokenizer.

    Raises:
        ConfigError: ids for a generator of continuous tokens or the reverse, tokens of another size, or only some of
            unordered tokens.
    """
    if (spec.vocab_size is None) == hasattr(config, "vocab_size"):
        kinds = {True: "continuous tokens", False: "ids of a vocabulary"}
        made, wanted = kinds[spec.vocab_size is None], kinds[not hasattr(config, "vocab_size")]
        raise ConfigError(f"tokenizer: expected one that makes {wanted}, as {config.name} models; this makes {made}")
    if length < spec.length and not spec.ordered:
        raise ConfigError(
            f"num_tokens: these tokens have no order, so a generator models all {spec.length}, got {length}; leave it "
            f"out, or train the tokenizer with model.num_tokens={length}"
        )
    for key, expected in (("num_tokens", length), ("token_dim", spec.dim), ("vocab_size", spec.vocab_size)):
        if getattr(config, key, expected) != expected:
            got = getattr(config, key)
            raise ConfigError(
                f"model.{key}: expected {expected} as the tokenizer makes them, got {got}"
                + (_fewer(spec, got) if key == "num_tokens" and got < spec.length else "")
            )


def _fewer(spec: TokenSpec, wanted: int) -> str:
    """How to train a generator of fewer tokens than the tokenizer makes, for an error message."""
    if spec.ordered:
        return f"; num_tokens={wanted} with model.num_tokens={wanted} models the first {wanted} tokens"
    return f"; the tokens have no order, so for fewer the tokenizer is trained with model.num_tokens={wanted}"


def check_num_classes(expected: int, images: ImageSet) -> None:
    """Raise ConfigError if a model with `expected` classes (0: without classes) has another number than the images."""
    if expected and expected != images.num_classes:
        raise ConfigError(
            f"model.num_classes: expected {images.num_classes}, the classes of the data "
            f"({shortened(images.class_names)}), got {expected}"
        )

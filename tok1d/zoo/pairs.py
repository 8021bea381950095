"""Whether a generator and a tokenizer fit together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tok1d.config.condition import text_condition
from tok1d.errors import ConfigError
from tok1d.tokenizers.base import TokenSpec


def shared_classes(config: Any, tokenizer: Any, name: str) -> Tensor | None:
    """The tokenizer's class vectors, `class_vectors() -> (num_classes, class_dim)`; None for a generator with its own.

    Raises:
        ConfigError: a tokenizer without any, or of other sizes than the generator's.
    """
    if not getattr(config, "shares_classes", False):
        return None
    if not hasattr(tokenizer, "class_vectors") or not tokenizer.spec.needs_label:
        raise ConfigError(
            f"model.class_source: shared needs a tokenizer with class vectors, {name} has none; "
            "set model.class_source=independent"
        )
    table: Tensor = tokenizer.class_vectors()
    for key, expected in zip(("num_classes", "class_dim"), table.shape):
        got = getattr(config, key)
        if got != expected:
            raise ConfigError(f"model.{key}: expected {expected} as the tokenizer's class table, got {got}")
    return table


def check_condition(config: Any, tokenizer: Any, name: str) -> None:
    """Refuse a generator that is told something else than its tokenizer's decoder wants to be told.

    Raises:
        ConfigError: a class for a decoder of captions or the reverse, or captions as another encoder reads them.
    """
    own, spec = text_condition(config), tokenizer.spec
    if own is None:
        if spec.reads_captions and config.num_classes:
            raise ConfigError(
                f"tokenizer: {name} is told captions, expected a generator with model.condition.kind=text, or "
                f"unconditional (model.num_classes=0), got one of {config.num_classes} classes"
            )
        return
    if spec.needs_label and not spec.reads_captions:
        raise ConfigError(f"model.condition.kind: {name} is told classes, expected class, got text")
    for key in ("encoder", "dim", "length") if spec.reads_captions else ():
        expected, got = (getattr(each, key) for each in (tokenizer.config.condition, own))
        if expected != got:
            raise ConfigError(f"model.condition.{key}: expected {expected} as the tokenizer's, got {got}")


def check_tokens(config: Any, spec: TokenSpec, length: int) -> None:
    """Refuse a generator's configuration that does not fit the first `length` tokens of a tokenizer.

    Raises:
        ConfigError: ids for a generator of continuous tokens or the reverse, other sizes, part of unordered tokens.
    """
    if (spec.vocab_size is None) == hasattr(config, "vocab_size"):
        kinds = {True: "continuous tokens", False: "ids of a vocabulary"}
        made, wanted = kinds[spec.vocab_size is None], kinds[not hasattr(config, "vocab_size")]
        raise ConfigError(f"tokenizer: expected one that makes {wanted}, as {config.name} models; this makes {made}")
    if length < spec.length and not spec.ordered:
        raise ConfigError(f"num_tokens: these tokens have no order, expected all {spec.length}, got {length}")
    for key, expected in (("num_tokens", length), ("token_dim", spec.dim), ("vocab_size", spec.vocab_size)):
        if getattr(config, key, expected) != expected:
            got = getattr(config, key)
            raise ConfigError(f"model.{key}: expected {expected} as the tokenizer makes them, got {got}")


def check_num_classes(config: Any, classes: int) -> None:
    """Refuse data of another number of classes than a generator of classes is for; raises ConfigError."""
    if config.num_classes and config.num_classes != classes:
        raise ConfigError(f"model.num_classes: the data have {classes} classes, got {config.num_classes}")

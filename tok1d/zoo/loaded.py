"""Annotations for the models that `zoo.store` builds and loads, which are modules with an interface."""

from __future__ import annotations

from typing import Any

from torch import nn

from tok1d.generators.base import Generator
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.card import Card


class LoadedTokenizer(nn.Module, Tokenizer):
    """A tokenizer from a model folder; for annotations only."""

    config: Any  # the tokenizer's configuration dataclass
    card: Card


class LoadedGenerator(Generator):
    """A generator from a model folder; for annotations only."""

    config: Any  # the generator's configuration dataclass
    card: Card

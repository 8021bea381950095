"""The models behind the page: loaded once, with what a tab has to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock

import torch
from torch import Tensor

from tok1d.config.classes import Classes, chosen, class_names, model_classes
from tok1d.config.condition import text_condition
from tok1d.devices import pick_device
from tok1d.errors import InputError
from tok1d.generators.causal import CausalGenerator
from tok1d.inference.captions import caption_reader
from tok1d.serve.request import MOST_TEXT
from tok1d.serve.shelf import BUNDLED, Shelf
from tok1d.zoo import store
from tok1d.zoo.checkpoints import load_model
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer


@dataclass(frozen=True)
class Facts:
    """What a tab has to know of a tokenizer, or of a generator with its tokenizer.

    Args:
        length: number of tokens.
        lowest: fewest tokens that are decoded: 0 or 1, or `length` if they have no order.
        conditioned: whether it reads a class or a caption.
        captions: whether that is a caption.
        classes: names, or numbers as text; empty for captions.
        samples: whether the decoder is sampled in steps, with guidance and a seed.
        steps: of a generator: whether it reads a number of steps.
        sequential: of a generator: whether the pictures grow token by token.
    """

    name: str
    length: int
    lowest: int
    conditioned: bool
    captions: bool
    classes: tuple[str, ...]
    samples: bool
    steps: bool = False
    sequential: bool = False


class Models:
    """The models of a shelf; each is loaded when it is first used.

    Args:
        shelf: the bundled models that are offered. Others are added with `add`.
        device: see `tok1d.devices.pick_device`.
    """

    def __init__(self, shelf: Shelf, device: str | None = None) -> None:
        self.shelf, self.device = shelf, pick_device(device)
        self._tokenizers: dict[str, LoadedTokenizer] = {}
        self._generators: dict[str, tuple[LoadedGenerator, LoadedTokenizer]] = {}
        self._lock = RLock()

    def add(self, names: Sequence[str]) -> Shelf:
        """Load models, each with its partner (a tokenizer's generator, a generator's tokenizer); returns all names.

        Raises:
            WeightsError, InputError: no such model, or another kind of model.
        """
        for name in names:
            model = load_model(name, device=self.device)
            if hasattr(model, "spec"):
                self._tokenizers[name] = model
                if partner := model.card.generator:
                    pair = store.load_pair(model.folder, device=self.device)
                    self._generators[partner if partner in store.bundled_names() else f"generator of {name}"] = pair
            elif hasattr(model, "sample"):
                tokenizer = store.tokenizer_of(model)
                model.partner = (tokenizer,)
                self._generators[name] = (model, tokenizer)
                own = model.card.tokenizer
                self._tokenizers.setdefault(own if own in store.bundled_names() else f"tokenizer of {name}", tokenizer)
            else:
                raise InputError(f"{name}: expected a tokenizer or a generator, this is the model {model.config.name}")
        self.shelf = Shelf(tuple(self._tokenizers), tuple(self._generators))
        return self.shelf

    def tokenizer(self, name: str) -> LoadedTokenizer:
        """A tokenizer of the shelf; raises InputError for another name."""
        _check_name(name, self.shelf.tokenizers)
        with self._lock:
            if name not in self._tokenizers:
                self._tokenizers[name] = store.load(BUNDLED / name, device=self.device)
            return self._tokenizers[name]

    def pair(self, name: str) -> tuple[LoadedGenerator, LoadedTokenizer]:
        """A generator of the shelf and its tokenizer; raises InputError for another name."""
        _check_name(name, self.shelf.generators)
        with self._lock:
            if name not in self._generators:
                self._generators[name] = store.load_pair(BUNDLED / name, device=self.device)
            return self._generators[name]

    def tokenizer_facts(self, name: str) -> Facts:
        """See `Facts`."""
        tokenizer = self.tokenizer(name)
        spec = tokenizer.spec
        lowest = (0 if spec.needs_label else 1) if spec.ordered else spec.length
        captions = spec.needs_label and spec.reads_captions
        classes = () if captions or not spec.needs_label else names_of(tokenizer)
        return Facts(name, spec.length, lowest, spec.needs_label, captions, classes, not spec.deterministic)

    def generator_facts(self, name: str) -> Facts:
        """See `Facts`."""
        generator, tokenizer = self.pair(name)
        captions = text_condition(generator.config) is not None
        classes = () if captions else names_of(generator)
        return Facts(
            name,
            generator.config.num_tokens,
            1,
            captions or bool(classes),
            captions,
            classes,
            not tokenizer.spec.deterministic,
            generator.kind != "categorical",
            isinstance(generator, CausalGenerator) and tokenizer.spec.ordered,
        )


def _check_name(name: object, known: Sequence[str]) -> None:
    if name not in known:
        raise InputError(f"model: expected one of {', '.join(known) or 'none'}, got {str(name)[:80]!r}")


def names_of(model: object) -> tuple[str, ...]:
    """The names of a model's classes; their numbers if it has none."""
    classes: Classes = model_classes(model)
    return tuple(class_names(model)) or tuple(map(str, range(classes.num)))


def condition_of(tokenizer: LoadedTokenizer, condition: str) -> Tensor | None:
    """The `cond` (1, ...) of a tokenizer for the text of a class or caption; None for "", or where it reads none.

    Raises:
        InputError: no such class, or no known word.
    """
    text, spec = condition.strip(), tokenizer.spec
    if not text or not spec.needs_label:
        return None
    check_text(text)
    device = next(tokenizer.parameters()).device
    if spec.reads_captions:
        config = text_condition(tokenizer.config)
        assert config is not None, "a tokenizer that reads captions has their configuration"
        reader = caption_reader(config, [text], say=False)
        if hasattr(reader, "check"):
            reader.check("caption")
        return reader([text], device)
    ids = chosen([text], model_classes(tokenizer), "class")
    if len(ids) > 1:
        raise InputError(f"class: expected one class, got {len(ids)}")
    return torch.tensor(ids, device=device)


def known_condition(tokenizer: LoadedTokenizer, text: str) -> str:
    """The text of a class or caption if the tokenizer knows it, else ""."""
    try:
        return "" if condition_of(tokenizer, text) is None else text
    except InputError:
        return ""


def check_text(text: str) -> None:
    """Raise InputError on a text that is too long, or that the library would take for the name of a file."""
    if len(text) > MOST_TEXT:
        raise InputError(f"caption: expected at most {MOST_TEXT} characters, got {len(text)}")
    if text.endswith(".txt"):
        raise InputError("caption: expected words, got the name of a file")

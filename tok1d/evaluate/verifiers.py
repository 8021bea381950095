"""Verifiers and judges of a search: classifiers, CLIP, and functions of the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tok1d.config.classes import Classes, model_classes
from tok1d.errors import InputError
from tok1d.evaluate.clip import CLIP, PROMPT, ClipNetwork, open_clip
from tok1d.evaluate.feature_networks import open_network
from tok1d.evaluate.features import INCEPTION, FrozenNetwork
from tok1d.evaluate.protocol import CLASSIFIER, has_classifier
from tok1d.images.framing import padding_of
from tok1d.inference.draw import Drawing
from tok1d.inference.request import VERIFIER_HELP
from tok1d.inference.search import Checked, Label
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.networks import parse_network
from tok1d.zoo.store import bundled_names


class ClassScore:
    """The log-probability of the sample's class by a classifier.

    Args:
        places: the classifier's class for each label.
    """

    unit = "mean log-probability of the class"

    def __init__(self, network: FrozenNetwork, places: dict[Label, int]) -> None:
        self.network, self.places, self.name = network, places, network.name

    def __call__(self, images: Tensor, labels: Sequence[Label]) -> Tensor:
        logits, places = self._logits(images, labels)
        return logits.log_softmax(1).gather(1, places[:, None])[:, 0]

    def hits(self, images: Tensor, labels: Sequence[Label]) -> Tensor:
        """Whether the class of each image is the most likely one, (N,) bool."""
        logits, places = self._logits(images, labels)
        return logits.argmax(1) == places

    def _logits(self, images: Tensor, labels: Sequence[Label]) -> tuple[Tensor, Tensor]:
        logits = self.network(images).logits
        assert logits is not None, "only networks with logits are opened"
        return logits.double(), torch.tensor([self.places[label] for label in labels], device=logits.device)


class ClipScore:
    """The cosine of an image's embedding and that of its caption, or of the prompt of its class, by CLIP."""

    unit = "mean cosine with the caption or class"

    def __init__(self, network: ClipNetwork, labels: Sequence[Label]) -> None:
        self.network, self.name = network, network.name
        self.places = {label: i for i, label in enumerate(labels)}

    def __call__(self, images: Tensor, labels: Sequence[Label]) -> Tensor:
        return self.network.cosines(images)[torch.arange(len(images)), [self.places[label] for label in labels]]


def open_verifier(text: str, drawing: Drawing, what: str = "--verifier") -> Checked:
    """The verifier that a text names, for the samples of a drawing; see `VERIFIER_HELP`.

    Args:
        text: "" is the classifier bundled for the generator's data.
        what: the option, for messages.

    Raises:
        InputError: no such verifier, or one that does not read these samples.
        Tok1dError: see `open_network`, `open_clip`.
    """
    generator, tokenizer, labels = drawing.generator, drawing.tokenizer, drawing.labels
    device, pad = next(tokenizer.parameters()).device, padding_of(tokenizer)
    if not text:
        if not has_classifier(getattr(generator, "card", Card()).data, tokenizer.config, pad=pad):
            raise InputError(f"{what}: no classifier is bundled for these images, expected {VERIFIER_HELP}")
        text = CLASSIFIER
    if text.startswith(CLIP):
        if not all(isinstance(label, str) for label in labels):
            raise InputError(f"{what}: CLIP reads captions or names of classes, these samples have none; got {text}")
        template = "{name}" if drawing.embed is not None else PROMPT
        network = open_clip(text, list(map(str, labels)), device=device, pad=pad, template=template)
        return Checked(ClipScore(network, labels))
    if text.startswith(("timm:", "model:", INCEPTION)) or text in bundled_names() or parse_network(text) is not None:
        if not drawing.num_classes:
            raise InputError(
                f"{what}: {text} scores classes, these samples have none; expected clip:MODEL for captions, or "
                "MODULE:FUNCTION"
            )
        opened = open_network(text, device=device, pad=pad)
        return Checked(ClassScore(opened, _places(opened, text, model_classes(generator), what)))
    return Checked(_function(text, what))


def _places(network: FrozenNetwork, text: str, known: Classes, what: str) -> dict[Label, int]:
    """The network's class for each label, by name, or by number where it does not know the names of its classes."""
    places = tuple(range(known.num))
    if network.classifies:
        found = network.agreement(known)
        if not found.agrees:
            raise InputError(f"{what}: {found.said}; expected a classifier of the generator's classes")
        places = found.places or places
    elif text.startswith(INCEPTION) or network.num_classes != known.num:
        raise InputError(
            f"{what}: {text} has {network.num_classes} classes, expected the generator's {known.num} in their order"
        )
    return dict(zip(known.names or range(known.num), places, strict=True))


def _function(text: str, what: str) -> Callable[..., object]:
    """A function of a module that --import loaded, or that Python finds."""
    module, colon, name = text.rpartition(":")
    found = getattr(sys.modules.get(module), name, None) if colon else None
    if not callable(found):
        raise InputError(
            f"{what}: expected {VERIFIER_HELP}; got {text!r}"
            + (f", and no module {module!r} given by --import has it" if colon else "")
        )
    return found

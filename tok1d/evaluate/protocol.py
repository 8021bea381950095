"""The fields of records that depend on the model, and the bundled classifier of a data set."""

from __future__ import annotations

from typing import Protocol

import torch

from tok1d.config.colour import WHITE, rgb_of
from tok1d.evaluate.networks import CNN
from tok1d.images.framing import Framing, framing_of
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import ModelProtocol
from tok1d.zoo.weights import HasWeights, fingerprint

CLASSIFIER = "fashion-mnist-cnn"


class ImageConfig(Protocol):
    """A configuration with the size and the channels of images."""

    @property
    def image_size(self) -> int: ...

    @property
    def channels(self) -> int: ...


def classifier_for(data: str, images: ImageConfig, device: str | torch.device, *, pad: int = 0) -> CNN | None:
    """The bundled classifier for a data set, on a device; None if there is none for images of this size.

    Args:
        images: size of the images, with the border, and number of channels.
        pad: width of the border in pixels.
    """
    return store.load(CLASSIFIER, device=device) if has_classifier(data, images, pad=pad) else None


def has_classifier(data: str, images: ImageConfig, *, pad: int = 0) -> bool:
    """Whether a classifier is bundled for a data set and images of this size; see `classifier_for`."""
    if data != "fashion_mnist" or CLASSIFIER not in store.bundled_names():
        return False
    known = store.read_config(store.resolve(CLASSIFIER))[0]
    return (images.image_size - 2 * pad, images.channels) == (known.image_size, known.channels)


def protocol_of(model: HasWeights, framing: Framing | None = None) -> ModelProtocol:
    """The fields of a record that depend on the model: weights, precision, and the crop without the border.

    Args:
        framing: of the model's images; default: from its card.
    """
    weights = getattr(model, "card", Card()).weights.split(",")[0] or None
    size = getattr(getattr(model, "config", None), "image_size", None)
    crop = None
    if size is not None:
        found = framing_of(model) if framing is None else framing
        pad = found["pad"]
        crop = f"{found['crop']} {size - 2 * pad}" + (f" in {size}, border not measured" if pad else "")
        crop += "" if rgb_of(found["background"]) == rgb_of(WHITE) else f", background {found['background']}"
    return {"weights": weights, "precision": "fp32", "weights_hash": fingerprint(model), "crop": crop}

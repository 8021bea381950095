"""What every record on a model states, and the bundled classifier of a data set."""

from __future__ import annotations

from typing import Protocol

import torch

from tok1d.evaluate.networks import CNN
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import ModelProtocol
from tok1d.zoo.weights import HasWeights, fingerprint


class ImageConfig(Protocol):
    """A configuration that states the size and channels of images."""

    @property
    def image_size(self) -> int: ...

    @property
    def channels(self) -> int: ...


def classifier_for(data: str, images: ImageConfig, device: str | torch.device, *, pad: int = 0) -> CNN | None:
    """The bundled classifier for a data set, on a device; None where there is none for such images.

    Args:
        images: their size, with a border of `pad` pixels, and channels.
    """
    if data != "fashion_mnist" or "fashion-mnist-cnn" not in store.bundled_names():
        return None
    classifier = store.load("fashion-mnist-cnn", device=device)
    known = (classifier.config.image_size, classifier.config.channels)
    return classifier if (images.image_size - 2 * pad, images.channels) == known else None


def protocol_of(model: HasWeights, *, pad: int = 0) -> ModelProtocol:
    """What every record on a model states: which weights, in which precision, and the crop without its border."""
    weights = getattr(model, "card", Card()).weights.split(",")[0] or None
    size = getattr(getattr(model, "config", None), "image_size", None)
    crop = None if size is None else f"center {size - 2 * pad}" + (f" in {size}, border not measured" if pad else "")
    return {"weights": weights, "precision": "fp32", "weights_hash": fingerprint(model), "crop": crop}

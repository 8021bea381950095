"""What every record on a model states, and the bundled classifier of a data set."""

from __future__ import annotations

from typing import Any

from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint


def judge_for(data: str, images: Any, device: Any, *, pad: int = 0) -> Any:
    """The bundled judge for a data set, on a device; None where there is none for such images.

    Args:
        images: a configuration with their `image_size` and `channels`. pad: width of their border in pixels.
    """
    if data != "fashion_mnist" or "fashion-mnist-cnn" not in store.bundled_names():
        return None
    judge = store.load("fashion-mnist-cnn", device=device)
    fits = (images.image_size - 2 * pad, images.channels) == (judge.config.image_size, judge.config.channels)
    return judge if fits else None


def protocol_of(model: Any, *, pad: int = 0) -> dict[str, Any]:
    """What every record on a model states: which weights, in which precision, which crop inside which border."""
    weights = getattr(model, "card", Card()).weights.split(",")[0] or None
    size = getattr(model.config, "image_size", None)
    crop = None if size is None else f"center {size - 2 * pad}" + (f" in {size}, border not measured" if pad else "")
    return {"weights": weights, "precision": "fp32", "weights_hash": fingerprint(model), "crop": crop}

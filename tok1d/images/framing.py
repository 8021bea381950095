"""How images become squares for a model: the framing of its training images, from the recipe of its card."""

from __future__ import annotations

from typing import Literal, TypedDict, TypeVar

from tok1d.config.colour import WHITE
from tok1d.config.load import stored_tree
from tok1d.config.recipe import DataConfig

T = TypeVar("T")


def trained_with(model: object, key: str, default: T) -> T:
    """The value of `data.KEY` in the recipe of a model's card; `default` without a card, recipe or key."""
    data = stored_tree(str(getattr(getattr(model, "card", None), "recipe", ""))).get("data")
    return data.get(key, default) if isinstance(data, dict) else default


def padding_of(model: object) -> int:
    """The black border, in pixels, of a model's training images (`data.pad` of its recipe); 0 if unknown."""
    return framing_of(model)["pad"]


class Framing(TypedDict):
    """How images that are not augmented become squares, as fields of `ImageSource` and `Transform`."""

    pad: int
    crop: Literal["center", "fit"]
    background: str


def framing_in(data: DataConfig) -> Framing:
    """The framing of a recipe's images."""
    return {"pad": data.pad, "crop": "fit" if data.crop == "fit" else "center", "background": data.background}


def framing_of(model: object) -> Framing:
    """The framing of a model's training images, from the recipe of its card; the defaults if it is unknown."""
    return {
        "pad": int(trained_with(model, "pad", 0)),
        "crop": "fit" if trained_with(model, "crop", "center") == "fit" else "center",
        "background": trained_with(model, "background", WHITE),
    }

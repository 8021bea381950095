"""Roles of parameters, so that weights can be adapted to a model of other sizes.

A module class declares the parameters whose shape depends on the number of tokens, the image size, the number of
classes, the vocabulary of captions or the image channels:

    class Encoder(nn.Module):
        roles: ClassVar[Roles] = {"queries": (TOKENS,), "positions": (GRID, TOKENS)}

A key is the name of a parameter of the module or of a submodule; the latter means all parameters below it.
`tok1d.zoo.transfer` reads the declarations. Parameters without a role have to keep their shape.

A model class may also name the submodules that only training uses, `training_only: ClassVar[tuple[str, ...]]`: a model
exported without them can still initialise a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

Role = Literal["tokens", "grid", "classes", "class_logits", "words", "pixels_in", "pixels_out", "masking", "interval"]
Roles = Mapping[str, tuple[Role, ...]]

# (1, before + num_tokens, ...): one row per token, after rows that stay.
TOKENS: Role = "tokens"
# (1, before + rows * columns + after, dim): learned positions of a square grid of patches, row by row; the module's
# `grid_margin` is (before, after), by default (0, 0).
GRID: Role = "grid"
# (num_classes, ...) or (num_classes + 1, ...) with a null class in the last row.
CLASSES: Role = "classes"
# A classifier's last layer.
CLASS_LOGITS: Role = "class_logits"
# (words, ...): one row per word of the configuration's `condition.vocabulary`.
WORDS: Role = "words"
# (out, channels, ...): a convolution that reads pixels.
PIXELS_IN: Role = "pixels_in"
# (n * channels, ...): a layer that outputs pixels, channels varying fastest.
PIXELS_OUT: Role = "pixels_out"
# A parameter that only training with masked patches has.
MASKING: Role = "masking"
# A parameter of the embedding of intervals, which is zero at first.
INTERVAL: Role = "interval"


def roles_of(model: nn.Module, name: str) -> tuple[nn.Module, tuple[Role, ...]]:
    """The roles of the parameter `name` of a model, and the innermost module that declares them."""
    path = name.split(".")
    for depth in reversed(range(len(path))):
        module, inner = model.get_submodule(".".join(path[:depth])), ".".join(path[depth:])
        declared: Roles = getattr(module, "roles", {})
        for key, roles in declared.items():
            if inner == key or inner.startswith(f"{key}."):
                return module, roles
    return model, ()

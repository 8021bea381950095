"""Training that starts from trained weights: what of them fits is taken over, what can be made to fit is, and told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.errors import ConfigError, WeightsError
from tok1d.nn.position import resample_grid
from tok1d.zoo import store
from tok1d.zoo.weights import load_state

# Parts that only training reads: a model exported without them is a start all the same.
TRAINING_ONLY = ("auxiliary.", "alignment.")
# Learned tables with one row a token, after what stands before the tokens.
_TOKEN_TABLES = ("queries", "query_positions", "token_positions", "null_tokens", "head_positions", "positions")


def init_from(model: Any, name: str) -> list[str]:
    """Give a model the weights of a trained one of its kind: a model folder, or a bundled or hub name.

    Where the two differ in the number of classes, the rows of the classes are drawn anew (the null row is kept); in
    image size, learned positions of patches are resampled bicubically; in the number of tokens, the first rows of their
    tables are kept; in channels, patch embedding and last layer do to grey images what they did. Auxiliary decoders
    that are missing there are drawn anew.

    Returns:
        What was not simply taken over, in words; also told on stderr in one line.

    Raises:
        ConfigError: another kind of model.
        WeightsError: there is none, or other weights differ in shape.
    """
    try:
        first = store.load(name)
    except WeightsError as error:
        raise WeightsError(f"init_from: {error}") from None
    if first.config.name != model.config.name:
        raise ConfigError(f"init_from: expected a {model.config.name}, {name} is a {first.config.name}")
    theirs, own, told = dict(first.state_dict()), model.state_dict(), _Notes()
    state: dict[str, Tensor] = {}
    for key in own:
        value = theirs.get(key)
        if value is not None and value.shape == own[key].shape:
            state[key] = value
        elif (fitted := _fitted(key, value, own[key], first, model, told)) is not None:
            state[key] = fitted
    left = theirs.keys() - own.keys()
    # What is neither there nor made to fit is refused by name.
    known = {**state, **{key: theirs[key] for key in theirs.keys() - state.keys() if not key.startswith(TRAINING_ONLY)}}
    load_state(model, known, f"init_from={name}")
    if any(key.startswith(TRAINING_ONLY) for key in left):
        told.add("auxiliary parts of it are left behind")
    if told:
        print(f"init_from={name}: {'; '.join(told)}", file=sys.stderr)
    return list(told)


class _Notes(list[str]):
    """What is told, each once."""

    def add(self, text: str) -> None:
        if text not in self:
            self.append(text)


def _fitted(key: str, value: Tensor | None, own: Tensor, first: Any, model: Any, told: _Notes) -> Tensor | None:
    """A weight of another shape as this model needs it; None where there is no way."""
    if key.startswith(TRAINING_ONLY):
        told.add("auxiliary parts are drawn anew")
        return own
    if value is None:
        return None
    old, new = first.config, model.config
    differs: Callable[[str], bool] = lambda name: getattr(old, name, None) != getattr(new, name, None)  # noqa: E731
    last = key.removesuffix(".weight").split(".")[-1]
    if differs("num_classes"):
        if key.removesuffix(".weight").endswith("label_embed.table") and value.shape[1:] == own.shape[1:]:
            told.add(f"{new.num_classes} classes instead of {old.num_classes}, the rows of all classes are drawn anew")
            spare = min(len(value) - old.num_classes, len(own) - new.num_classes)  # the null row
            return torch.cat([own[: len(own) - spare], value[len(value) - spare :]])
        if new.name == "cnn" and key.startswith("head."):
            told.add(f"{new.num_classes} classes instead of {old.num_classes}, the last layer is drawn anew")
            return own
    if differs("image_size") and last == "positions" and not differs("num_tokens"):
        table = _resampled(model.get_submodule(key.removesuffix(".positions")), value, own)
        if table is not None:
            told.add(f"{new.image_size} px instead of {old.image_size}, learned positions are resampled")
        return table
    tokens_only = differs("num_tokens") and not differs("image_size")
    if tokens_only and last in _TOKEN_TABLES and value.shape[2:] == own.shape[2:]:
        told.add(f"{new.num_tokens} tokens instead of {old.num_tokens}, the tables' first rows are kept")
        return torch.cat([value[:, : own.shape[1]], own[:, value.shape[1] :]], dim=1)
    if differs("channels"):
        return _other_channels(key, value, own, old.channels, new.channels, told)
    return None


def _resampled(module: nn.Module, value: Tensor, own: Tensor) -> Tensor | None:
    """Learned positions of a grid of patches, what stands around the grid kept; None where there is no square grid."""
    after = int(getattr(module, "num_tokens", 0))  # the queries of a query encoder stand in the same table
    before = 1 if after else int(getattr(module, "class_row", 0))
    sides = [int((table.shape[1] - before - after) ** 0.5) for table in (value, own)]
    if any(side**2 != table.shape[1] - before - after for side, table in zip(sides, (value, own))):
        return None
    head, grid, tail = value.split([before, sides[0] ** 2, after], dim=1)
    return torch.cat([head, resample_grid(grid, (sides[0],) * 2, (sides[1],) * 2), tail], dim=1)


def _other_channels(key: str, value: Tensor, own: Tensor, old: int, new: int, told: _Notes) -> Tensor | None:
    """Weights on pixels of other channels: grey images, repeated where there are three, give what they gave."""

    def inputs(weight: Tensor) -> Tensor:  # (out, C, ...): a sum over equal channels stays what it was
        return weight.sum(1, keepdim=True) if new == 1 else weight.repeat(1, new, *[1] * (weight.ndim - 2)) / new

    def outputs(weight: Tensor) -> Tensor:  # (rows * C, ...), channels last in a row: see `unpatchify`
        rows = weight.unflatten(0, (-1, old))
        return (rows.mean(1, keepdim=True) if new == 1 else rows.repeat(1, new, *[1] * (weight.ndim - 1))).flatten(0, 1)

    made = None
    if key.endswith(("patch_embed.proj.weight", "stem.weight")):
        made = inputs(value)
    elif key == "decoder.conv.weight":
        made = outputs(inputs(value))
    elif key.startswith(
        ("decoder.out.", "decoder.head.proj.", "decoder.proj.", "decoder.conv.", "decoder.head.convs.")
    ):
        made = outputs(value)
    if made is None or made.shape != own.shape:
        return None
    told.add(f"{new} channels instead of {old}, weights on pixels are spread over them")
    return made

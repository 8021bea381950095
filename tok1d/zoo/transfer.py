"""Initialising a model with the weights of another one of its kind, which may differ in sizes.

Module classes declare which parameters can be adapted (`tok1d.nn.roles`). This file has one function for each role.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tok1d.config.classes import class_names, model_classes
from tok1d.config.condition import text_condition
from tok1d.errors import ConfigError, WeightsError
from tok1d.nn.position import resample_grid
from tok1d.nn.roles import (
    CLASS_LOGITS,
    CLASSES,
    GRID,
    INTERVAL,
    MASKING,
    PIXELS_IN,
    PIXELS_OUT,
    TOKENS,
    WORDS,
    Role,
    roles_of,
)
from tok1d.tokenizers.latent_space import Autoencoder
from tok1d.zoo import store
from tok1d.zoo.weights import load_state

M = TypeVar("M", bound=nn.Module)


def init_from(model: nn.Module, name: str) -> list[str]:
    """Initialise a model with the weights of a trained one: a model folder, or a bundled or hub name.

    See `transfer`. The notes are also printed to stderr, in one line.

    Raises:
        ConfigError: another kind of model.
        WeightsError: there is no such model, or weights that differ in shape and cannot be adapted.
    """
    try:
        source = store.load(name)
    except WeightsError as error:
        raise WeightsError(f"init_from: {error}") from None
    expected, found = _field(model, "name"), _field(source, "name")
    if found != expected:
        raise ConfigError(f"init_from: expected a {expected}, {name} is a {found}")
    notes = transfer(source, model, f"init_from={name}")
    own, theirs = model_classes(model), model_classes(source)
    if own.num == theirs.num and bool(own.names) != bool(theirs.names):
        notes.append("rows of classes are copied by position, as the names of its classes are unknown")
    if notes:
        print(f"init_from={name}: {'; '.join(notes)}", file=sys.stderr)
    return notes


def transfer(source: nn.Module, model: nn.Module, what: str = "transfer") -> list[str]:
    """Copy the weights of `source` to `model`, adapted where the configurations differ.

    - Classes: with names on both sides the rows of classes with equal names are copied, in the order of the new model;
      further rows keep their random initialisation. Without names and with another number of classes all rows do. The
      null row is copied.
    - Words of captions: the rows of equal words are copied.
    - Image size: learned positions of patches are resampled bicubically.
    - Number of tokens: the first rows of per-token tables are copied.
    - Channels: the layers that read or output pixels are changed so that grey images give the same result.
    - Parts that only training needs (`training_only`), and the mask token, may be missing on either side.

    Args:
        what: name of the operation, at the beginning of error messages.

    Returns:
        Notes on what was not simply copied.

    Raises:
        WeightsError: weights that are missing, unexpected or of another shape and cannot be adapted.
    """
    theirs, own = dict(source.state_dict()), model.state_dict()
    adaption = _Adaption(source, model)
    state: dict[str, Tensor] = {}
    for name, weight in own.items():
        value = theirs.get(name)
        adapted = None if value is None else adaption.by_name(name, value, weight)
        if adapted is None:
            adapted = value if value is not None and value.shape == weight.shape else adaption.of(name, value, weight)
        if adapted is not None:
            state[name] = adapted
    left = {name: value for name, value in theirs.items() if name not in state}
    masking = {name for name in left if adaption.is_of_masking(name)}
    if masking:
        adaption.note("its mask token is left out, as this model is trained without masks")
    left = {name: value for name, value in left.items() if name not in masking}
    needed = {name: value for name, value in left.items() if not adaption.is_training_only(name)}
    load_state(model, {**state, **needed}, what)  # names the weights that do not fit
    if any(name not in own and name not in needed for name in left):
        adaption.note("auxiliary parts of it are left out")
    return adaption.notes


def resized(model: M, image_size: int) -> M:
    """A copy of a tokenizer for square training images of `image_size` pixels, with adapted weights (see `transfer`).

    Only training needs it: `encode` and `decode` accept other sizes without it, with the same result.

    Raises:
        ConfigError: a size that the patches do not divide.
        WeightsError: a model with weights that cannot be adapted to another image size.
    """
    config: Any = replace(cast(Any, model).config, image_size=image_size)
    config.check()
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        new = cast(M, store.build_model(config))
    transfer(model, new, "resized")
    space = getattr(model, "latent_space", None)
    if isinstance(space, Autoencoder):  # its network may be loaded already
        new.latent_space = space  # type: ignore[assignment]
    return new.to(next(model.parameters())).train(model.training)


@dataclass
class _Adaption:
    """Adapts the weights of `source` to the shapes of `model`."""

    source: nn.Module
    model: nn.Module
    notes: list[str] = field(default_factory=list)

    def by_name(self, name: str, value: Tensor, own: Tensor) -> Tensor | None:
        """A parameter of classes or words with the rows of equal names from `value`; None for others and without other
        names."""
        roles = set(roles_of(self.model, name)[1])
        named, what = (_words, "words") if WORDS in roles else (class_names, "classes")
        theirs, ours = named(self.source), named(self.model)
        if not (theirs and ours and roles & {CLASSES, CLASS_LOGITS, WORDS}):
            return None
        if theirs == ours or value.shape[1:] != own.shape[1:]:
            return None
        places = {each: j for j, each in enumerate(theirs)}
        kept = [(i, places[each]) for i, each in enumerate(ours) if each in places]
        rows = own.clone()
        if null_rows := min(len(value) - len(theirs), len(own) - len(ours)):
            rows[-null_rows:] = value[-null_rows:]
        for i, j in kept:
            rows[i] = value[j]
        rest = ", the others keep their random initialisation" * (len(kept) < len(ours))
        self.note(f"the rows of {len(kept)} of {len(ours)} {what} are copied, by name{rest}")
        return rows

    def of(self, name: str, value: Tensor | None, own: Tensor) -> Tensor | None:
        """The parameter `name` of `source` in the shape of `own`, its initial value in `model`; None if it cannot be
        adapted."""
        if self.is_training_only(name):
            return self._initial(own, "auxiliary parts keep their random initialisation")
        if value is None and self.is_of_masking(name):
            return self._initial(own, "the mask token keeps its random initialisation")
        if value is None and name.startswith("stop."):
            return self._initial(own, "the layer that predicts the end of a sequence keeps its initialisation")
        module, roles = roles_of(self.model, name)
        if value is None:
            return self._initial(own, "the embedding of intervals starts at zero") if INTERVAL in roles else None
        image_size, num_tokens = self._differs("image_size"), self._differs("num_tokens")
        if self._differs("num_classes") and CLASSES in roles and value.shape[1:] == own.shape[1:]:
            return self._classes(value, own)
        if self._differs("num_classes") and CLASS_LOGITS in roles:
            return self._initial(own, f"{self._change('num_classes', 'classes')}, the last layer is not copied")
        if image_size and not num_tokens and GRID in roles:
            return self._grid(module, value, own)
        if num_tokens and not image_size and TOKENS in roles and value.shape[2:] == own.shape[2:]:
            return self._tokens(value, own)
        if self._differs("channels"):
            return self._pixels(value, own, roles)
        return None

    def is_training_only(self, name: str) -> bool:
        """Whether a parameter belongs to a part that only training needs."""
        return any(name.startswith(f"{part}.") for part in getattr(self.model, "training_only", ()))

    def is_of_masking(self, name: str) -> bool:
        """Whether a parameter, of either model, is one that only training with masks has."""
        part, _, last = name.rpartition(".")
        try:
            module = self.model.get_submodule(part)
        except AttributeError:
            return False
        return MASKING in getattr(module, "roles", {}).get(last, ())

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _initial(self, own: Tensor, note: str) -> Tensor:
        self.note(note)
        return own

    def _classes(self, value: Tensor, own: Tensor) -> Tensor:
        """A table of classes: the null row is copied, if both have one."""
        old, new = self._sizes("num_classes")
        self.note(f"{self._change('num_classes', 'classes')}, the rows of classes keep their random initialisation")
        null_rows = min(len(value) - old, len(own) - new)
        return torch.cat([own[: len(own) - null_rows], value[len(value) - null_rows :]])

    def _grid(self, module: nn.Module, value: Tensor, own: Tensor) -> Tensor | None:
        """Learned positions of a square grid of patches; the rows around it are copied. None without a square grid."""
        before, after = getattr(module, "grid_margin", (0, 0))
        counts = [table.shape[1] - before - after for table in (value, own)]
        old, new = (math.isqrt(max(count, 0)) for count in counts)
        if [old**2, new**2] != counts:
            return None
        self.note(f"{self._change('image_size', 'px')}, learned positions are resampled")
        first, grid, last = value.split([before, old**2, after], dim=1)
        return torch.cat([first, resample_grid(grid, (old, old), (new, new)), last], dim=1)

    def _tokens(self, value: Tensor, own: Tensor) -> Tensor:
        """A table with one row per token: the first rows are copied, further ones keep their initialisation."""
        self.note(f"{self._change('num_tokens', 'tokens')}, the tables' first rows are kept")
        return torch.cat([value[:, : own.shape[1]], own[:, value.shape[1] :]], dim=1)

    def _pixels(self, value: Tensor, own: Tensor, roles: tuple[Role, ...]) -> Tensor | None:
        """A layer that reads or outputs pixels, for another number of channels."""
        if not {PIXELS_IN, PIXELS_OUT} & set(roles):
            return None
        old, new = self._sizes("channels")
        adapted = _read_channels(value, new) if PIXELS_IN in roles else value
        adapted = _output_channels(adapted, old, new) if PIXELS_OUT in roles else adapted
        if adapted.shape != own.shape:
            return None
        self.note(f"{self._change('channels', 'channels')}, weights on pixels are spread over them")
        return adapted

    def _sizes(self, key: str) -> tuple[int, int]:
        """A field of the configurations of `source` and of `model`."""
        return cast(int, _field(self.source, key)), cast(int, _field(self.model, key))

    def _differs(self, key: str) -> bool:
        return _field(self.source, key) != _field(self.model, key)

    def _change(self, key: str, unit: str) -> str:
        old, new = self._sizes(key)
        return f"{new} {unit} instead of {old}"


def _read_channels(weight: Tensor, new: int) -> Tensor:
    """(out, C, ...) -> (out, new, ...): on an image of equal channels the sum over channels stays the same."""
    if new == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, new, *[1] * (weight.ndim - 2)) / new


def _output_channels(weight: Tensor, old: int, new: int) -> Tensor:
    """(n * old, ...) -> (n * new, ...): the mean of the channels, repeated; channels vary fastest (`unpatchify`)."""
    groups = weight.unflatten(0, (-1, old))
    mean = groups.mean(1, keepdim=True) if new == 1 else groups.repeat(1, new, *[1] * (weight.ndim - 1))
    return mean.flatten(0, 1)


def _words(model: nn.Module) -> tuple[str, ...]:
    """The vocabulary of a model's captions; empty for other conditions."""
    text = text_condition(getattr(model, "config", None))
    return () if text is None else tuple(text.vocabulary)


def _field(model: nn.Module, key: str) -> object:
    """A field of a model's configuration; None if there is no such field."""
    return getattr(getattr(model, "config", None), key, None)

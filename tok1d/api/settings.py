"""Settings of a call in Python: keyword arguments for the fields of a dataclass, and key=value texts for a recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tok1d.config.fields import build
from tok1d.config.nearest import nearest
from tok1d.errors import InputError

T = TypeVar("T")


def settings_of(kind: type[T], given: Mapping[str, Any], what: str) -> T:
    """The dataclass with these fields, checked; a single value may stand for a list of one.

    Raises:
        InputError: an unknown name; the message names the nearest.
        ConfigError: a value that the field does not accept.
    """
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            near = nearest(name, list(fields))
            advice = f"did you mean {near[0]}?" if near else f"settings are {', '.join(fields)}"
            raise InputError(f"{name}: {what} has no such setting; {advice}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        many, text = (isinstance(fields[name].default, kind) for kind in (tuple, str))
        if many and isinstance(value, str | int | Path):
            value = [value]
        if text and isinstance(value, int | Sequence) and not isinstance(value, str | bool):
            value = ",".join(map(str, [value] if isinstance(value, int) else value))  # keep=[1, 4] is keep="1,4"
        values[name] = (
            str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple | range) else value
        )
    return build(kind, values)


def overrides_of(given: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Texts key=value of a recipe from keyword arguments: train={"lr": 1e-3}, or **{"train.lr": 1e-3}."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from overrides_of(value, f"{key}.")
        elif isinstance(value, str | Path):
            yield f"{key}={value}"
        else:
            yield f"{key}={json.dumps(value)}"

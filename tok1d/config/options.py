"""Options from dataclasses: copying fields under a prefix, and parsing values of the command line."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tok1d.config.fields import as_given, bounds_of, convert, within
from tok1d.config.text import type_name
from tok1d.config.written import is_null
from tok1d.errors import InputError

T = TypeVar("T")


def flag_of(name: str) -> str:
    """The command-line option of a field: "--top-k" for top_k."""
    return f"--{name.replace('_', '-')}"


def null_is(default: object, hint: type) -> Callable[[object, str], object]:
    """Return a converter of recipe values that replaces null, as older recipes have it, by the default."""
    return lambda value, key: default if is_null(value) else convert(hint, value, key)


def fields_from(cls: type[T], holder: object, prefix: str = "") -> T:
    """Make an instance of `cls` from the fields of a larger dataclass that have these names with a prefix."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: getattr(holder, prefix + name) for name in names if hasattr(holder, prefix + name)})


def adding(source: type, prefix: str, without: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """A class decorator, below `@dataclass`: adds the fields of the dataclass `source` with a prefix to their names."""

    def decorate(cls: type[T]) -> type[T]:
        hints = get_type_hints(source)
        for field in dataclasses.fields(source):
            if field.name in without:
                continue
            name = prefix + field.name
            cls.__annotations__[name] = hints[field.name]
            setattr(cls, name, dataclasses.field(default=field.default, metadata=field.metadata, kw_only=True))
        return cls

    return decorate


@dataclass(frozen=True)
class Option:
    """A field as an option: its name, the type of its values without None, its default, help, bounds and metadata."""

    name: str
    hint: Any
    default: object
    help: str
    bounds: Mapping[str, float]
    metadata: Mapping[str, object]

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal; empty for other types."""
        return get_args(self.hint) if get_origin(self.hint) is Literal else ()

    @property
    def is_axis(self) -> bool:
        """Whether `evaluate grid` takes a list of values for it."""
        return bool(self.metadata.get("axis", True))

    def value(self, text: Any, what: str = "") -> Any:
        """The checked value of what the command line gives: text, a number, or a list of repeated options.

        Args:
            what: the name in messages; default: the option as the command line writes it.

        Raises:
            InputError: not a value of this type, or out of bounds.
        """
        if text is None or (text == "" and not (isinstance(self.default, str) and self.default)):
            return self.default
        return as_given(self._value(text, what or flag_of(self.name)), self.metadata)

    def _value(self, text: Any, what: str) -> Any:
        if self.hint == tuple[float, float]:
            return parse_interval(text, what)
        if self.hint == tuple[int, ...]:
            return tuple(parse_counts(text, what, int(self.bounds.get(">=", 0))))
        if self.metadata.get("repeated"):
            return tuple(text)
        if self.hint == tuple[float, ...]:
            return tuple(parse_numbers(text, what, self.bounds))
        if self.hint == tuple[str, ...]:
            return tuple(parse_words(text, what))
        if self.choices and text not in self.choices:
            raise InputError(f"{what}: expected {' or '.join(self.choices)}, got {text!r}")
        if self.hint in (int, float):
            return self._number(text, what)
        return text

    def _number(self, text: Any, what: str) -> float:
        try:
            value = self.hint(text)
        except ValueError:
            value = math.nan
        finite = math.isfinite(value) or (value == math.inf and bool(self.metadata.get("infinite")))
        if not finite or not within(value, self.bounds):
            raise InputError(f"{what}: expected {type_name(self.hint, self.bounds)}, got {text}")
        return value

    def values(self, text: str) -> list[Any]:
        """The distinct values of a comma-separated list; intervals are written LOW:HIGH.

        Raises:
            InputError: see `value`; or an empty element.
        """
        what = flag_of(self.name)
        found: dict[Any, None] = {}
        for each in parse_words(text, what):
            if self.hint == tuple[float, float]:
                if each.count(":") != 1:
                    raise InputError(f"{what}: expected intervals such as 0:1,0.2:0.8, got {each!r}")
                each = each.replace(":", ",")
            found[self.value(each, what)] = None
        return list(found)


def options_of(cls: type) -> Iterator[Option]:
    """The fields of a dataclass as options, in order; the default is MISSING for a required field."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield Option(
            field.name,
            _without_none(hints[field.name]),
            field.default,
            field.metadata.get("help", ""),
            bounds_of(field),
            field.metadata,
        )


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    (member,) = (each for each in get_args(hint) if each is not type(None))
    return member


def parse_words(text: str, what: str) -> list[str]:
    """Split text such as "euler,heun" into distinct words; raises InputError if one is empty."""
    words = [each.strip() for each in text.split(",")]
    if not all(words):
        raise InputError(f"{what}: expected values separated by commas, got {text!r}")
    return list(dict.fromkeys(words))


def parse_counts(text: str, what: str, low: int, high: int | None = None) -> list[int]:
    """Parse text such as "1,4,8" to integers in low..high; raises InputError for anything else."""
    try:
        values = [int(each) for each in text.replace(" ", "").split(",") if each]
    except ValueError:
        raise InputError(f"{what}: expected numbers separated by commas, such as 1,4, got {text!r}") from None
    if not values:
        raise InputError(f"{what}: expected at least one number, got {text!r}")
    return check_counts(values, what, low, high)


def parse_numbers(text: str, what: str, bounds: Mapping[str, float]) -> list[float]:
    """Parse text such as "15,18.5" to finite numbers within bounds; raises InputError for anything else."""
    try:
        values = [float(each) for each in parse_words(text, what)]
    except ValueError:
        raise InputError(f"{what}: expected numbers separated by commas, such as 15,18.5, got {text!r}") from None
    for value in values:
        if not math.isfinite(value) or not within(value, bounds):
            raise InputError(f"{what}: expected {type_name(float, bounds)}, got {value:g}")
    return values


def check_counts(values: list[int], what: str, low: int, high: int | None = None) -> list[int]:
    """Return the same numbers; raises InputError if one is outside low..high (None: no limit)."""
    for value in values:
        if value < low or (high is not None and value > high):
            span = f"from {low}" if high is None else f"in {low}..{high}"
            raise InputError(f"{what}: expected numbers {span}, got {value}")
    return values


def parse_interval(text: str, what: str) -> tuple[float, float]:
    """Parse text such as "0.2,0.8" to 0 <= low < high <= 1, "" to the whole range; raises InputError for others."""
    if not text:
        return 0.0, 1.0
    try:
        low, high = (float(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"{what}: expected two numbers such as 0.2,0.8, got {text!r}") from None
    if not 0 <= low < high <= 1:
        raise InputError(f"{what}: expected LOW,HIGH with 0 <= LOW < HIGH <= 1, such as 0.2,0.8, got {text!r}")
    return low, high

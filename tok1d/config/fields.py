"""Typed fields of configuration dataclasses: declaring, building from plain mappings, checking and listing them."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tok1d.config.nearest import known_name, nearest
from tok1d.config.text import join, override_text, show, type_name
from tok1d.config.written import Written, is_null, value_as
from tok1d.errors import ConfigError
from tok1d.files import as_path, as_paths, readable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Hint = object  # a type annotation: a class, a union, a Literal, ...
Bounds = Mapping[str, float]  # comparison sign -> limit

MISSING = dataclasses.MISSING
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


def option(
    default: object = MISSING,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    was: str | None = None,
    **metadata: object,
) -> Any:  # Any as for dataclasses.field, which is assigned to fields of any type
    """A dataclass field with help and a range; without `default` it is required (and keyword-only).

    Args:
        default: may be a list, a dict, a dataclass instance (each config gets its own copy) or a dataclass type.
        ge, gt, le, lt: range of a number, or of each number of a list.
        was: the field's former name, which recipes may still use. For plain values, not for sections.
        metadata: further metadata of the field. `build(value, key)`, if given, converts the field's values. `path` is
            "path" for text that is or may be a path, "prefixed" for one in timm:NAME:FILE, "listed" for A,B.
    """
    limits = {">=": ge, ">": gt, "<=": le, "<": lt}
    bounds = {sign: limit for sign, limit in limits.items() if limit is not None}
    metadata |= {"help": help, "bounds": bounds, "was": was}
    if default is MISSING:
        return dataclasses.field(metadata=metadata, kw_only=True)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field[T]) -> object:
    """The default of a dataclass field, newly made if it has a factory; MISSING for a required field."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def bounds_of(field: dataclasses.Field[T]) -> Bounds:
    """The range of a field that `option` declared."""
    return field.metadata.get("bounds", {})


def within(value: float, bounds: Bounds) -> bool:
    """Whether a number lies in a range."""
    return all(_OPERATORS[sign](value, limit) for sign, limit in bounds.items())


def build(cls: type[T], mapping: object, key: str = "", default: T | None = None) -> T:
    """An instance of dataclass `cls` from a plain mapping found at dotted `key`, fully checked.

    Missing values come from `default` if it is given, else from the field. A field may be given by its
    former name (`was`); if both names occur, the later one counts.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, a missing required value, or an error of the
            class's own `check()`.
    """
    if not isinstance(mapping, Mapping):
        raise _mismatch(cls, mapping, key)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    given = _with_size(cls, with_current_names(cls, mapping), key)
    for name in given:
        if name not in known:
            raise _unknown_key(cls, name, key)
    hints = get_type_hints(cls)
    values: dict[str, object] = {}
    for name, field in known.items():
        fallback = getattr(default, name) if default is not None else default_of(field)
        values[name] = _build_field(field, hints[name], given.get(name, MISSING), fallback, join(key, name))
    return _checked(cls, values, key)


def _build_field(field: dataclasses.Field[T], hint: Hint, value: object, fallback: object, key: str) -> object:
    """The checked value of one field; MISSING stands for the fallback."""
    if value is MISSING:
        value = fallback
    if value is MISSING and dataclasses.is_dataclass(hint):
        value = {}  # so that the message names the first required key inside
    if value is MISSING:
        raise ConfigError(f"{key}: required; expected {type_name(hint, bounds_of(field))}, set it with {key}=VALUE")
    converter = field.metadata.get("build")
    converted = converter(value, key) if converter else convert(hint, value, key, fallback)
    try:
        converted = as_given(converted, field.metadata)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    _check_bounds(hint, converted, key, bounds_of(field))
    return converted


def as_given(value: object, metadata: Mapping[str, object]) -> object:
    """Text of a user for a field, or several: a path for the file system (`path`, see `option`), or readable text."""
    if isinstance(value, tuple | list):
        return type(value)(as_given(each, metadata) for each in value)
    if isinstance(value, Path):
        return Path(as_path(str(value)))
    if not isinstance(value, str):
        return value
    kind = metadata.get("path")
    if kind is None:
        return readable(value)
    return as_path(value) if kind == "path" else as_paths(value, {"prefixed": ":", "listed": ","}[str(kind)])


def named_sizes(cls: type) -> Mapping[str, Mapping[str, object]]:
    """The sizes that a configuration class declares, `SIZES = {"base": {"dim": 768, ...}, ...}`; empty without any.

    A size may also set fields of a section inside, `"head": {"width": 1024}`.
    """
    return getattr(cls, "SIZES", {})


def with_current_names(cls: type, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping whose keys that go by a former name of a field of `cls` go by the current one; not inside sections."""
    current = {field.metadata.get("was"): field.name for field in dataclasses.fields(cls)}
    return {current.get(name, name): value for name, value in mapping.items()}


def _with_size(cls: type, mapping: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The mapping with its `size` replaced by the fields that it sets; fields given next to `size` override them."""
    sizes = named_sizes(cls)
    if not sizes or "size" not in mapping:
        return mapping
    size = sizes[known_name(mapping["size"], sizes, join(key, "size"))]
    given = {name: value for name, value in mapping.items() if name != "size"}
    inside = {}
    for name, value in size.items():
        section = given.get(name)
        if isinstance(value, Mapping) and isinstance(section, Mapping):
            inside[name] = {**value, **section}
    return {**size, **given, **inside}


def _checked(cls: type[T], values: dict[str, object], key: str) -> T:
    """The instance, after its own `check()`, whose messages start with a key relative to the class."""
    try:
        config = cls(**values)
        check = getattr(config, "check", None)
        if check is not None:
            check()
    except ConfigError as error:
        raise ConfigError(join(key, str(error))) from None
    return config


def convert(hint: Hint, value: object, key: str, default: object = None) -> object:
    """`value` as the annotation `hint` requires, a new object for containers; raises ConfigError if it does not fit."""
    if dataclasses.is_dataclass(value):  # a default instance: built anew from itself, so that it is checked too
        value, default = {}, value
    if isinstance(value, Written) and hint is not str:
        if value.problem and str not in get_args(hint):
            raise ConfigError(f"{key}: {value.problem}")
        value = value if value.meaning is None or str in get_args(hint) else value.meaning
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, key, default)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, key, default if isinstance(default, hint) else None)
    if origin is Literal:
        for choice in get_args(hint):
            found = value_as(type(choice), value)
            if found == choice and type(found) is type(choice):
                return choice
        raise _mismatch(hint, value, key)
    if origin in (list, tuple):
        return _convert_sequence(hint, value, key)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _mismatch(hint, value, key)
        return {name: convert(get_args(hint)[1], item, join(key, name)) for name, item in value.items()}
    return _convert_scalar(hint, value, key)


def _convert_scalar(hint: Hint, value: object, key: str) -> object:
    value = value_as(hint, value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        number = _as_float(value)
        if math.isfinite(number):
            return number
    elif hint in (int, str, bool):
        if type(value) is hint:  # not isinstance, because bool is a subclass of int
            return value
    elif hint is not float:
        raise TypeError(f"{key}: no recipe can hold the annotation {hint}")
    raise _mismatch(hint, value, key)


def _convert_union(hint: Hint, value: object, key: str, default: object) -> object:
    members = [member for member in get_args(hint) if member is not type(None)]
    if is_null(value) and type(None) in get_args(hint):
        return None
    classes: list[type] = [
        member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)
    ]
    if classes and isinstance(value, Mapping):
        cls = _member_named(classes, value, key, default)
        return build(cls, value, key, default if type(default) is cls else None)
    is_container = isinstance(value, Mapping | list | tuple)
    if len(members) == 1 and is_container and get_origin(members[0]) in (list, tuple, dict):
        return convert(members[0], value, key)  # its own message names the wrong element
    for member in sorted(members, key=lambda member: member is str):  # every value is text: the last choice
        try:
            return convert(member, value, key)
        except ConfigError:
            continue
    raise _mismatch(hint, value, key)


def _member_named(classes: Sequence[type], mapping: Mapping[str, object], key: str, default: object) -> type:
    """Pick the dataclass whose default `name` equals the mapping's; without a name, the class of `default`."""
    if len(classes) == 1:
        return classes[0]
    if "name" not in mapping and type(default) in classes:
        return type(default)
    named = [(field, cls) for cls in classes for field in dataclasses.fields(cls) if field.name == "name"]
    names = {str(default_of(field)): cls for field, cls in named}
    return names[known_name(mapping.get("name"), names, join(key, "name"))]


def _convert_sequence(hint: Hint, value: object, key: str) -> object:
    kind, args = get_origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise _mismatch(hint, value, key)
    fixed = kind is tuple and args[-1] is not ...
    if fixed and len(args) != len(value):
        raise _mismatch(hint, value, key)
    hints = args if fixed else [args[0]] * len(value)
    items = (convert(one, item, f"{key}[{i}]") for i, (one, item) in enumerate(zip(hints, value)))
    return tuple(items) if kind is tuple else list(items)


def _check_bounds(hint: Hint, value: object, key: str, bounds: Bounds) -> None:
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_bounds(type(item), item, f"{key}[{i}]", bounds)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not within(value, bounds):
        raise ConfigError(f"{key}: expected {type_name(hint, bounds)}, got {show(value)}")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _mismatch(hint: Hint, value: object, key: str) -> ConfigError:
    advice = ""
    choices = [member for member in [hint, *get_args(hint)] if get_origin(member) is Literal]
    near = nearest(str(value), [str(choice) for member in choices for choice in get_args(member)])
    if near:
        advice = f"; did you mean {' or '.join(near)}?"
    elif str in (hint, *get_args(hint)) and isinstance(value, bool | int | float):
        advice = "; quote it to make it text"
    return ConfigError(f"{key or 'recipe'}: expected {type_name(hint)}, got {show(value)}{advice}")


def _unknown_key(cls: type, name: object, key: str) -> ConfigError:
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    names += ["size"] if named_sizes(cls) else []
    # Another common mistake is a correct name in the wrong section, such as `lr` for `train.lr`.
    deeper = [path for path in _paths(cls) if path.split(".")[-1] == name]
    found = [join(key, path) for path in nearest(str(name), names) or deeper]
    advice = f"did you mean {' or '.join(found)}?" if found else f"expected one of {', '.join(names)}"
    return ConfigError(f"{join(key, name)}: unknown key; {advice} (tok1d config RECIPE --fields lists all)")


def _paths(cls: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a dataclass and the dataclasses inside it."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path = join(prefix, field.name)
        yield path
        for inner in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _paths(inner, path)


def former_names(config: object, mapping: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the former names used in the mapping from which `config` was built: (dotted former key, current key)."""
    if isinstance(config, list | tuple) and isinstance(mapping, list | tuple):
        for i, (one, item) in enumerate(zip(config, mapping)):
            yield from former_names(one, item, f"{key}[{i}]")
    if not dataclasses.is_dataclass(config) or not isinstance(mapping, Mapping):
        return
    for field in dataclasses.fields(config):
        was, name = field.metadata.get("was"), field.name
        if was is not None and was in mapping:
            yield join(key, was), join(key, name)
        yield from former_names(getattr(config, name), mapping.get(name), join(key, name))


@dataclasses.dataclass(frozen=True)
class FieldRow:
    """One field of a recipe as text; `key=value` is the override that sets it to its value."""

    key: str
    type: str
    default: str
    value: str
    help: str


def rows(config: DataclassInstance, default: object = None, key: str = "") -> Iterator[FieldRow]:
    """The fields of a configuration and of those inside it, in order; defaults come from `default` if given."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        full, value = join(key, field.name), getattr(config, field.name)
        fallback = getattr(default, field.name) if default is not None else default_of(field)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from rows(value, fallback if type(fallback) is type(value) else None, full)
        else:
            text = "required" if fallback is MISSING else override_text(fallback)
            kind = type_name(hints[field.name], bounds_of(field))
            yield FieldRow(full, kind, text, override_text(value), field.metadata.get("help", ""))


def build_config(cls: type[T], mapping: Mapping[str, object]) -> T:
    """Dataclass `cls` from a plain mapping, as config.json holds it; nothing is interpolated.

    Raises:
        ConfigError: see `build`.
    """
    return build(cls, mapping)


def to_mapping(config: object) -> dict[str, Any]:
    """A configuration dataclass as plain dicts, lists and scalars, as `build_config` reads them."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected an instance of a dataclass, got {show(config)}")
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def flat(mapping: Mapping[str, T], without: Sequence[str] = (), prefix: str = "") -> dict[str, T]:
    """Flatten nested mappings to one mapping of dotted keys, without the keys in `without` and the keys inside them."""
    found: dict[str, T] = {}
    for key, value in mapping.items():
        whole = f"{prefix}{key}"
        if whole not in without:
            found |= flat(value, without, f"{whole}.") if isinstance(value, Mapping) else {whole: value}
    return found

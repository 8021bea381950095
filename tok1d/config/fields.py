"""Typed fields of configuration dataclasses: declaring, checking and listing them, with one-line errors."""

import copy
import dataclasses
import json
import math
import operator
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tok1d.errors import ConfigError

T = TypeVar("T")

MISSING = dataclasses.MISSING
_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_SCALARS: dict[Any, str] = {int: "int", float: "float", str: "str", bool: "true or false", Any: "any value"}
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "nan", "inf"}


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    **metadata: Any,
) -> Any:
    """A dataclass field with help and a range; without `default` it is required (and keyword-only).

    `default` may be a list, a dict, a dataclass instance (each config gets its own copy) or a dataclass type.
    Ranges hold for a number and for each number of a list. Further keywords become metadata of the field.
    """
    limits = {">=": ge, ">": gt, "<=": le, "<": lt}
    bounds = {sign: limit for sign, limit in limits.items() if limit is not None}
    metadata |= {"help": help, "bounds": bounds}
    if default is MISSING:
        return dataclasses.field(metadata=metadata, kw_only=True)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: type[T], mapping: Any, key: str = "", default: T | None = None) -> T:
    """An instance of dataclass `cls` from a plain mapping found at dotted `key`, fully checked.

    What the mapping leaves out comes from `default`, else from the field. Raises ConfigError on an unknown key, a
    wrong type, a value out of range, a required value left out, or what the class's own `check()` refuses.
    """
    if not isinstance(mapping, Mapping):
        raise _mismatch(cls, mapping, key)
    mapping = _sized(cls, mapping, key)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name in mapping:
        if name not in known:
            raise _unknown_key(cls, name, key)
    hints = get_type_hints(cls)
    values = {}
    for name, field in known.items():
        full = join(key, name)
        fallback = getattr(default, name) if default is not None else _default(field)
        value = mapping.get(name, fallback)
        if value is MISSING or (isinstance(value, str) and value == "???"):  # "???": OmegaConf's "to be given"
            value = fallback
        if value is MISSING and dataclasses.is_dataclass(hints[name]):
            value = {}  # so that the message names the first required key inside
        if value is MISSING:
            expected = type_name(hints[name], _bounds(field))
            raise ConfigError(f"{full}: required; expected {expected}, set it with {full}=VALUE")
        convert = field.metadata.get("build")
        values[name] = convert(value, full) if convert else _convert(hints[name], value, full, fallback)
        _check_bounds(hints[name], values[name], full, _bounds(field))
    return _checked(cls, values, key)


def named_sizes(cls: Any) -> dict[str, dict[str, Any]]:
    """The sizes a configuration class declares, `SIZES = {"base": {"dim": 768, ...}, ...}`; empty without any.

    A size may also say something of a section inside, `"head": {"width": 1024}`.
    """
    return getattr(cls, "SIZES", {})


def _sized(cls: Any, mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping with the fields its `size` stands for; fields written beside the size win."""
    sizes = named_sizes(cls)
    if not sizes or "size" not in mapping:
        return mapping
    size = known_name(mapping["size"], sizes, join(key, "size"))
    given = {name: value for name, value in mapping.items() if name != "size"}
    inside = {
        name: {**value, **given[name]}
        for name, value in sizes[size].items()
        if isinstance(value, Mapping) and isinstance(given.get(name), Mapping)
    }
    return {**sizes[size], **given, **inside}


def _checked(cls: type[T], values: dict[str, Any], key: str) -> T:
    """The instance, after its own `check()`, whose messages start with a key relative to the class."""
    try:
        config = cls(**values)
        check = getattr(config, "check", None)
        if check is not None:
            check()
    except ConfigError as error:
        raise ConfigError(join(key, str(error))) from None
    return config


def _convert(hint: Any, value: Any, key: str, default: Any = None) -> Any:
    """`value` as the annotation `hint` asks, a new object for containers; raises ConfigError if it is not one."""
    if dataclasses.is_dataclass(value):  # a default instance: built anew from itself, so that it is checked too
        value, default = {}, value
    origin = get_origin(hint)
    if hint is Any:
        return copy.deepcopy(value)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, key, default)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key, default if isinstance(default, hint) else None)  # type: ignore[arg-type]
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
        raise _mismatch(hint, value, key)
    if origin in (list, tuple):
        return _convert_sequence(hint, value, key)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _mismatch(hint, value, key)
        return {name: _convert(get_args(hint)[1], item, join(key, name)) for name, item in value.items()}
    if hint is float and type(value) in (int, float):
        number = _as_float(value)
        if math.isfinite(number):
            return number
    elif hint in (int, str, bool):
        if type(value) is hint:  # not isinstance: true is no int
            return value
    elif hint is not float:
        raise TypeError(f"{key}: no recipe can hold the annotation {hint}")
    raise _mismatch(hint, value, key)


def _convert_union(hint: Any, value: Any, key: str, default: Any) -> Any:
    members = [member for member in get_args(hint) if member is not type(None)]
    if value is None and type(None) in get_args(hint):
        return None
    classes = [member for member in members if dataclasses.is_dataclass(member)]
    if classes and isinstance(value, Mapping):
        cls = _member_named(classes, value, key, default)
        return build(cls, value, key, default if type(default) is cls else None)
    is_container = isinstance(value, Mapping | list | tuple)
    if len(members) == 1 and is_container and get_origin(members[0]) in (list, tuple, dict):
        return _convert(members[0], value, key)  # its own message names the wrong element
    for member in members:
        try:
            return _convert(member, value, key)
        except ConfigError:
            continue
    raise _mismatch(hint, value, key)


def _member_named(classes: list[Any], mapping: Mapping[str, Any], key: str, default: Any) -> Any:
    """Of several dataclasses, the one whose default `name` the mapping gives; without one, the default's."""
    if len(classes) == 1:
        return classes[0]
    if "name" not in mapping and type(default) in classes:
        return type(default)
    names = {_default(field): cls for cls in classes for field in dataclasses.fields(cls) if field.name == "name"}
    return names[known_name(mapping.get("name"), names, join(key, "name"))]


def _convert_sequence(hint: Any, value: Any, key: str) -> Any:
    kind, args = get_origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise _mismatch(hint, value, key)
    fixed = kind is tuple and args[-1] is not ...
    if fixed and len(args) != len(value):
        raise _mismatch(hint, value, key)
    hints = args if fixed else [args[0]] * len(value)
    return kind(_convert(one, item, f"{key}[{i}]") for i, (one, item) in enumerate(zip(hints, value)))


def _check_bounds(hint: Any, value: Any, key: str, bounds: dict[str, float]) -> None:
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_bounds(type(item), item, f"{key}[{i}]", bounds)
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not all(_OPERATORS[sign](value, limit) for sign, limit in bounds.items()):
        raise ConfigError(f"{key}: expected {type_name(hint, bounds)}, got {show(value)}")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _bounds(field: Any) -> dict[str, float]:
    return field.metadata.get("bounds", {})


def join(key: str, name: Any) -> str:
    """The dotted key of `name` inside `key` ("" at the top), on one line whatever it holds."""
    name = str(name) if str(name).isprintable() else ascii(name)
    return f"{key}.{name}" if key else name


def show(value: Any) -> str:
    """A value as a person would write it, on one line and at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def type_name(hint: Any, bounds: Mapping[str, float] | None = None) -> str:
    """An annotation and its range in words, such as "int >= 1 or null" or "center or random"."""
    ranged = " and ".join(f"{sign} {limit}" for sign, limit in (bounds or {}).items())
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # dict.fromkeys: several dataclasses are one "mapping of keys"
        members = dict.fromkeys(type_name(member, bounds) for member in args if member is not type(None))
        return " or ".join([*members, *(["null"] if type(None) in args else [])])
    if origin is Literal:
        return " or ".join(str(choice) for choice in args)
    if origin is list or (origin is tuple and args[-1] is ...):
        return f"list of {type_name(args[0], bounds)}"
    if origin is tuple:
        return f"[{', '.join(type_name(arg) for arg in args)}]" + (f", each {ranged}" if ranged else "")
    if origin is dict:
        return f"mapping of str to {type_name(args[1], bounds)}"
    if hint in (int, float) and ranged:
        return f"{_SCALARS[hint]} {ranged}"
    return _SCALARS.get(hint, "mapping of keys")


def _mismatch(hint: Any, value: Any, key: str) -> ConfigError:
    advice = ""
    choices = [member for member in [hint, *get_args(hint)] if get_origin(member) is Literal]
    near = nearest(str(value), [str(choice) for member in choices for choice in get_args(member)])
    if near:
        advice = f"; did you mean {' or '.join(near)}?"
    elif str in (hint, *get_args(hint)) and isinstance(value, bool | int | float):
        advice = "; quote it to make it text"
    return ConfigError(f"{key or 'recipe'}: expected {type_name(hint)}, got {show(value)}{advice}")


def _unknown_key(cls: Any, name: Any, key: str) -> ConfigError:
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    names += ["size"] if named_sizes(cls) else []
    # A right name in the wrong place (`lr` for `train.lr`) is the other common slip.
    deeper = [path for path in _paths(cls) if path.split(".")[-1] == name]
    found = [join(key, path) for path in nearest(str(name), names) or deeper]
    advice = f"did you mean {' or '.join(found)}?" if found else f"expected one of {', '.join(names)}"
    return ConfigError(f"{join(key, name)}: unknown key; {advice} (tok1d config RECIPE --fields lists all)")


def _paths(cls: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a dataclass and the dataclasses inside it."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path = join(prefix, field.name)
        yield path
        for inner in (hints[field.name], *get_args(hints[field.name])):
            if dataclasses.is_dataclass(inner):
                yield from _paths(inner, path)


def known_name(name: Any, known: Iterable[str], key: str) -> str:
    """`name` if it is one of `known`; raises ConfigError naming the nearest otherwise."""
    known = sorted(known)
    if isinstance(name, str) and name in known:
        return name
    near = nearest(str(name), known)
    advice = f"; did you mean {' or '.join(near)}?" if near else ""
    got = "nothing" if name is None else show(name)
    raise ConfigError(f"{key}: expected {' or '.join(known) or 'no name at all'}, got {got}{advice}")


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """The names fewest typing slips away from `word`, all of them on a tie, none if every one is far.

    A slip is a character added, left out, replaced or swapped with the next; one is always near, and one more
    for every three characters. Upper and lower case may count as equal.
    """
    names = list(dict.fromkeys(names))
    enough = max(1, len(word) // 3)  # a name longer or shorter by more than that is far, without counting
    names = [name for name in names if abs(len(name) - len(word)) <= enough]
    slips = [min(_slips(word, name), _slips(word.lower(), name.lower())) for name in names]
    fewest = min(slips, default=math.inf)
    return [name for name, n in zip(names, slips) if n == fewest <= enough]


def _slips(a: str, b: str) -> int:
    """Optimal string alignment distance."""
    before: Sequence[int] = []
    row = list(range(len(b) + 1))
    for i in range(1, len(a) + 1):
        last, before, row = before, row, [i]
        for j in range(1, len(b) + 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]


@dataclasses.dataclass(frozen=True)
class FieldRow:
    """One field of a recipe, ready to print; `key=value` is the override that sets it so."""

    key: str
    type: str
    default: str
    value: str
    help: str


def rows(config: Any, default: Any = None, key: str = "") -> Iterator[FieldRow]:
    """The fields of a configuration and of those inside it, in order; defaults come from `default` if given."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        full, value = join(key, field.name), getattr(config, field.name)
        fallback = getattr(default, field.name) if default is not None else _default(field)
        if dataclasses.is_dataclass(value):
            yield from rows(value, fallback if type(fallback) is type(value) else None, full)
        else:
            words = "required" if fallback is MISSING else override_text(fallback)
            kind = type_name(hints[field.name], _bounds(field))
            yield FieldRow(full, kind, words, override_text(value), field.metadata.get("help", ""))


def override_text(value: Any) -> str:
    """A plain value or dataclass as the right side of a `key=value` override, on one line."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(override_text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{override_text(k)}: {override_text(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return show(value)
    text = escape(value)
    if re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./ -]*", text) and text.lower() not in _YAML_WORDS and text[-1] != " ":
        return text
    # JSON strings are YAML strings, but YAML wants every unprintable character escaped.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def escape(value: Any) -> Any:
    r"""A plain value in which "${" is text: OmegaConf reads "\${" as "${" and halves backslashes before it."""
    if isinstance(value, Mapping):
        return {name: escape(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)
    return value


def build_config(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Dataclass `cls` from a plain mapping, as a config.json holds it; raises ConfigError as `load_recipe` does.

    Nothing is interpolated: text stays text, whoever wrote the file.
    """
    return build(cls, mapping)


def to_mapping(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain dicts, lists and scalars, as `build_config` reads them."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def flat(mapping: Mapping[str, Any], without: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted keys; the keys in `without`, and what is inside them, are left out."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        whole = f"{prefix}{key}"
        if whole not in without:
            found |= flat(value, without, f"{whole}.") if isinstance(value, Mapping) else {whole: value}
    return found

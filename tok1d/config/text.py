"""Values, types and dotted keys as text, for error messages and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Mapping
from typing import Literal, TypeVar, Union, get_args, get_origin

from tok1d.config.written import guess, override_of, plain_values
from tok1d.files import readable

T = TypeVar("T")
_SCALARS: dict[object, str] = {int: "int", float: "float", str: "str", bool: "true or false"}


def join(key: str, name: object) -> str:
    """The dotted key of `name` inside `key` ("" at the top), on one line whatever `name` is."""
    name = str(name) if str(name).isprintable() else ascii(name)
    return f"{key}.{name}" if key else name


def show(value: object) -> str:
    """Format a value on one line of at most 80 characters: null, true and false as in YAML, others by `repr`.

    The text of a recipe or an override is shown as what it looks like: 12, not '12'.
    """
    value = plain_values(readable(value) if type(value) is str else value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def type_name(hint: object, bounds: Mapping[str, float] | None = None) -> str:
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


def override_text(value: object) -> str:
    """A plain value or dataclass as the right side of a `key=value` override, on one line."""
    return override_of(value) if isinstance(value, str) else _in_list(value)


def _in_list(value: object) -> str:
    """A value inside `[...]` or `{...}`, in which text may need quotes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_in_list(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_in_list(k)}: {_in_list(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return show(value)
    if re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./ -]*", value) and guess(value) == value and value[-1] != " ":
        return value
    # A JSON string is a YAML string, except that YAML requires every unprintable character to be escaped.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))


def escape(value: T) -> T:
    r"""A plain value that a recipe file holds literally: "${" becomes "\${", backslashes before it are doubled."""
    found: object = value
    if isinstance(value, Mapping):
        found = {name: escape(item) for name, item in value.items()}
    elif isinstance(value, list | tuple):
        found = [escape(item) for item in value]
    elif isinstance(value, str):
        found = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)
    return found  # type: ignore[return-value]

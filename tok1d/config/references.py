"""References of recipes: `${key}` stands for the value of another key, `${oc.env:NAME}` for an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tok1d.config.text import join
from tok1d.config.written import Written, WrittenList, WrittenMapping
from tok1d.errors import ConfigError

_ENVIRONMENT = "oc.env:"
# Backslashes, "${", and up to the brace: two backslashes stand for one, an odd one makes "${" plain text.
_PART = re.compile(r"(\\*)\$\{(?:([^{}]*)\})?")


def resolve(tree: Mapping[str, object]) -> dict[str, object]:
    """The tree with every reference replaced by the value of its key.

    In an override, a text field keeps the text as it stands; what other fields read is `Written.meaning`.

    Raises:
        ConfigError: no such key, a circular reference, or one without a closing brace.
    """
    resolver = _Resolver(tree)
    return {name: resolver.value(value, name) for name, value in tree.items()}


class _Resolver:
    def __init__(self, tree: Mapping[str, object]) -> None:
        self.tree = tree
        self.open: list[str] = []

    def value(self, value: object, key: str) -> object:
        """A value with its references replaced."""
        if isinstance(value, dict):
            found = {name: self.value(item, join(key, name)) for name, item in value.items()}
            if not isinstance(value, WrittenMapping):
                return found
            mapping = WrittenMapping(found)
            mapping.text = value.text
            return mapping
        if isinstance(value, list):
            items = [self.value(item, f"{key}[{i}]") for i, item in enumerate(value)]
            if not isinstance(value, WrittenList):
                return items
            made = WrittenList(items)
            made.text = value.text
            return made
        if not isinstance(value, str) or "${" not in value:
            return value
        if not (isinstance(value, Written) and value.literal):
            return self.text(value, key)
        try:
            return Written.override(value, meaning=self.text(value, key))
        except ConfigError as error:
            return Written.override(value, problem=str(error).removeprefix(f"{key}: "))

    def text(self, text: str, key: str) -> object:
        """A text with its references replaced; one that is nothing but a reference is the value of the other key."""
        whole = re.fullmatch(r"\$\{([^{}]*)\}", text)
        if whole:
            return self.at(whole[1].strip(), key)

        def part(match: re.Match[str]) -> str:
            slashes, name = match[1], match[2]
            before = "\\" * (len(slashes) // 2)
            if len(slashes) % 2:
                return before + match[0][len(slashes) :]
            if name is None:
                raise _wrong(key, "a reference without its closing brace")
            found = self.at(name.strip(), key)
            if not isinstance(found, str):
                raise _wrong(key, f"{name} is not text")
            return before + found

        made = _PART.sub(part, text)
        return Written(made) if isinstance(text, Written) else made

    def at(self, name: str, key: str) -> object:
        """The value of a dotted key; `key` is where it is used, for messages."""
        if name.startswith(_ENVIRONMENT):
            variable = name.removeprefix(_ENVIRONMENT)
            if variable not in os.environ:
                raise _wrong(key, f"no environment variable {variable}")
            return Written(os.environ[variable])
        if name in self.open or name == key:
            raise _wrong(key, f"circular reference to {name}")
        found: object = self.tree
        for part in name.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise _wrong(key, f"no key {name!r}")
            found = found[part]
        self.open.append(name)
        try:
            return self.value(found, name)
        finally:
            self.open.pop()


def _wrong(key: str, why: str) -> ConfigError:
    expected = "expected ${KEY} of a key written in the recipe or its bases, or \\${ for plain text"
    return ConfigError(f"{key}: {expected} ({why})")

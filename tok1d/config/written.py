"""Values as they are written in recipes, overrides and options: a field's type decides how its text is read.

This is the only place that reads YAML, and the only one that reads the value of `key=value`. No other type is guessed
from the text: `010` is ten for a number and three characters for a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tok1d.files import readable

NULL = "null"
_INT = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[+-]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SPECIAL = {".nan", "nan", ".inf", "+.inf", "-.inf", "inf", "+inf", "-inf"}
_LINE_BREAKS = frozenset("\x85\u2028\u2029")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS_OF_YAML = ("", "~", "null", "Null", "NULL")
_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ["str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge", "value"]
}


class Written(str):
    """Text without quotes in a file, or the right side of an override; `value_as` reads it as the type of its field.

    Attributes:
        literal: the text of an override; a text field takes it as it stands, `${` included.
        meaning: of an override with `${key}`: what other fields than text read instead; None without.
        problem: why other fields than text cannot read it; "" if they can.
    """

    literal: bool = False
    meaning: object = None
    problem: str = ""

    @classmethod
    def override(cls, text: str, *, meaning: object = None, problem: str = "") -> Written:
        """The text of an override."""
        written = cls(text)
        written.literal, written.meaning, written.problem = True, meaning, problem
        return written


class WrittenMapping(dict[str, object]):
    """A mapping in an override, `{...}`, with its text."""

    text = ""


class WrittenList(list[object]):
    """A list in an override, `[...]`, with its text."""

    text = ""


def value_as(hint: object, value: object) -> object:
    """A value for a field of the type int, float, bool or str; what does not fit is returned as `guess` reads it."""
    if hint is str:
        return text_of(value)
    if not isinstance(value, Written):
        return value
    if hint is bool and value.strip().lower() in _BOOLS:
        return _BOOLS[value.strip().lower()]
    return guess(value)


def guess(text: str) -> object:
    """The number, true, false or null that a text looks like, else the text; for messages and fields of any type."""
    word = text.strip()
    if word in ("", NULL):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if _INT.fullmatch(word) and len(word) < 4000:  # Python refuses to convert longer numbers
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    return float(word.replace(".", "")) if word in _SPECIAL else str(text)


def is_null(value: object) -> bool:
    """Whether a value stands for null in a field that may be null."""
    return value is None or (isinstance(value, Written) and value in ("", NULL))


def text_of(value: object) -> object:
    """The text for a text field, as it stands, see `override_of`; values that are not text are returned as they are."""
    if isinstance(value, WrittenMapping | WrittenList):
        return value.text
    if not isinstance(value, str):
        return value
    if isinstance(value, Written) and value.literal and value[:1] == value[-1:] == '"' and len(value) > 1:
        try:
            inside = json.loads(value)
        except ValueError:
            inside = None
        if isinstance(inside, str) and _needs_quotes(inside):
            return inside
    return str(value)


def override_of(text: str) -> str:
    """The right side of the override that sets a text field to `text`.

    It is the text itself. Only an empty text, the word null, and text with line breaks or other unprintable characters
    are written as a JSON string, in double quotes.
    """
    return json.dumps(text) if _needs_quotes(text) else text


def _needs_quotes(text: str) -> bool:
    if text in ("", NULL) or not text.isprintable():
        return True
    return text_of(Written.override(text)) != text if text[:1] == text[-1:] == '"' else False


def read_override(text: str) -> object:
    """The right side of an override; a mapping or a list keeps its text, for the case that the field is text."""
    start = text.strip()[:1]
    if start not in ("{", "["):
        return Written.override(text)
    import yaml

    try:
        found = read_yaml(text, override=True)
    except (yaml.YAMLError, RecursionError) as error:
        problem = f"the value is not valid YAML, {problem_of(error)}"
        return Written.override(text, problem=problem)
    made: WrittenMapping | WrittenList = WrittenMapping(found) if isinstance(found, dict) else WrittenList(found)  # type: ignore[call-overload]
    made.text = text
    return made


def read_yaml(text: str, *, override: bool = False) -> object:
    """The value of a YAML text: mappings, lists, None for null, str for text in quotes and `Written` for other text.

    Args:
        override: the text is (a part of) an override: comments, anchors and aliases are refused, and text is literal.

    Raises:
        yaml.YAMLError: not YAML, a repeated key, a tag, or a value that contains itself.
    """
    import yaml

    if override:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise yaml.YAMLError("an anchor or alias; put & and * in quotes")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if override and node is not None and text[node.end_mark.index :].strip():
        raise yaml.YAMLError("text after the end of the value; put # in quotes")
    return None if node is None else _Reader(override).read(node)


class _Reader:
    """Converts YAML nodes; a node that is used several times (by aliases) is converted once."""

    def __init__(self, override: bool) -> None:
        self.override = override
        self.done: dict[object, object] = {}
        self.open: set[object] = set()

    def read(self, node: object) -> object:
        import yaml

        assert isinstance(node, yaml.Node)
        if node in self.done:
            return self.done[node]
        if node in self.open:
            raise _marked("a value that contains itself", node)
        if node.tag not in _TAGS:
            raise _marked(f"{node.tag} is not a supported type", node)
        self.open.add(node)
        if isinstance(node, yaml.ScalarNode):
            found = self._scalar(node.value, plain=not node.style)
        elif isinstance(node, yaml.SequenceNode):
            found = [self.read(item) for item in node.value]
        else:
            found = self._mapping(node)
        self.open.remove(node)
        self.done[node] = found
        return found

    def _scalar(self, text: str, *, plain: bool) -> object:
        if self.override:
            # A reference in a list needs quotes, because it contains braces.
            return Written.override(text) if plain or "${" in text else text
        return text if not plain else None if text in _NULLS_OF_YAML else Written(text)

    def _mapping(self, node: object) -> dict[str, object]:
        import yaml

        assert isinstance(node, yaml.MappingNode)
        found: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _marked("expected text as a key, got a list or a mapping", key)
            if key.value in found:
                raise _marked(f"found duplicate key {key.value}", key)
            found[key.value] = self.read(value)
        return found


def _marked(problem: str, node: object) -> Exception:
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=getattr(node, "start_mark", None))


def problem_of(error: Exception) -> str:
    """An error of YAML in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(getattr(error, "problem", None) or error).splitlines()[:1])


def plain_values(value: object) -> object:
    """Mappings, lists and scalars of which `Written` text is read as what it looks like, see `guess`."""
    if isinstance(value, Mapping):
        return {name: plain_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain_values(item) for item in value]
    return guess(value) if isinstance(value, Written) else value


def write_yaml(tree: Mapping[str, object]) -> str:
    """YAML of plain mappings, lists and scalars; `read_yaml` and `plain_values` of it give equal ones."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        value = readable(value)
        looks = guess(value) != value or value.strip().lower() in _BOOLS or value in _NULLS_OF_YAML
        style = "'" if looks else None
        if not _LINE_BREAKS.isdisjoint(value):
            style = '"'  # escaped: YAML folds these characters to spaces in any other style
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(dict(tree), Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)

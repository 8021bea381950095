"""The reference pages that are made from the code: Python API, commands, recipes, configuration, bundled models."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from textwrap import indent
from typing import Any, get_args, get_type_hints

import typer

import tok1d
from tok1d.cli import app as cli
from tok1d.config.fields import bounds_of, default_of, named_sizes
from tok1d.config.load import RECIPES, load_card, recipe_names
from tok1d.config.recipe import Recipe
from tok1d.config.registry import MODELS
from tok1d.config.text import override_text, type_name
from tok1d.zoo.listed import models as bundled_models

# What the public functions return, and what a model of one's own needs.
FURTHER = (
    "tok1d.api.evaluation.Evaluation",
    "tok1d.api.analyses.Analysis",
    "tok1d.api.training.Training",
    "tok1d.inference.draw.Samples",
    "tok1d.tokenizers.base.TokenSpec",
    "tok1d.config.fields.option",
    "tok1d.errors.Tok1dError",
)
CALLABLE = {"analyze": "tok1d.api.analyses", "evaluate": "tok1d.api.evaluation", "train": "tok1d.api.training"}


def text(value: object) -> str:
    """A plain text that Markdown shows as it is, also in a table."""
    escaped = re.sub(r"([\\`*_\[\]>|{}#])", r"\\\1", " ".join(str(value).split()))
    return escaped.replace("<", "&lt;")  # Python-Markdown does not know the escape of <


def code(value: object) -> str:
    """A plain text as code, also in a table."""
    escaped = re.sub(r"[^\w\s.,:;/=()-]|_", lambda match: f"&#{ord(match[0])};", str(value))
    return f"<code>{escaped}</code>" if value != "" else ""


def public_names() -> Iterator[tuple[str, str]]:
    """The functions and classes of `tok1d.__all__`, each with the dotted path of its definition."""
    for name in tok1d.__all__:
        value = getattr(tok1d, name)
        if name in CALLABLE:
            yield name, f"{CALLABLE[name]}.{name}"
        elif inspect.isfunction(value) or inspect.isclass(value):
            yield name, f"{value.__module__}.{value.__qualname__}"


def unindented_snippet(value: object) -> list[str]:
    """Of a docstring whose snippet is not indented, so that Markdown would read it as prose: the lines to show it."""
    found = re.fullmatch(r"(.*?)\n\n(>>> .*)", inspect.getdoc(value) or "", re.DOTALL)
    if found is None:
        return []
    options = ["    options:", "      show_docstring_description: false", ""]
    return [*options, found[1], "", "```pycon", found[2], "```"]


def api() -> str:
    """The page of the Python API, for mkdocstrings."""
    lines = [
        "# Python API",
        "",
        "From the docstrings. [Python](../python.md) introduces the same functions with examples.",
        "",
    ]
    for name, path in public_names():
        lines += [f"## tok1d.{name}", "", f"::: {path}", *unindented_snippet(getattr(tok1d, name)), ""]
    lines += ["## tok1d.images", "", "Pictures in and out; `tok1d.images.show` is `tok1d.show`.", ""]
    lines += ["::: tok1d.images.convert.to_tensor", "", "::: tok1d.images.convert.to_pil", ""]
    lines += ["## `tok1d.__version__`", "", f"The version as text, here {code(tok1d.__version__)}.", ""]
    lines += ["## What these return and read", ""]
    for path in FURTHER:
        lines += [f"::: {path}", ""]
    return "\n".join(lines)


def all_commands(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of the command line with its name, groups left out."""
    command = typer.main.get_command(cli.app) if command is None else command
    inside = getattr(command, "commands", None)
    if inside is None:
        yield name, command
        return
    for each, one in inside.items():
        yield from all_commands(one, f"{name} {each}".strip())


def commands() -> str:
    """The page of all commands and their options."""
    lines = [
        "# Every command and option",
        "",
        "From the code, as `tok1d COMMAND --help` prints it. [Commands](../commands.md) has an overview and the rules "
        "for values.",
        "",
    ]
    for name, command in [("", typer.main.get_command(cli.app)), *all_commands()]:
        context = command.context_class(command, info_name=f"tok1d {name}".strip())
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += [f"## tok1d {name}" if name else "## Before the command", "", code(" ".join(usage.split())), ""]
        lines += [f"{text(paragraph)}\n" for paragraph in inspect.cleandoc(command.help or "").split("\n\n")]
        records = [each.get_help_record(context) for each in command.get_params(context) if "--help" not in each.opts]
        if any(records):
            lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| {code(record[0])} | {text(record[1])} |" for record in records if record is not None]
        lines.append("")
    return "\n".join(lines)


def recipes() -> dict[str, str]:
    """The pages of the recipes: an index, and one page for each folder, by site path."""
    folders: dict[str, list[str]] = {}
    for name in recipe_names():
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    index = ["# Recipes", "", "`tok1d config RECIPE --fields` prints every setting of a recipe with its meaning.", ""]
    pages = {}
    for folder, names in folders.items():
        slug = folder.replace("/", "-")
        lines = [f"# Recipes {folder}", ""]
        index += [f"## [{folder}](recipes/{slug}.md)", "", "| recipe | about |", "|---|---|"]
        for name in names:
            card = load_card(name)
            tail = name.rpartition("/")[2]
            index.append(f"| [{text(name)}](recipes/{slug}.md#{tail}) | {text(card.about)} |")
            lines += [f"## {text(name)} {{ #{tail} }}", "", text(card.about), ""]
            facts = [(key, getattr(card, key)) for key in ("reproduces", "paper", "ours", "cost")]
            lines += [f"- {key}: {text(value)}" for key, value in facts if value]
            source = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
            block = "\n".join(["```yaml", source, "```"])
            lines += ["", '??? note "YAML"', "", indent(block, "    "), ""]
        index.append("")
        pages[f"reference/recipes/{slug}.md"] = "\n".join(lines)
    return {"reference/recipes.md": "\n".join(index), **pages}


def classes_in(hint: object) -> Iterator[type]:
    """The dataclasses in an annotation."""
    for each in (hint, *get_args(hint)):
        if isinstance(each, type) and dataclasses.is_dataclass(each):
            yield each
        elif each is not hint:
            yield from classes_in(each)


def sections() -> dict[type, list[str]]:
    """Every configuration class with the keys at which recipes have it."""
    found: dict[type, list[str]] = {}

    def add(cls: type, key: str) -> None:
        new = cls not in found
        found.setdefault(cls, []).append(key)
        if not new:
            return
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            default = default_of(field)
            inner = [*classes_in(hints[field.name]), *([type(default)] if dataclasses.is_dataclass(default) else [])]
            for one in dict.fromkeys(inner):
                add(one, f"{key}.{field.name}".lstrip("."))

    add(Recipe, "")
    for name, entry in MODELS.items():
        add(entry.config_class(), f"model (name: {name})")
    return found


def shared_path(keys: list[str]) -> str:
    """Where recipes have the fields of a class, as "train." or, below `model`, "nested."; "" if they differ."""
    places = {key.partition(")")[2].lstrip(".") if key.startswith("model (") else key for key in keys}
    return f"{place}." if len(places) == 1 and (place := places.pop()) else ""


def field_row(field: dataclasses.Field[Any], hint: object, path: str) -> str:
    """The row of one field in the table of its class, of which recipes have the fields at `path`."""
    default = default_of(field)
    inner = [*classes_in(hint), *([type(default)] if dataclasses.is_dataclass(default) else [])]
    kind = type_name(hint, bounds_of(field)) if hint is not Any else "mapping of keys"
    if inner:
        shown = ", ".join(f"[{one.__name__}](#{one.__name__})" for one in dict.fromkeys(inner))
        kind = f"{text(kind)}: {shown}"
    else:
        kind = text(kind)
    value = "required" if default is dataclasses.MISSING else code(override_text(default))
    if dataclasses.is_dataclass(default):
        value = ""
    return f"| `{path}{field.name}` | {kind} | {value} | {text(field.metadata.get('help', ''))} |"


def configuration() -> str:
    """The page of every configuration field."""
    lines = [
        "# Every configuration field",
        "",
        "From the code. A key of a recipe is the path to its field, such as `train.lr` or `model.encoder.depth`; "
        "the tables leave out `model`. "
        "`tok1d config RECIPE --fields` lists the fields of one recipe with their values.",
        "",
        "The models: " + ", ".join(f"[{n}](#{e.config_class().__name__})" for n, e in MODELS.items()) + ".",
        "",
    ]
    for cls, keys in sections().items():
        lines += [f"## {cls.__name__} {{ #{cls.__name__} }}", ""]  # CardConfig and CARDConfig are two anchors
        if any(keys):
            lines += ["At " + ", ".join(f"`{key}`" for key in dict.fromkeys(keys)) + ".", ""]
        if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
            lines += [inspect.cleandoc(cls.__doc__).split("\n\n")[0], ""]
        for name, values in named_sizes(cls).items():
            lines.append(f"- `size: {name}` sets {code(override_text(values))}")
        lines += ["", "| field | type | default | meaning |", "|---|---|---|---|"]
        hints = get_type_hints(cls)
        path, own = shared_path(keys), [field for field in dataclasses.fields(cls) if field.init]
        lines += [field_row(field, hints[field.name], path) for field in own]
        lines.append("")
    return "\n".join(lines)


def models() -> str:
    """The page of the bundled models."""
    lines = [
        "# Bundled models",
        "",
        "From the code, as `tok1d.models()` lists them. `tok1d.load(NAME)` and all commands take these names.",
        "",
        "| name | kind | about |",
        "|---|---|---|",
        *(f"| `{each.name}` | {each.kind} | {text(each.about)} |" for each in bundled_models()),
        "",
    ]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """All generated pages, by site path."""
    single: dict[str, Callable[[], str]] = {
        "reference/api.md": api,
        "reference/commands.md": commands,
        "reference/configuration.md": configuration,
        "reference/models.md": models,
    }
    return {**{path: make() for path, make in single.items()}, **recipes()}

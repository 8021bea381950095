"""What a generator's recipe takes from the training of its tokenizer: the images' size, channels and framing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from tok1d.config.recipe import DataConfig
from tok1d.config.written import is_null, plain_values
from tok1d.files import as_path

Tree = dict[str, object]

SAME = ("image_size", "channels", "pad", "background")  # keys of `data` that a generator and its tokenizer share
_DEFAULTS = {field.name: field.default for field in fields(DataConfig)}


def with_tokenizers_images(tree: Tree, given: Tree, read: Callable[[str], Tree]) -> tuple[Tree, list[str]]:
    """The keys of a generator's recipe with size and framing of the images as in the training of its tokenizer.

    The tokenizer is the folder of a model or run; of other names, and of keys in an override, nothing is taken. Of
    `data.crop` only "fit" or not is shared.

    Args:
        tree: the recipe with its overrides.
        given: the overrides alone.
        read: the keys of a stored recipe; {} for other text.

    Returns:
        The keys, and a line for people if any changed.
    """
    if plain_values(tree.get("kind")) != "generator" or is_null(tree.get("tokenizer")):
        return tree, []
    name = str(plain_values(tree["tokenizer"]))
    theirs = _section(read(_trained_recipe(Path(as_path(name)))).get("data"))
    ours, named = _section(tree.get("data")), _section(given.get("data"))
    mine = {key: plain_values(ours.get(key, _DEFAULTS[key])) for key in (*SAME, "crop")}
    wanted = {key: theirs[key] for key in SAME if key in theirs}
    if ("crop" in theirs) and (theirs["crop"] == "fit") != (mine["crop"] == "fit"):
        wanted["crop"] = "fit" if theirs["crop"] == "fit" else "center"
    new = {key: value for key, value in wanted.items() if key not in named and value != mine[key]}
    if not new:
        return tree, []
    said = ", ".join(f"data.{key}={value}" for key, value in new.items())
    return {**tree, "data": {**ours, **new}}, [f"{said}: as in the training of the tokenizer {name}"]


def _section(found: object) -> Tree:
    return dict(found) if isinstance(found, dict) else {}


def _trained_recipe(folder: Path) -> str:
    """The text of the recipe that trained the model in a folder of a model or run; "" if there is none."""
    try:
        for path in (folder / "config.json", folder / "model" / "config.json"):
            if path.is_file():
                return str(json.loads(path.read_text(encoding="utf-8"))["card"]["recipe"])
        run = folder.parent if folder.name == "model" else folder  # before its end it has no model
        if (run / "config.yaml").is_file():
            return (run / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError):  # what loads the model reports it
        pass
    return ""

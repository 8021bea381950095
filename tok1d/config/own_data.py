"""What overrides of a recipe's data imply for its other keys: data set, image size, channels and classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tok1d.config import registry
from tok1d.config.written import is_null, plain_values

Tree = dict[str, object]

SHARED = ("image_size", "channels")  # keys of `data` that a tokenizer's or classifier's model has, too
NAMED = ("fashion_mnist", "emoji")  # data sets that need no root


def with_implied(tree: Tree, given: Tree) -> tuple[Tree, list[str]]:
    """The keys of a recipe with those that its overrides imply, and a line for people about each.

    - data.root without data.name: a folder that is not the recipe's data set is one of the user's own, in colour.
    - data.image_size or data.channels without the same key of model, or the reverse: both have the one value.
    - own data without model.num_classes: the number of classes is that of the data (classes_from_data).

    Args:
        tree: the recipe with its overrides.
        given: the overrides alone.
    """
    data, model = _section(tree, "data"), _section(tree, "model")
    ours, theirs = _section(given, "data"), _section(given, "model")
    notes, new = [], dict(data)
    before = str(plain_values(data.get("name", NAMED[0])))
    unnamed = ("root" in ours and "name" not in ours) or ("root" in data and "name" not in data)
    if unnamed and before in NAMED and (kind := _own_kind(before, data["root"])):
        new["name"] = kind
        if "channels" not in (*ours, *theirs) and "root" in ours:
            new["channels"] = ours["channels"] = 3
        notes.append(f"data.root={plain_values(data['root'])}: not {before}, read as data.name={kind}")
    name = str(plain_values(new.get("name", NAMED[0])))
    defaults = _defaults(model.get("name")) if given else {}
    follows: Tree = {}
    for key in SHARED if plain_values(tree.get("kind")) != "generator" else ():
        # A value that is no positive number is left where it was given, so that its error names that key.
        if key in ours and key not in theirs and (key in model or key in defaults) and _is_positive(ours[key]):
            follows[key] = ours[key]
        elif key in theirs and key not in ours and _is_positive(theirs[key]):
            new[key] = theirs[key]
    implied = {**tree, "data": new}
    if follows:
        implied["model"] = {**model, **follows}
    own = name not in NAMED and ({"root", "name"} & ours.keys())
    counted = plain_values(model.get("num_classes", defaults.get("num_classes"))) not in (None, 0, dataclasses.MISSING)
    if own and counted and "num_classes" not in theirs and "classes_from_data" not in given:
        implied["classes_from_data"] = True
    return implied, notes


def _is_positive(value: object) -> bool:
    plain = plain_values(value)
    return isinstance(plain, int) and not isinstance(plain, bool) and plain > 0


def _section(tree: Tree, key: str) -> Tree:
    found = tree.get(key)
    return dict(found) if isinstance(found, dict) else {}


def _defaults(model: object) -> Tree:
    """The fields of the configuration of a registered model, with their defaults; MISSING for those without."""
    entry = registry.MODELS.get(str(plain_values(model)))
    return {} if entry is None else {field.name: field.default for field in dataclasses.fields(entry.config_class())}


def _own_kind(name: str, root: object) -> str:
    """The data.name of a user's own folder or shards; "" for a place that is missing or that the data set reads."""
    text = "" if is_null(root) else str(plain_values(root))
    if not text or not (Path(text).is_dir() or text.lower().endswith(".tar")):
        return ""
    if name == "fashion_mnist" and registry.attribute("tok1d.data.fashion_mnist:has_files")(text):
        return ""
    return str(registry.attribute("tok1d.data.images:kind_of")(text))

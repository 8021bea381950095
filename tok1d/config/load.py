"""Recipes: YAML files and `key=value` overrides, merged and checked into typed dataclasses."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tok1d.config.fields import FieldRow, build, former_names, rows, to_mapping
from tok1d.config.nearest import nearest
from tok1d.config.of_tokenizer import with_tokenizers_images
from tok1d.config.optim import with_short_warmup
from tok1d.config.own_data import with_implied
from tok1d.config.recipe import CardConfig, Recipe
from tok1d.config.references import resolve
from tok1d.config.text import escape, show
from tok1d.config.written import is_null, plain_values, problem_of, read_override, read_yaml, write_yaml
from tok1d.errors import ConfigError, reason_of
from tok1d.files import as_path

RECIPES = Path(__file__).parents[1] / "recipes"
SIZED = ("dim", "depth", "heads")  # the keys that a named size sets

Tree = dict[str, object]  # a recipe's nested keys


def recipe_names() -> list[str]:
    """Names of the recipes in the package, such as "fashion_mnist/demo_tokenizer", sorted."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by its name, YAML file or run folder, with `key=value` overrides; `out` and `cache` are filled in.

    A recipe may inherit: `base: NAME_OR_PATH` reads that one first (without its `out`), a path is relative to the
    file. `${data.image_size}` stands for the value of another key that is written in the recipe or its bases,
    `${oc.env:NAME}` for an environment variable.
    `size: base` in a section whose class has `SIZES` sets dim, depth and heads. Keys written next to it override
    it; a `size` in an inheriting recipe or an override replaces all three.
    Overrides of the data imply other keys, see `tok1d.config.own_data.with_implied`; a tokenizer the images of its
    generator, see `with_tokenizers_images`; `train.steps` a shorter warm-up, see `with_short_warmup`.
    A key's former name works, too; a line on stderr gives the new one.
    The type of a field decides how its text is read, in files and overrides alike: see `tok1d.config.written`. The
    text of an override is literal. The same override twice: the last one counts. A key twice in a file is an error.

    Raises:
        ConfigError: not a valid recipe; one line with the full key.
    """
    given = _parse_overrides(overrides)
    tree, notes = with_implied(_merge(_read(name_or_path), given), given)
    tree, of_tokenizer = with_tokenizers_images(tree, given, stored_tree)
    tree, of_warmup = with_short_warmup(tree, given)
    for note in notes + of_tokenizer + of_warmup:
        print(note, file=sys.stderr)
    tree = resolve(tree)
    if name_or_path not in recipe_names() and _is_run(name_or_path) and "out" not in given:
        tree["out"] = as_path(name_or_path)
    if tree.get("out") in (None, ""):
        label = name_or_path if name_or_path in recipe_names() else Path(name_or_path).stem
        tree["out"] = f"runs/{label}"
    if tree.get("kind") == "generator" and is_null(tree.get("cache")):
        tree["cache"] = f"{tree['out']}/cache"
    recipe = build(Recipe, tree)
    for was, name in former_names(recipe, tree):
        print(f"warning: the recipe key {was} is now called {name}", file=sys.stderr)
    return recipe


def stored_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `to_yaml` wrote into a file (a run's config.yaml), after overrides.

    Raises:
        ConfigError: as `load_recipe`, or the file cannot be read.
    """
    return recipe_from_text(_read_text(path), str(path), overrides)


def recipe_from_text(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `to_yaml` wrote as `text`, after overrides; raises ConfigError as `load_recipe`, for `source`."""
    return build(Recipe, resolve(_merge(parse_tree(text, source), _parse_overrides(overrides))))


def load_card(name_or_path: str) -> CardConfig:
    """The card of a recipe; the model is not imported and the other keys are not checked."""
    return build(CardConfig, resolve(_read(name_or_path)).get("card", {}), "card")


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML, without inheritance or references; `load_recipe` of it gives an equal recipe."""
    return write_yaml(escape(to_mapping(recipe)))


def stored_tree(text: str) -> Tree:
    """The keys and plain values of a recipe that `to_yaml` wrote, without checks; {} for other text."""
    try:
        found = plain_values(resolve(parse_tree(text, "recipe")))
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def field_rows(recipe: Recipe) -> list[FieldRow]:
    """Every field of a recipe in order, with type and range, default, value and help as text."""
    return list(rows(recipe))


def _locate(name: str, folder: Path) -> Path:
    """The file of a packaged recipe, or a path relative to `folder`."""
    names, path = recipe_names(), folder / as_path(name)
    if name in names:
        return RECIPES / f"{name}.yaml"
    if _is_run(path):
        return path / "config.yaml"
    if os.path.isfile(path):  # unlike Path.is_file, False for names that no file can have
        return path
    tail = name.removesuffix(".yaml").split("/")[-1]
    near = nearest(name.removesuffix(".yaml"), names)
    near = near or [known for known in names if nearest(tail, [known.split("/")[-1]])]
    advice = f"; did you mean {' or '.join(near)}?" if near else ""
    shown = show(name)
    if os.path.isdir(path):
        raise ConfigError(
            f"recipe {name}: expected a YAML file, a recipe's name or a run's folder, got another folder{advice}"
        )
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"recipe {shown}: no such file{advice or '; tok1d recipes lists the named ones'}")
    raise ConfigError(f"recipe {shown}: unknown name and no such file{advice or '; tok1d recipes lists them'}")


def _is_run(place: str | Path) -> bool:
    """Whether a place is the folder of a run, by its config.yaml."""
    return os.path.isfile(os.path.join(as_path(str(place)), "config.yaml"))


def _read(name: str, folder: Path = Path(), above: tuple[Path, ...] = ()) -> Tree:
    """A recipe's own keys over those of its bases, unresolved; `above` are the files that inherit from it."""
    path = _locate(name, folder)
    chain = (*above, path.resolve())
    if chain[-1] in above:
        cycle = chain[chain.index(chain[-1]) :]
        raise ConfigError(f"base: circular inheritance, {' -> '.join(map(str, cycle))}")
    tree = parse_tree(_read_text(path), str(path))
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"base: expected a recipe's name or file, got {show(base)}")
    inherited = _read(str(base), path.parent, chain)
    inherited.pop("out", None)  # else two recipes would train into one folder
    return _merge(inherited, tree)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the recipe, {reason}") from None


def parse_tree(text: str, source: str) -> Tree:
    """The keys of a YAML text, see `read_yaml`; raises ConfigError, naming `source`, for anything else."""
    import yaml

    try:
        found = read_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ConfigError(f"{source}, line {line}: not valid YAML, {problem_of(error)}") from None
    if not isinstance(found, dict | None):
        raise ConfigError(f"{source}: expected a mapping of keys, got {show(found)}")
    return found or {}


def _parse_overrides(overrides: Sequence[str]) -> Tree:
    tree: Tree = {}
    # Sizes first: a width or depth among the overrides wins over a size, in either order.
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".size")):
        key, equals, value = override.partition("=")
        shown, key = show(override), key.strip()
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {shown}: expected key=value, such as train.lr=1e-4")
        if "[" in key:
            raise ConfigError(f"override {shown}: expected a whole list, such as evaluate.keep=[1,2,4]")
        sections, _, last = key.rpartition(".")
        branch: Tree = {last: read_override(value)}
        for name in reversed(sections.split(".") if sections else []):
            branch = {name: branch}
        tree = _merge(tree, branch)
    return tree


def _merge(below: Tree, above: Tree, in_model: bool = False) -> Tree:
    """`above` over `below`: mappings merge, other values are replaced; the keys of `above` come last.

    Inside `model`, a section with another `name` replaces the whole section: its keys belong to another class. A
    section with a `size` drops the keys below that a size sets.
    """
    resized = in_model and isinstance(plain_values(above.get("size")), str)
    merged = {name: value for name, value in below.items() if not (resized and name in SIZED)}
    for name, value in above.items():
        old = merged.pop(name, None)  # put last: of a key and its former name, the later one counts
        inside = in_model or name == "model"
        if isinstance(old, dict) and isinstance(value, dict):
            other_class = inside and "name" in old and value.get("name", old["name"]) != old["name"]
            merged[name] = value if other_class else _merge(old, value, inside)
        else:
            merged[name] = value
    return merged

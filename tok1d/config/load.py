"""Recipes: YAML files and `key=value` overrides, merged by OmegaConf and checked into typed dataclasses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tok1d.config import fields as config_fields
from tok1d.config.fields import FieldRow, to_mapping
from tok1d.config.recipe import CardConfig, Recipe
from tok1d.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "recipes"
SIZED = ("dim", "depth", "heads")  # what a named size stands for
RENAMED = {"start": "init_from"}  # keys at the top as they were once called


def recipe_names() -> list[str]:
    """Names of the recipes in the package, such as "fashion_mnist/demo_tokenizer", sorted."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or YAML file after `key=value` overrides, with `out` (and `cache`) filled in.

    A recipe may inherit: `base: NAME_OR_PATH` reads that one first (without its `out`), a path being relative to
    the file. `${data.image_size}` stands for the value of another key that is written in the recipe or its bases.
    `size: base` in a section whose class has `SIZES` stands for dim, depth and heads; these win where written beside
    it, and a size written later (in the inheriting recipe, in an override) replaces them all.
    Raises ConfigError, in one line with the full key, for whatever is not a valid recipe.
    """
    tree = _merge(_read(name_or_path), _parse_overrides(overrides))
    tree = _resolve(tree)
    if tree.get("out") in (None, ""):
        label = name_or_path if name_or_path in recipe_names() else Path(name_or_path).stem
        tree["out"] = f"runs/{label}"
    if tree.get("kind") == "generator" and tree.get("cache") is None:
        tree["cache"] = f"{tree['out']}/cache"
    return config_fields.build(Recipe, tree)


def recipe_from_text(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `to_yaml` wrote as `text`, after overrides; raises ConfigError as `load_recipe`, for `source`."""
    return config_fields.build(Recipe, _resolve(_merge(_parse(text, source), _parse_overrides(overrides))))


def load_card(name_or_path: str) -> CardConfig:
    """Only the card of a recipe: neither imports its model nor checks the rest."""
    return config_fields.build(CardConfig, _resolve(_read(name_or_path)).get("card", {}), "card")


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML, nothing inherited or interpolated; `load_recipe` of it gives an equal recipe."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config_fields.escape(to_mapping(recipe))))


def field_rows(recipe: Recipe) -> list[FieldRow]:
    """Every field of a recipe in order, with type and range, default, value and help as text."""
    return list(config_fields.rows(recipe))


def _locate(name: str, folder: Path) -> Path:
    """The file of a packaged recipe, or a path relative to `folder`."""
    names, path = recipe_names(), folder / name
    if name in names:
        return RECIPES / f"{name}.yaml"
    if os.path.isfile(path):  # unlike Path.is_file, says no to names no file can have
        return path
    tail = name.removesuffix(".yaml").split("/")[-1]
    near = config_fields.nearest(name.removesuffix(".yaml"), names)
    near = near or [known for known in names if config_fields.nearest(tail, [known.split("/")[-1]])]
    advice = f"; did you mean {' or '.join(near)}?" if near else ""
    shown = config_fields.show(name)
    if os.path.isdir(path):
        raise ConfigError(f"recipe {name}: expected a YAML file or a recipe's name, got a folder{advice}")
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"recipe {shown}: no such file{advice or '; tok1d recipes lists the named ones'}")
    raise ConfigError(f"recipe {shown}: unknown name and no such file{advice or '; tok1d recipes lists them'}")


def _read(name: str, folder: Path = Path(), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's own keys over those of its bases, unresolved; `above` are the files that inherit from it."""
    path = _locate(name, folder)
    chain = (*above, path.resolve())
    if chain[-1] in above:
        cycle = chain[chain.index(chain[-1]) :]
        raise ConfigError(f"base: recipes inherit in a circle, {' -> '.join(map(str, cycle))}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the recipe, {reason}") from None
    tree = _parse(text, str(path))
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"base: expected a recipe's name or file, got {config_fields.show(base)}")
    inherited = _read(base, path.parent, chain)
    inherited.pop("out", None)  # else two recipes would train into one folder
    return _merge(inherited, tree)


def _parse(text: str, source: str) -> dict[str, Any]:
    """YAML text with OmegaConf's reading of it (1e-4 is a number, keys do not repeat), unresolved."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException

    tree: Any = None
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else text.count("\n", 0, getattr(error, "position", 0)) + 1
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{source}, line {line}: not valid YAML, {problem}") from None
    except GrammarParseError as error:
        raise _interpolation_error(error.full_key, error) from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from None
    except AssertionError:  # how OmegaConf meets a lone number
        pass
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping of keys, got {config_fields.show(tree or text)}")
    return _renamed(tree)


def _renamed(tree: dict[str, Any]) -> dict[str, Any]:
    """Keys as they are called now; recipes and cards of earlier versions say `start` for `init_from`."""
    return {RENAMED.get(key, key): value for key, value in tree.items()}


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    # Sizes first: a width or depth given on the same line wins over its size, in whichever order.
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".size")):
        key, equals, value = override.partition("=")
        shown, key = config_fields.show(override), key.strip()
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {shown}: expected key=value, such as train.lr=1e-4")
        if "[" in key:
            raise ConfigError(f"override {shown}: expected a whole list, such as evaluate.keep=[1,2,4]")
        branch: Any = _parse_value(value, key, shown)
        for name in reversed(key.split(".")):
            branch = {name: branch}
        tree = _merge(tree, _renamed(branch))
    return tree


def _parse_value(value: str, key: str, shown: str) -> Any:
    """The right side of an override as OmegaConf's dotlist reads it."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)["value"]  # type: ignore
    except GrammarParseError as error:
        raise _interpolation_error(key, error) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or _first_line(error)
        raise ConfigError(f"override {shown}: the value is not valid YAML, {problem}; quote it?") from None


def _merge(below: dict[str, Any], above: dict[str, Any], in_model: bool = False) -> dict[str, Any]:
    """`above` over `below`: mappings merge, all else replaces.

    Inside `model`, a section given another `name` starts afresh: the keys of one model mean nothing to another.
    A section given a `size` forgets the numbers below that a size stands for.
    """
    resized = in_model and isinstance(above.get("size"), str)
    merged = {name: value for name, value in below.items() if not (resized and name in SIZED)}
    for name, value in above.items():
        old = merged.get(name)
        inside = in_model or name == "model"
        if isinstance(old, dict) and isinstance(value, dict):
            renamed = inside and "name" in old and value.get("name", old["name"]) != old["name"]
            merged[name] = value if renamed else _merge(old, value, inside)
        else:
            merged[name] = value
    return merged


def _resolve(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with every `${key}` replaced by that key's value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise _interpolation_error(getattr(error, "full_key", None), error) from None


def _interpolation_error(key: str | None, error: Exception) -> ConfigError:
    expected = "expected ${KEY} of a key written in the recipe or its bases, or \\${ for plain text"
    return ConfigError(f"{key or 'recipe'}: {expected} ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

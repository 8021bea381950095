"""The settings in which two recipes differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING
from typing import Any, get_type_hints

from tok1d.config.fields import default_of, flat, to_mapping, with_current_names
from tok1d.config.recipe import Recipe
from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError

GENERIC_DATA = ("folder", "webdataset", "huggingface")  # values of data.name that do not identify a data set
# Keys that decide where and when something is written, not what is computed.
FREE: tuple[str, ...] = ("out", "card", "cache", "evaluate", "data.root", "train.log_every", "train.save_every")
FREE += ("train.preview_every", "train.evaluate_every", "train.proxies_every", "train.peak_tflops", "train.tracker")
FREE += ("train.shard", "train.keep_last", "train.keep_every", "data.workers", "data.on_broken")


Settings = dict[str, Any]  # nested mappings as YAML holds them
Differences = dict[str, tuple[object, object]]  # key -> (value, the reference's value)


def differences(recipe: Mapping[str, object], reference: Mapping[str, object]) -> Differences:
    """Settings of a recipe that differ from the reference's: key -> (value, the reference's value).

    A key that only one of them has, because it was added later, has its default in the other. One without a default
    counts unless its value means off (0, false, null, none, empty).
    """
    a, b = settings_of(recipe), settings_of(reference)
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not (_off(a.get(key)) and _off(b.get(key)) and not (key in a and key in b))
    }


def _plain(value: object) -> object:
    """A default as a recipe's mapping has it."""
    return to_mapping(value) if dataclasses.is_dataclass(value) else value


def settings_of(recipe: Mapping[str, object]) -> dict[str, object]:
    """The settings of a recipe that decide what it computes, by dotted key, with defaults for those it lacks."""
    current = with_current_names(Recipe, recipe)
    for name, hint in get_type_hints(Recipe).items():
        given = current.get(name, {})
        if dataclasses.is_dataclass(hint) and isinstance(given, Mapping):
            defaults = {each.name: default_of(each) for each in dataclasses.fields(hint)}
            current[name] = {key: _plain(value) for key, value in defaults.items() if value is not MISSING} | dict(
                given
            )
    for section in ("perceptual", "adversarial"):
        given = current.get(section)
        if isinstance(given, Mapping):
            cls = next(default_of(each) for each in dataclasses.fields(Recipe) if each.name == section)
            current[section] = to_mapping(cls) | dict(given)
    with suppress(ConfigError):  # a model that is not imported here
        current["model"] = to_mapping(build_model_config(current.get("model")))
    return flat(current, FREE)


def _off(value: object) -> bool:
    return not value or value == "none"

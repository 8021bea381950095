"""A model out of a run's checkpoint, averaged or raw, to be measured while or after it trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tok1d.config.load import load_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.errors import WeightsError
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import load_state

_NAME = re.compile(r"(?P<path>.+\.pt)(?::(?P<weights>ema|raw))?")


def is_checkpoint(name: str) -> bool:
    """Whether a model is named RUN/checkpoints/step-00001000.pt, with ":raw" or ":ema" after it or not."""
    return _NAME.fullmatch(name) is not None


def load_checkpoint(name: str, *, device: Any = "cpu") -> Any:
    """The model of a checkpoint in eval mode, with the card that says so; ":raw" takes the weights that were stepped.

    Raises:
        WeightsError: no checkpoint of a run there, or none with averages.
    """
    recipe, found = _recipe_of(name), _NAME.fullmatch(name)
    assert found is not None
    path = Path(found["path"])
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights, averages = state["model"], state["ema"]
    except Exception as error:  # whatever torch makes of a damaged file
        raise WeightsError(f"{path}: no checkpoint of a run ({' '.join(str(error).split())[:120]})") from None
    kind = found["weights"] or ("ema" if averages else "raw")
    if kind == "ema" and not averages:
        raise WeightsError(f"{name}: this run averages no weights (train.ema is 0); expected {path}:raw")
    model: Any = store.build_model(recipe.model)
    load_state(model, {**weights, **(averages if kind == "ema" else {})}, str(path))
    model.card = Card(
        recipe=to_yaml(recipe),
        seed=recipe.seed,
        data=recipe.data.name,
        weights=kind,
        trained={"steps": state.get("step")},
        tokenizer=recipe.tokenizer or "",
    )
    model.folder = path.parents[1]
    return model.to(device).eval()


def load_model(name: str, *, device: Any = "cpu") -> Any:
    """A model by any name, or of a checkpoint."""
    return load_checkpoint(name, device=device) if is_checkpoint(name) else store.load(name, device=device)


def load_pair(name: str, *, device: Any = "cpu") -> tuple[Any, Any]:
    """A generator, by any name or of a checkpoint, and the tokenizer whose tokens it makes."""
    if not is_checkpoint(name):
        return store.load_pair(name, device=device)
    generator = load_checkpoint(name, device=device)
    if not hasattr(generator, "sample"):
        raise WeightsError(f"{name}: expected a generator, this is a {generator.config.name}")
    return generator, store.load(generator.card.tokenizer, device=device)


def kept_checkpoints(name: str) -> list[str]:
    """The checkpoints that a run still has, oldest first, by the name of its folder RUN or of its model RUN/model."""
    run = Path(name)
    for folder in (run, run.parent) if run.name == "model" else (run,):
        found = [path for path in folder.glob("checkpoints/step-*.pt") if path.stem.removeprefix("step-").isdecimal()]
        if found:
            return [str(path) for path in sorted(found)]
    return []


def is_generator(name: str) -> bool:
    """Whether a model by any name, or of a checkpoint, is a generator, or else a tokenizer; no weights are read.

    Raises:
        WeightsError: no such model, or one of neither kind.
    """
    config = _recipe_of(name).model if is_checkpoint(name) else store.read_config(store.resolve(name))[0]
    kind = store.model_class(config)
    if not hasattr(kind, "sample") and not hasattr(kind, "encode"):
        raise WeightsError(f"{name}: expected a tokenizer or a generator, this is a {config.name}")
    return hasattr(kind, "sample")


def _recipe_of(name: str) -> Recipe:
    """The recipe of a checkpoint's run."""
    found = _NAME.fullmatch(name)
    if found is None or not Path(found["path"]).is_file():
        raise WeightsError(f"{name}: expected a run's checkpoint, RUN/checkpoints/step-00001000.pt, got none")
    recipe_file = Path(found["path"]).parents[1] / "config.yaml"
    if not recipe_file.is_file():
        raise WeightsError(f"{name}: expected the run's recipe in {recipe_file}, got none")
    return load_recipe(str(recipe_file))

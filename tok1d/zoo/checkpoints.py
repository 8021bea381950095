"""Models from the checkpoints of a run, with averaged (EMA) or raw weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tok1d.config.classes import set_class_names
from tok1d.config.load import recipe_from_text, stored_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.config.registry import MODELS
from tok1d.errors import WeightsError, reason_of
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer
from tok1d.zoo.weights import load_state

_NAME = re.compile(r"(?P<path>.+\.pt)(?::(?P<weights>ema|raw))?")


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a checkpoint, RUN/checkpoints/step-00001000.pt, optionally with ":raw" or ":ema"."""
    return _NAME.fullmatch(name) is not None


def load_checkpoint(name: str, *, device: str | torch.device = "cpu") -> Any:
    """Load the model of a checkpoint in eval mode, with a card, by the recipe that it contains.

    Args:
        name: path of the checkpoint, followed by ":ema" for averaged or ":raw" for raw weights; default: averaged
            weights if the checkpoint has them.

    Raises:
        WeightsError: not a checkpoint of a run, or ":ema" for a run without averaged weights.
    """
    path, kind = _parse(name)
    recipe = _recipe_of(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights, averages = state["model"], state["ema"]
    except Exception as error:  # torch raises many types on a damaged file
        raise WeightsError(f"{path}: not a checkpoint of a run ({reason_of(error, 120)})") from None
    if "recipe" in state:  # else the checkpoint is of an earlier version
        recipe = recipe_from_text(state["recipe"], str(path))
    kind = kind or ("ema" if averages else "raw")
    if kind == "ema" and not averages:
        raise WeightsError(f"{name}: this run has no averaged weights (train.ema is 0); expected {path}:raw")
    model: Any = store.build_model(recipe.model)
    load_state(model, {**weights, **(averages if kind == "ema" else {})}, str(path))
    model.card = Card(
        recipe=to_yaml(recipe),
        seed=recipe.seed,
        data=recipe.data.name,
        weights=kind,
        trained={"steps": state.get("step")},
        tokenizer=recipe.tokenizer or "",
        classes=list(state.get("classes", [])),
    )
    set_class_names(model, model.card.classes)
    model.folder = path.parents[1]
    return model.to(device).eval()


def load_model(name: str, *, device: str | torch.device = "cpu") -> Any:
    """Load a model from a folder, a bundled name, a hub name or a checkpoint; raises WeightsError as `store.load`."""
    return load_checkpoint(name, device=device) if is_checkpoint(name) else store.load(name, device=device)


def load_pair(
    name: str, *, device: str | torch.device = "cpu", tokenizer: str | None = None
) -> tuple[LoadedGenerator, LoadedTokenizer]:
    """Load a generator, by name or from a checkpoint, and its tokenizer; raises WeightsError as `store.load_pair`."""
    if not is_checkpoint(name):
        return store.load_pair(name, device=device, tokenizer=tokenizer)
    generator = load_checkpoint(name, device=device)
    if MODELS[generator.config.name].kind != "generator":
        raise WeightsError(f"{name}: expected a generator, this is a {generator.config.name}")
    return generator, store.load(tokenizer or generator.card.tokenizer, device=device)


def kept_checkpoints(name: str) -> list[str]:
    """The checkpoints in a run's folder, oldest first; `name` is that folder, or RUN/model inside it."""
    run = Path(name)
    for folder in (run, run.parent) if run.name == "model" else (run,):
        found = [path for path in folder.glob("checkpoints/step-*.pt") if path.stem.removeprefix("step-").isdecimal()]
        if found:
            return [str(path) for path in sorted(found)]
    return []


def is_generator(name: str) -> bool:
    """Whether a model or checkpoint is a generator, not a tokenizer; does not read weights.

    Raises:
        WeightsError: there is no such model, or it is of another kind.
    """
    config = _recipe_of(_parse(name)[0]).model if is_checkpoint(name) else store.read_config(store.resolve(name))[0]
    kind = MODELS[config.name].kind
    if kind not in ("tokenizer", "generator"):
        raise WeightsError(f"{name}: expected a tokenizer or a generator, this is a {config.name}")
    return kind == "generator"


def _parse(name: str) -> tuple[Path, str | None]:
    """The path of a checkpoint, and the end of its name: "ema", "raw" or None."""
    found = _NAME.fullmatch(name)
    if found is None or not Path(found["path"]).is_file():
        raise WeightsError(f"{name}: expected a run's checkpoint, RUN/checkpoints/step-00001000.pt, got none")
    return Path(found["path"]), found["weights"]


def _recipe_of(path: Path) -> Recipe:
    """The recipe of the run that wrote a checkpoint."""
    recipe_file = path.parents[1] / "config.yaml"
    if not recipe_file.is_file():
        raise WeightsError(f"{path}: expected the run's recipe in {recipe_file}, got none")
    return stored_recipe(recipe_file)

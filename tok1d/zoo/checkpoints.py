"""Models from runs: the one of its end, or one of a checkpoint, with averaged (EMA) or raw weights."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch

from tok1d.config.classes import set_class_names
from tok1d.config.load import recipe_from_text, stored_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.config.registry import MODELS
from tok1d.devices import pick_device
from tok1d.errors import WeightsError, reason_of
from tok1d.files import as_path
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


def newest(name: str, *, quiet: bool = False) -> str:
    """The newest checkpoint of a run that has no model yet; another name unchanged.

    Args:
        quiet: do not say on stderr which checkpoint is taken.
    """
    run = Path(as_path(name))
    if run.name == store.RUN_MODEL and not run.exists():
        run = run.parent
    if not (run / "config.yaml").is_file() or (run / store.RUN_MODEL / "config.json").is_file():
        return name
    found = kept_checkpoints(str(run))
    if not found:
        return name
    step = int(Path(found[-1]).stem.removeprefix("step-"))
    if not quiet:
        print(f"{run}: is not finished, taking its checkpoint of step {step:,}", file=sys.stderr)
    return found[-1]


def load_model(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    hub: store.Hub | None = None,
) -> Any:
    """Load a model from a folder, a run, a bundled name, a hub name or a checkpoint.

    Of a run before its end the newest checkpoint is taken. See `store.load`, which has the same arguments.

        >>> import tok1d
        >>> tok1d.load("fashion-mnist-maetok").spec.length
        16

    Raises:
        WeightsError, InputError: as `store.load` and `load_checkpoint`.
    """
    name = newest(str(name))
    if not is_checkpoint(name):
        return store.load(name, device=device, dtype=dtype, hub=hub)
    model = load_checkpoint(name, device=pick_device(device) if isinstance(device, str) else device)
    return model if dtype is None else model.to(dtype)


def load_pair(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    hub: store.Hub | None = None,
) -> tuple[LoadedGenerator, LoadedTokenizer]:
    """Load a generator, as `load_model`, and its tokenizer; see `store.load_pair`, which has the same arguments.

        >>> import tok1d
        >>> generator, tokenizer = tok1d.load_pair("fashion-mnist-semanticist")
        >>> tokenizer.decode(generator.sample(num=2)).shape
        torch.Size([2, 1, 28, 28])

    Raises:
        WeightsError, InputError: as `store.load_pair` and `load_model`.
    """
    name = newest(str(name))
    if not is_checkpoint(name):
        return store.load_pair(name, device=device, dtype=dtype, tokenizer=tokenizer, hub=hub)
    generator = load_model(name, device=device, dtype=dtype)
    if MODELS[generator.config.name].kind != "generator":
        raise WeightsError(f"{name}: expected a generator, this is a {generator.config.name}")
    return generator, load_model(tokenizer or generator.card.tokenizer, device=device, dtype=dtype)


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
    name = newest(name, quiet=True)
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

"""A run from its recipe to a finished folder: train, evaluate, save the model with its card."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tok1d import __version__
from tok1d.config.fields import to_mapping
from tok1d.config.load import stored_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.cost.flops import step_flops_or_none
from tok1d.data.decoded import report_broken
from tok1d.data.images import ImageSet
from tok1d.errors import ConfigError, WeightsError
from tok1d.evaluate.of_recipe import check_evaluation, evaluate_model
from tok1d.train.images import open_split
from tok1d.train.loop import Result, fit, processes
from tok1d.train.task import Measure, Task
from tok1d.train.tasks import build_task
from tok1d.train.trackers import check_tracker
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import Record, write_records
from tok1d.zoo.store import portable
from tok1d.zoo.weights import fingerprint

# What may change between sittings of one run: it decides what is written when and held where, not what is computed.
FREE_KEYS = {
    *("out", "card", "train.log_every", "train.save_every", "train.preview_every", "train.evaluate_every"),
    *("train.keep_last", "train.keep_every", "train.proxies_every", "train.peak_tflops", "train.tracker"),
    "train.shard",  # where the optimizer's state lies
    *("data.workers", "data.on_broken"),  # a run that a broken image stopped may go on without it
}
# In this order: interrupted after report.json, the folder holds no finished run any more, and as long as checkpoints
# are there, so is the log that tells of a run.
RUN_FILES = ("report.json", "checkpoints", "log.jsonl", "model", "samples", "cache", "tensorboard", "wandb")


def is_finished(out: Path) -> bool:
    """Whether a run folder holds a finished run."""
    return (out / "report.json").exists() and (out / "model" / "config.json").exists()


def prepare(recipe: Recipe, *, overwrite: bool = False, first: bool = True) -> Path:
    """The run folder with its config.yaml, new or continued.

    Args:
        overwrite: remove the run that is there.
        first: of several processes; the others look and write nothing.

    Raises:
        ConfigError: a finished run is there (and not `overwrite`), an unfinished one of another recipe, a folder
            that is no run, or one that cannot be written.
    """
    out = Path(recipe.out)
    config, temporary = out / "config.yaml", out / ".config.yaml.tmp"
    try:
        if overwrite and first and (config.exists() or is_finished(out)):
            _clear(out)
        elif is_finished(out):
            raise ConfigError(f"{out}: holds a finished run; pass --overwrite to train anew, or out=FOLDER for another")
        elif config.exists() and _has_begun(out):
            _check_same(stored_recipe(config), recipe, out)
            return out
        elif not config.exists() and out.exists() and _holds_else(out, ("slurm", temporary.name)):
            raise ConfigError(f"{out}: not empty and not a run folder; choose another with out=FOLDER")
        elif not first:
            return out
        # Also where a config.yaml is but no log: that run never began (no data, say), so its recipe may change.
        out.mkdir(parents=True, exist_ok=True)
        temporary.write_text(to_yaml(recipe))
        os.replace(temporary, config)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{out}: cannot write the run folder ({error.strerror}); try out=FOLDER") from None
    return out


def _has_begun(out: Path) -> bool:
    """Whether the run in a folder has steps behind it that another recipe must not take over."""
    checkpoints = out / "checkpoints"
    return (out / "log.jsonl").exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _holds_else(folder: Path, names: tuple[str, ...]) -> bool:
    """Whether a folder holds anything but a job's logs and a file that is about to be renamed."""
    return any(path.name not in names for path in folder.iterdir())


def _clear(out: Path) -> None:
    """Remove what a run writes; whatever else lies in the folder stays."""
    for path in (*(out / name for name in RUN_FILES), *out.glob("nonfinite-step-*.pt"), out / "config.yaml"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else name).items()}


def _check_same(old: Recipe, new: Recipe, out: Path) -> None:
    before, now = _flat(to_mapping(old)), _flat(to_mapping(new))
    for key in sorted(before.keys() | now.keys()):
        if any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS) or key.startswith("evaluate."):
            continue
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{out}: its unfinished run has {key}={before.get(key)}, this recipe has {now.get(key)}; "
                "pass --overwrite to start anew, or out=FOLDER for another folder"
            )


def code_version() -> str:
    """The commit of the code in use, with "+" where files differ from it; the package version outside a checkout."""

    folder = Path(__file__).parent
    try:
        ours = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True)
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "."], cwd=folder.parent, capture_output=True, text=True)
    except OSError:
        return f"v{__version__}"
    if ours.returncode or head.returncode:  # an installed copy may lie inside somebody else's checkout
        return f"v{__version__}"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def train(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    name: str = "",
    seconds: float | None = None,
) -> Path:
    """Train a recipe to the end, from where its folder stands; returns the run folder.

    The folder then holds config.yaml, log.jsonl, model/ (averaged weights and card), samples/ and report.json.

    Args:
        seconds: end this sitting, with a checkpoint, after so much training time.
    """
    check_tracker(recipe)
    with _first_process_first() as first_process:
        out = prepare(recipe, overwrite=overwrite, first=first_process)
        commit = code_version()  # as the run begins: a long run outlives edits of the checkout
        task = build_task(recipe)
    check_evaluation(recipe, task.model)
    task.measures += evaluations(recipe)
    if first_process:
        task.flops = step_flops_or_none(recipe)
    result = fit(recipe, task, out, seconds=seconds, quiet=quiet)
    report_broken(task.images)
    if result.finished and first_process:
        finish(recipe, task, result, out, name=name, commit=commit)
    return out


@contextmanager
def _first_process_first() -> Iterator[bool]:
    """Let the first of several processes (torchrun) make folders and caches before the others look; is it this one?"""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    state = processes()
    with state.main_process_first():
        yield state.is_main_process


def finish(recipe: Recipe, task: Task, result: Result, out: Path, *, name: str = "", commit: str = "") -> list[Record]:
    """Evaluate the trained model, then write model/, a picture and report.json (last: it marks the run finished)."""
    model = task.model
    if task.preview is not None:
        with torch.no_grad():
            task.preview(model, out / "samples" / f"step-{result.steps:08d}.png")
    card = make_card(recipe, model, result, name=name, commit=commit)
    records = evaluate(recipe, model)
    card.records = records
    store.save_model(model, out / "model", card)
    write_records(out / "report.json", records)
    for left in out.glob(".report.json.*.tmp"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    return records


def make_card(recipe: Recipe, model: torch.nn.Module, result: Result, *, name: str, commit: str) -> Card:
    """The record of freshly trained weights."""
    tokenizer = store.load(recipe.tokenizer) if recipe.tokenizer else None
    return Card(
        recipe=to_yaml(recipe),
        recipe_name=name,
        seed=recipe.seed,
        commit=commit,
        data=recipe.data.name,
        data_fingerprint=open_split(recipe, "train").fingerprint(),
        trained={
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "device": result.device,
            "precision": recipe.train.precision,
            **({"init_from": _origin(recipe.init_from)} if recipe.init_from else {}),
        },
        weights="ema" if recipe.train.ema > 0 else "raw",
        fingerprint=fingerprint(model),
        tokenizer=portable(recipe.tokenizer) if recipe.tokenizer else "",
        tokenizer_fingerprint=fingerprint(tokenizer) if tokenizer is not None else "",
    )


def _origin(name: str) -> str:
    """Name, as the recipe has it, and fingerprint of the weights that a training started from."""
    try:
        return f"{name}@{fingerprint(store.load(name))}"
    except WeightsError:  # gone since the training began
        return name


def evaluations(recipe: Recipe) -> list[Measure]:
    """What `train.evaluate_every` asks for: the measurements that end a run, of averaged and of raw weights.

    A line of the log has the weights' name, "ema" or "raw", before each figure's, and the tokens kept behind it.
    """
    config = recipe.train
    if not config.evaluate_every:
        return []
    test = cache(lambda: open_split(recipe, "test"))  # once a run: a large folder takes a while to list

    def measure(weights: str) -> Callable[[Any], dict[str, Any]]:
        def run(model: Any) -> dict[str, Any]:
            found = {}
            for record in evaluate(recipe, model, test()):
                if record.keep is not None:
                    found[f"{weights}_{record.name}@{record.keep}"] = record.value
                elif recipe.kind == "classifier":  # elsewhere it is what the judge says of the test images themselves
                    found[f"{weights}_{record.name}"] = record.value
            return found

        return run

    averaged = [Measure(config.evaluate_every, measure("ema"))] if config.ema > 0 else []
    return [*averaged, Measure(config.evaluate_every, measure("raw"), averaged=False)]


def evaluate(recipe: Recipe, model: Any, test: ImageSet | None = None) -> list[Record]:
    """The evaluation at the end of a run, see `evaluate_model`; `test` is opened here by default."""
    return evaluate_model(recipe, model, open_split(recipe, "test") if test is None else test)

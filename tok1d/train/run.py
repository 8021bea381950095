"""Training a recipe to a finished run folder: train, evaluate, and save the model with its card."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from tok1d import __version__, files
from tok1d.config.classes import class_names
from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.cost.flops import step_flops_or_none
from tok1d.data.broken import report_broken
from tok1d.data.images import ImageSet
from tok1d.data.labels import say_splits
from tok1d.data.source import BY_NAME
from tok1d.errors import ConfigError, WeightsError
from tok1d.evaluate.baselines import verdict
from tok1d.evaluate.of_recipe import check_evaluation, check_measures, evaluate_model, evaluation_notes
from tok1d.tokenizers.budget import BudgetHead
from tok1d.train import folder
from tok1d.train.images import open_split, with_data_classes
from tok1d.train.log import LogEntry
from tok1d.train.loop import Result, fit
from tok1d.train.optim import learning_rate
from tok1d.train.processes import in_turn, is_first
from tok1d.train.task import Measure, Task
from tok1d.train.tasks import build_task
from tok1d.train.trackers import check_tracker
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.portable import portable
from tok1d.zoo.record import Record, write_records
from tok1d.zoo.weights import fingerprint


def code_version() -> str:
    """The commit of this code, with "+" if files differ from it; outside of a git checkout the package's version."""
    place = Path(__file__).parent
    try:
        ours = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=place, capture_output=True)
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=place, capture_output=True, encoding="utf-8"
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "."], cwd=place.parent, capture_output=True, encoding="utf-8"
        )
    except OSError:
        return f"v{__version__}"
    if ours.returncode or head.returncode:  # an installed package may lie inside the checkout of something else
        return f"v{__version__}"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def train(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    name: str = "",
    seconds: float | None = None,
    more: int | None = None,
) -> Path:
    """Train a recipe to the end, resuming the run in its folder if there is one; returns the run folder.

    The folder then holds config.yaml, log.jsonl, samples/, model/ (averaged weights and card) and report.json.

    Args:
        overwrite: remove the run in the folder first.
        quiet: no progress bar.
        name: the recipe's name, for the card.
        seconds: stop with a checkpoint after this much training time in this call.
        more: train the run in the folder, finished or not, so many steps beyond those that it has made.

    A training that fails before its first step leaves the folder as it was.

    Raises:
        Tok1dError: the recipe, its data or its weights do not match, or another process trains in the folder (before
            the first step); see also `fit`.
    """
    check_tracker(recipe)
    name = _recipe_name(Path(name)) if Path(name).is_dir() else name
    recipe = with_data_classes(recipe)
    if more is not None:
        recipe = _longer(recipe, more, overwrite=overwrite)
    out, commit = Path(recipe.out), code_version()  # at the start: the checkout may change during a long run
    with ExitStack() as held:

        def start(first: bool) -> tuple[Task, Callable[[], None]]:
            if first:
                held.enter_context(folder.lock(out))
            begin = held.enter_context(
                folder.starting(recipe, overwrite=overwrite, first=first, longer=more is not None)
            )
            check_measures(recipe)
            task = build_task(recipe)
            check_evaluation(recipe, task.model)
            task.measures += evaluations(recipe)
            if first:
                task.flops = step_flops_or_none(recipe)
            return task, begin

        task, begin = in_turn(start)

        def begin_folder() -> None:
            if is_first():
                _say_start(recipe, task)
            begin()

        result = fit(recipe, task, out, seconds=seconds, quiet=quiet, begin_folder=begin_folder)
        report_broken(task.images)
        if result.finished and is_first():
            finish(recipe, task, result, out, name=name, commit=commit)
    return out


def _say_start(recipe: Recipe, task: Task) -> None:
    """Print what the evaluation at the end will not measure, the numbers of images, and the classes."""
    for line in evaluation_notes(recipe, task.model):
        print(line)
    if task.images is not None:
        say_splits(task.images, open_split(recipe, "test"))


def _longer(recipe: Recipe, more: int, *, overwrite: bool) -> Recipe:
    """The recipe for `more` steps beyond those of the run in its folder; what follows from them is printed."""
    if overwrite:
        raise ConfigError("--more: continues the run in the folder, expected without --overwrite")
    recipe, before, made = folder.extended(recipe, more)
    for line in _said_of_more(recipe, before, made) if is_first() else ():
        print(line)
    return recipe


def _recipe_name(out: Path) -> str:
    """The name of the recipe of a run, from the model of its end; "" before."""
    return store.read_config(out / "model")[1].recipe_name if folder.is_finished(out) else ""


def _said_of_more(recipe: Recipe, before: Recipe, made: int) -> list[str]:
    """Lines about a run that is trained to a later step: from where, and what happens to the learning rate."""
    train, steps = recipe.train, recipe.train.steps
    last, now = (learning_rate(step, each.train) for step, each in ((made - 1, before), (made, recipe)))
    if train.schedule == "constant":
        rate = f"the learning rate stays {train.lr:g}"
    elif train.decay_steps:
        rate = f"the learning rate goes on at {now:.3g}, as train.decay_steps={train.decay_steps} is unchanged"
    else:
        rate = (
            f"the {train.schedule} schedule of the learning rate now ends at step {steps:,}, so it goes from "
            f"{last:.3g} to {now:.3g} and falls from there to {train.lr_min:g}"
        )
    return [
        f"{steps - made:,} more steps for {recipe.out}, from step {made:,} to {steps:,}; {rate}",
        f"after an interruption, tok1d train {recipe.out} resumes",
    ]


def finish(recipe: Recipe, task: Task, result: Result, out: Path, *, name: str = "", commit: str = "") -> list[Record]:
    """Evaluate the trained model, then write a preview, model/ and, last, report.json, which marks a finished run."""
    model = task.model
    if task.preview is not None:
        with torch.no_grad():
            task.preview(model, out / "samples" / f"step-{result.steps:08d}.png")
    card = make_card(recipe, model, result, name=name, commit=commit)
    records = evaluate(recipe, model, with_baselines=True)
    card.records = records
    if isinstance(model, BudgetHead):
        store.save_with_head(str(recipe.init_from), model, out / "model", card)
    else:
        store.save_model(model, out / "model", card)
    write_records(out / "report.json", records)
    files.remove_left(out / "report.json")
    if said := verdict(records):
        print(said)
    return records


def make_card(recipe: Recipe, model: nn.Module, result: Result, *, name: str, commit: str) -> Card:
    """Create the card of newly trained weights, without records."""
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
            **({"init_from": _with_fingerprint(recipe.init_from)} if recipe.init_from else {}),
        },
        weights="ema" if recipe.train.ema > 0 else "raw",
        fingerprint=fingerprint(model),
        tokenizer=portable(recipe.tokenizer, Path(recipe.out) / "model") if recipe.tokenizer else "",
        tokenizer_fingerprint=fingerprint(tokenizer) if tokenizer is not None else "",
        licence="Apache-2.0" if recipe.data.name in BY_NAME else "",  # that of the user's own images is unknown
        classes=list(class_names(model)),
    )


def _with_fingerprint(name: str) -> str:
    """A model's name and the fingerprint of its weights, NAME@FINGERPRINT; only the name if the model is missing."""
    try:
        return f"{name}@{fingerprint(store.load(name))}"
    except WeightsError:
        return name


def evaluations(recipe: Recipe) -> list[Measure]:
    """The evaluations during the training (`train.evaluate_every`), as at the end, of averaged and of raw weights.

    Names in the log are the weights ("ema" or "raw"), the metric and the number of tokens: ema_psnr@4. Samples
    without guidance (`evaluate.unguided`) have names that end with "_unguided".
    """
    config = recipe.train
    if not config.evaluate_every:
        return []
    test = cache(lambda: open_split(recipe, "test"))  # opened once: listing a large folder takes long

    def measure(weights: str) -> Callable[[nn.Module], LogEntry]:
        def run(model: nn.Module) -> LogEntry:
            found: LogEntry = {}
            for record in evaluate(recipe, model, test()):
                if record.value is None:
                    continue
                if record.keep is not None:
                    key = f"{weights}_{record.name}@{record.keep}"
                    found[f"{key}_unguided" if key in found else key] = record.value
                elif recipe.kind == "classifier":  # other records without `keep` describe the test images
                    found[f"{weights}_{record.name}"] = record.value
            return found

        return run

    averaged = [Measure(config.evaluate_every, measure("ema"))] if config.ema > 0 else []
    return [*averaged, Measure(config.evaluate_every, measure("raw"), averaged=False)]


def evaluate(
    recipe: Recipe, model: nn.Module, test: ImageSet | None = None, *, with_baselines: bool = False
) -> list[Record]:
    """The evaluation at the end of a run, see `evaluate_model`.

    Args:
        model: a tokenizer, generator or classifier in eval mode.
        test: the test images; default: opened here.
        with_baselines: add the records of `evaluate.baselines`.
    """
    images = open_split(recipe, "test") if test is None else test
    train = partial(open_split, recipe, "train")
    return evaluate_model(recipe, model, images, train, with_baselines=with_baselines)

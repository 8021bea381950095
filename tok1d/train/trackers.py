"""Copying the log to TensorBoard or Weights & Biases through accelerate's trackers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.errors import ConfigError, reason_of
from tok1d.train.log import LogEntry

if TYPE_CHECKING:
    from accelerate import Accelerator

Track = Callable[[LogEntry], None]
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def untracked(entry: LogEntry) -> None:
    """Does nothing: the recipe has no tracker."""


def check_tracker(recipe: Recipe) -> None:
    """Raise ConfigError where the package of `train.tracker` is not installed."""
    name = recipe.train.tracker
    if name != "none" and not any(find_spec(package) for package in PACKAGES[name]):
        raise ConfigError(
            f"train.tracker: {name} is not installed; pip install {name}, or set train.tracker=none (log.jsonl only)"
        )


def tracker_options(recipe: Recipe, out: Path) -> dict[str, str]:
    """Arguments of accelerate's Accelerator for the recipe's tracker; empty without one."""
    name = recipe.train.tracker
    return {} if name == "none" else {"log_with": name, "project_dir": str(out)}


@contextmanager
def tracking(recipe: Recipe, accelerator: Accelerator, out: Path, step: int) -> Iterator[Track]:
    """Yields a function that passes a line of the log to the tracker (main process); closes the tracker at the end.

    A tracker that fails during the training is reported once on stderr and not used again. TensorBoard's files are in
    RUN/tensorboard; on resume, entries after the checkpoint are dropped. In Weights & Biases every call of the command
    is a run of the project tok1d, grouped by the run folder's name.

    Args:
        step: the step at which the run starts or resumes.

    Raises:
        ConfigError: the tracker cannot be started.
    """
    name = recipe.train.tracker
    if name == "none":
        yield untracked
        return
    check_tracker(recipe)
    options = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"dir": str(out), "name": out.name, "group": out.name, "notes": to_yaml(recipe)},
    }
    try:
        accelerator.init_trackers(name if name == "tensorboard" else "tok1d", init_kwargs={name: options[name]})
    except Exception as error:  # network, keys, disk: trackers raise errors of many types
        raise ConfigError(
            f"train.tracker: {name} cannot be started ({reason_of(error)}); fix that, or set train.tracker=none"
        ) from None
    working = True

    def track(entry: LogEntry) -> None:
        nonlocal working
        values = {key: value for key, value in entry.items() if key != "step" and isinstance(value, int | float)}
        try:
            if working:
                accelerator.log(values, step=entry["step"])
        except Exception as error:
            working = False
            reason = reason_of(error)
            print(
                f"warning: train.tracker: {name} failed ({reason}); the run continues with log.jsonl only",
                file=sys.stderr,
            )

    try:
        yield track
    finally:
        for tracker in accelerator.trackers:
            with suppress(Exception):  # log.jsonl is complete
                tracker.finish()

"""The log's numbers in TensorBoard or Weights & Biases too, through accelerate's trackers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.errors import ConfigError

Track = Callable[[dict[str, Any]], None]
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def untracked(entry: dict[str, Any]) -> None:
    """No tracker: the log alone has the numbers."""


def check_tracker(recipe: Recipe) -> None:
    """Raise ConfigError where `train.tracker` names a package that is not installed."""
    name = recipe.train.tracker
    if name != "none" and not any(find_spec(package) for package in PACKAGES[name]):
        raise ConfigError(
            f"train.tracker: {name} is not installed; pip install {name}, or set train.tracker=none (log.jsonl has all)"
        )


def tracker_options(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What accelerate's Accelerator is told of the tracker; nothing without one."""
    name = recipe.train.tracker
    return {} if name == "none" else {"log_with": name, "project_dir": str(out)}


@contextmanager
def tracking(recipe: Recipe, accelerator: Any, out: Path, step: int) -> Iterator[Track]:
    """What takes lines of the log, on the main process; the tracker is closed at the end.

    A tracker that fails during the training is told of once on stderr and left out from then on. TensorBoard's files
    lie in RUN/tensorboard, a resumed run's without what they had after its checkpoint; in Weights & Biases each sitting
    is a run of project tok1d, in a group with the folder's name.

    Args:
        step: where the run goes on.

    Raises:
        ConfigError: a tracker that cannot begin.
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
    except Exception as error:  # network, keys, disk: trackers raise whatever theirs is
        reason = " ".join((str(error) or type(error).__name__).split())[:160]
        raise ConfigError(f"train.tracker: {name} cannot begin ({reason}); mend that, or set none") from None
    working = True

    def track(entry: dict[str, Any]) -> None:
        nonlocal working
        values = {key: value for key, value in entry.items() if key != "step" and isinstance(value, int | float)}
        try:
            if working:
                accelerator.log(values, step=entry["step"])
        except Exception as error:
            working = False
            print(f"warning: train.tracker: {name} failed ({error}); log.jsonl goes on alone", file=sys.stderr)

    try:
        yield track
    finally:
        for tracker in accelerator.trackers:
            with suppress(Exception):  # the log has it all
                tracker.finish()

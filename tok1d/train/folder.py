"""The folder of a run: config.yaml, log.jsonl, checkpoints/, samples/, and at the end model/ and report.json."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tok1d import files
from tok1d.config.fields import flat, to_mapping
from tok1d.config.load import stored_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.errors import ConfigError

# Keys that may change when a run is resumed: they decide when and where something is written, not what is computed.
FREE_KEYS = (
    *("out", "card", "evaluate", "train.log_every", "train.save_every", "train.preview_every", "train.evaluate_every"),
    *("train.keep_last", "train.keep_every", "train.proxies_every", "train.peak_tflops", "train.tracker"),
    "train.shard",  # where the optimizer's state is held
    *("data.workers", "data.on_broken"),  # a run that an unreadable image stopped may resume without it
)
# `overwrite` removes them in this order. If that is interrupted, the folder does not look like a finished run
# (report.json is gone), and remaining checkpoints still have their log.
RUN_FILES = ("report.json", "checkpoints", "log.jsonl", "model", "samples", "cache", "tensorboard", "wandb")


def is_finished(out: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (out / "report.json").exists() and (out / "model" / "config.json").exists()


def has_checkpoint(out: Path) -> bool:
    """Whether a folder holds checkpoints that a run would resume from."""
    return any((out / "checkpoints").glob("step-*.pt"))


def prepare(recipe: Recipe, *, overwrite: bool = False, first: bool = True) -> Path:
    """Make the run folder with its config.yaml, or check that the recipe may resume the run in it.

    Args:
        overwrite: first remove the run that is in the folder.
        first: whether this is the first process; the others only check the folder.

    Raises:
        ConfigError: the folder holds a finished run (without `overwrite`), an unfinished run of another recipe or
            something else, or it cannot be written.
    """
    out = Path(recipe.out)
    config = out / "config.yaml"
    try:
        if overwrite and first and (config.exists() or is_finished(out)):
            _clear(out)
        elif is_finished(out):
            raise ConfigError(
                f"{out}: holds a finished run; pass --overwrite to train again, or out=FOLDER for another"
            )
        elif config.exists() and _has_begun(out):
            _check_same(stored_recipe(config), recipe, out)
            return out
        elif not config.exists() and out.exists() and _holds_other_files(out):
            raise ConfigError(f"{out}: not empty and not a run folder; choose another with out=FOLDER")
        elif not first:
            return out
        # Also reached if there is a config.yaml but no log: that run has made no step, so the recipe may change.
        files.write_text(config, to_yaml(recipe))
    except OSError as error:
        raise ConfigError(f"{out}: cannot write the run folder ({error.strerror}); try out=FOLDER") from None
    files.remove_left(config)
    return out


def _has_begun(out: Path) -> bool:
    """Whether a run has made steps; then only the same recipe may resume it."""
    checkpoints = out / "checkpoints"
    return (out / "log.jsonl").exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _holds_other_files(out: Path) -> bool:
    """Whether a folder contains files other than the logs of a SLURM job and the temporary file of config.yaml."""
    return any(path.name != "slurm" and not re.fullmatch(r"\.config\.yaml\..*tmp", path.name) for path in out.iterdir())


def _clear(out: Path) -> None:
    """Remove the files of a run; other files stay."""
    for path in (*(out / name for name in RUN_FILES), *out.glob("nonfinite-step-*.pt"), out / "config.yaml"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_same(old: Recipe, new: Recipe, out: Path) -> None:
    before, now = flat(to_mapping(old), FREE_KEYS), flat(to_mapping(new), FREE_KEYS)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{out}: its unfinished run has {key}={before.get(key)}, this recipe has {now.get(key)}; "
                "pass --overwrite to start over, or out=FOLDER for another folder"
            )

"""The folder of a run: config.yaml, log.jsonl, checkpoints/, samples/, and at the end model/ and report.json."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tok1d import files, locks
from tok1d.config.fields import flat, to_mapping
from tok1d.config.load import recipe_from_text, stored_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.config.text import join
from tok1d.data.tokens import INDEX
from tok1d.errors import ConfigError, WeightsError
from tok1d.train.checkpoint import checkpoint_files, step_of

RUN_FILES = ("report.json", "checkpoints", "log.jsonl", "model", "samples", "cache", "tensorboard", "wandb")
REPLACED = ".replaced"  # in a run folder: the run that a new one replaces, until the new one begins
SHOWN = 3  # keys in the message about another recipe
RECIPE_KEYS = {"kind", "seed", "out", "data", "model", "train", "evaluate"}  # in every config.yaml of a run


def _free_keys(section: type, key: str = "") -> Iterator[str]:
    """The dotted keys of the fields with the metadata `free` in a section of a recipe and in its sections."""
    for field in dataclasses.fields(section):
        inner = field.default_factory if isinstance(field.default_factory, type) else field.type
        if field.metadata.get("free"):
            yield join(key, field.name)
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from _free_keys(inner, join(key, field.name))


FREE_KEYS = tuple(_free_keys(Recipe))  # keys that may change when a run is resumed


def is_finished(out: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (out / "report.json").exists() and (out / "model" / "config.json").exists()


def has_checkpoint(out: Path) -> bool:
    """Whether a folder holds checkpoints that a run would resume from."""
    return any((out / "checkpoints").glob("step-*.pt"))


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder until the block ends; reading stays possible.

    The folder is created for the lock, and removed at the end if it is still empty.

    Raises:
        ConfigError: another process trains there, or the folder cannot be written.
    """
    try:
        with locks.hold(Path(out) / locks.FOLDER_LOCK, str(out)) as message:
            if message:
                print(message, file=sys.stderr)
            yield
    except OSError as error:
        raise _cannot_write(out, error) from None


@contextmanager
def starting(
    recipe: Recipe, *, overwrite: bool = False, first: bool = True, longer: bool = False
) -> Iterator[Callable[[], None]]:
    """Check that the recipe may be trained in its folder; yields a function that begins the run there.

    Nothing is written before that function is called, and a run that is to be replaced is only moved aside: if the
    block ends before, it is moved back. So a training that fails at its start changes nothing.

    Args:
        overwrite: replace the run that is in the folder.
        first: whether this is the first process; the others only check the folder.
        longer: the run in the folder is trained to a later step than its own recipe says, see `extended`.

    Raises:
        ConfigError: the folder holds a finished run (without `overwrite`), an unfinished run of another recipe or
            something else, or it cannot be written.
    """
    out, begun = Path(recipe.out), False

    def begin() -> None:
        nonlocal begun
        begun = True
        if (resumes and not longer) or not first:
            return
        try:
            if longer:  # first, so that a run that is killed here is finished again by the command without more steps
                (out / "report.json").unlink(missing_ok=True)
            files.write_text(out / "config.yaml", to_yaml(recipe))
            files.remove_left(out / "config.yaml")
            shutil.rmtree(out / REPLACED, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(out, error) from None

    try:
        _check_place(recipe)
        if first:
            _settle(out)
        resumes = _resumes(recipe, out, overwrite=overwrite, longer=longer)
        if overwrite and first and _is_run(out):
            _move_aside(out)
    except OSError as error:
        raise _cannot_write(out, error) from None
    try:
        yield begin
    finally:
        if first and not begun:
            _settle(out)


def prepare(recipe: Recipe, *, overwrite: bool = False, first: bool = True) -> Path:
    """Begin or resume a run in its folder at once, for a task that the caller builds; raises ConfigError."""
    with starting(recipe, overwrite=overwrite, first=first) as begin:
        begin()
    return Path(recipe.out)


def remove(out: Path) -> None:
    """Delete the files of a run, if the folder holds one; other files stay."""
    if _is_run(out):
        _move_aside(out)
    shutil.rmtree(out / REPLACED, ignore_errors=True)


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    reason = ": ".join(str(text) for text in (error.strerror, error.filename) if text)
    return ConfigError(f"{out}: cannot write the run folder ({reason}); try out=FOLDER")


def _check_place(recipe: Recipe) -> None:
    """Refuse a folder whose files would belong to another run, or would be read as images of the data."""
    place = Path(recipe.out).resolve()
    for run in place.parents:
        if place.relative_to(run).parts[0] in RUN_FILES and _is_run(run):
            raise ConfigError(f"{recipe.out}: lies inside the files of the run {run}; choose another with out=FOLDER")
    if recipe.data.name == "folder" and recipe.data.root and place.is_relative_to(Path(recipe.data.root).resolve()):
        raise ConfigError(
            f"{recipe.out}: expected a folder outside of data.root={recipe.data.root}, where the run's previews would "
            "be read as images; choose another with out=FOLDER"
        )


def _resumes(recipe: Recipe, out: Path, *, overwrite: bool, longer: bool = False) -> bool:
    """Whether the folder holds an unfinished run of this recipe; raises ConfigError where it may not be written."""
    config = out / "config.yaml"
    if _is_run(out):
        if overwrite:
            return False
        if longer:
            check_same(with_steps(stored_recipe(config), recipe.train.steps), recipe, f"{out}: its run")
            return True
        if is_finished(out):
            raise ConfigError(
                f"{out}: holds a finished run; pass --more N to train it N steps longer, --overwrite to train again, "
                "or out=FOLDER for another"
            )
        if not _has_begun(out):
            return False  # that run has made no step, so the recipe may change
        check_same(stored_recipe(config), recipe, f"{out}: its unfinished run")
        return True
    if config.exists():
        raise ConfigError(f"{out}: its config.yaml is not that of a run; choose another with out=FOLDER")
    if out.exists() and any(_is_foreign(path) for path in out.iterdir()):
        raise ConfigError(f"{out}: not empty and not a run folder; choose another with out=FOLDER")
    return False


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with another number of steps."""
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=steps))


def extended(recipe: Recipe, more: int) -> tuple[Recipe, Recipe, int]:
    """A recipe for `more` steps beyond those that the run in its folder has made.

    Returns:
        The recipe, the one that the run has had, and the number of steps that it has made: that of its newest
        checkpoint.

    Raises:
        ConfigError: the folder holds no run with a checkpoint.
    """
    out = Path(recipe.out)
    made = max(map(step_of, checkpoint_files(out / "checkpoints")), default=0)
    if not _is_run(out) or not made:
        raise ConfigError(f"{out}: --more needs a run with a checkpoint, got none; train it first, without --more")
    return with_steps(recipe, made + more), stored_recipe(out / "config.yaml"), made


def _is_run(out: Path) -> bool:
    """Whether a folder has the config.yaml of a run, and not a file of that name of something else."""
    try:
        tree = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (UnicodeDecodeError, yaml.YAMLError):
        tree = None
    return isinstance(tree, dict) and tree.keys() >= RECIPE_KEYS


def _has_begun(out: Path) -> bool:
    """Whether a run has made steps; then only the same recipe may resume it."""
    checkpoints = out / "checkpoints"
    return (out / "log.jsonl").exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _is_foreign(path: Path) -> bool:
    """Whether a file in a run folder is none that exists before a run begins.

    These are logs of a SLURM job, the lock, temporary files of config.yaml, and a token cache.
    """
    if path.name in ("slurm", REPLACED) or re.fullmatch(r"\.config\.yaml\..*tmp", path.name):
        return False
    if path.name.startswith(locks.FOLDER_LOCK):
        return False
    if path.name != "cache" or not path.is_dir():
        return True
    return not all(each.name == INDEX or each.name.startswith(("shard-", ".")) for each in path.iterdir())


def _run_paths(out: Path) -> list[Path]:
    names = [*(out / name for name in RUN_FILES), *sorted(out.glob("nonfinite-step-*.pt"))]
    return [path for path in names if path.is_symlink() or path.exists()]


def _move_aside(out: Path) -> None:
    """Move a run's files to `REPLACED`, config.yaml first: without it, an interrupted move is undone by `_settle`."""
    (out / REPLACED).mkdir(exist_ok=True)
    for path in (out / "config.yaml", *_run_paths(out)):
        os.replace(path, out / REPLACED / path.name)


def _settle(out: Path) -> None:
    """Delete a replaced run if the new one has begun, else move it back, config.yaml last."""
    aside = out / REPLACED
    if not aside.is_dir():
        return
    if not (out / "config.yaml").exists():
        for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.yaml"):
            target = out / path.name
            if target.is_dir() and not target.is_symlink():  # a token cache of the run that did not begin
                shutil.rmtree(target)
            os.replace(path, target)
    shutil.rmtree(aside)


def check_checkpoint(stored: str | None, recipe: Recipe, source: str) -> None:
    """Raise WeightsError where a checkpoint was written by the training of another recipe.

    Args:
        stored: the recipe in the checkpoint, as `to_yaml` writes it; None in checkpoints of earlier versions.
        source: the checkpoint, for the message.
    """
    if stored is None:
        return
    try:  # the steps may differ: the run's config.yaml was compared, and `extended` changes it before a checkpoint
        old = with_steps(recipe_from_text(stored, source), recipe.train.steps)
        check_same(old, recipe, f"{source}: its run")
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def check_same(old: Recipe, new: Recipe, what: str) -> None:
    """Raise ConfigError where a run of `old` cannot be resumed by `new`, with the first keys that differ."""
    before, now = _compared(old), _compared(new)
    keys = [key for key in sorted(before.keys() | now.keys()) if not _is_same(before.get(key), now.get(key))]
    if not keys:
        return
    had, has = ([f"{key}={each.get(key)}" for key in keys[:SHOWN]] for each in (before, now))
    more = f" ({len(keys) - SHOWN} more keys differ)" if len(keys) > SHOWN else ""
    longer = "pass --more N to train it N steps longer, " if keys == ["train.steps"] else "pass "
    raise ConfigError(
        f"{what} has {', '.join(had)}, this recipe has {', '.join(has)}{more}; "
        f"{longer}--overwrite to start over, or out=FOLDER for another folder"
    )


def _compared(recipe: Recipe) -> dict[str, object]:
    """The values that decide whether a run can be resumed. A cache in the run folder moves with it."""
    inside = recipe.cache == f"{recipe.out}/cache"
    return flat(to_mapping(recipe), FREE_KEYS) | ({"cache": "OUT/cache"} if inside else {})


def _is_same(old: object, new: object) -> bool:
    """Whether two values are equal, or two paths of one file or folder."""
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return old == new
    return os.path.exists(old) and os.path.exists(new) and os.path.samefile(old, new)

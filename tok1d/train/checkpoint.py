"""Training state on disk. A checkpoint is written completely or not at all, and carries a checksum.

A file is a zip archive as torch.save writes it. The archive's comment holds the SHA-256 of the archive without the
comment, so one rename brings both in place, and torch.load reads the file like any other.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor

from tok1d import files
from tok1d.errors import WeightsError, reason_of
from tok1d.losses.total import Tensors
from tok1d.train.optim import StateDict

_MARK = b"tok1d sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_NEEDED = {"step", "model", "optimizer", "ema", "seconds"}


class WeightsAndOptimizer(TypedDict):
    """Weights and buffers (`model`) and optimizer state of a player."""

    model: dict[str, Tensor]
    optimizer: StateDict


class PlayerContent(WeightsAndOptimizer):
    """A player in a checkpoint; `ema` is empty without averaged weights."""

    ema: dict[str, Tensor]


class RunContent(PlayerContent):
    """A run's state. The first player's entries are at the top level, those of the others in `players`, by name.

    seconds: training time so far. sums: logged values summed over the steps after step `since`. processes: how many
    processes wrote it. images: number of training images, None if unknown. classes: names of the model's classes.
    scale: state of the fp16 loss scale. recipe: the recipe as YAML. data: fingerprint of the training images and of
    captions that the model reads, None if unknown. tokenizer: hash of the weights of a generator's tokenizer, or None.
    vocabulary: words of a model's captions (`condition.kind=words`). Checkpoints of earlier versions have no classes,
    recipe, data or tokenizer.
    """

    players: dict[str, PlayerContent]
    seconds: float
    sums: Tensors
    since: int
    processes: int
    images: int | None
    classes: NotRequired[list[str]]
    scale: NotRequired[StateDict]
    recipe: NotRequired[str]
    data: NotRequired[str | None]
    tokenizer: NotRequired[str | None]
    vocabulary: NotRequired[list[str]]


class Checkpoint(RunContent):
    """The content of a checkpoint file; `step` is the number of optimizer steps done."""

    step: int


C = TypeVar("C", bound=WeightsAndOptimizer)


def write(path: Path, content: object) -> Path:
    """Write `content` with its checksum to a temporary file, flush it to the disk, and rename it to `path`.

    Raises:
        WeightsError: the disk is full or the folder not writable; a partly written file is removed.
    """
    try:
        with files.replacing(path) as temporary:
            torch.save(content, temporary)
            _seal(temporary)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = reason_of(error, 120)
        raise WeightsError(
            f"cannot write {path}: {reason} (disk full or not writable?); fix that, then run again"
        ) from None
    files.remove_left(path)
    return path


def save(folder: Path, step: int, state: RunContent, *, keep_last: int = 2, keep_every: int = 0) -> Path:
    """Write step-XXXXXXXX.pt, then delete old checkpoints.

    Files of later steps are deleted, too. They exist if newer checkpoints were damaged, so that the run resumed from an
    older one and computes those steps again.

    Args:
        keep_last: number of newest checkpoints to keep.
        keep_every: also keep the checkpoints whose step is a multiple of this number; 0 is off.
    """
    path = write(folder / f"step-{step:08d}.pt", {"step": step, **state})
    earlier = [old for old in checkpoint_files(folder) if step_of(old) <= step]
    stay = {old for old in earlier if keep_every and step_of(old) % keep_every == 0} | set(earlier[-keep_last:])
    for old in checkpoint_files(folder):
        if old not in stay:
            old.unlink()
    for left in folder.glob(".step-*.tmp"):  # left by a process that was killed while writing
        left.unlink()
    return path


def load_latest(folder: Path, device: torch.device, *, quiet: bool = False) -> Checkpoint | None:
    """The content of the newest readable checkpoint, or None where the folder has none.

    Files that are truncated, damaged or not checkpoints are reported on stderr (unless `quiet`).

    Raises:
        WeightsError: there are checkpoints, but none can be read.
    """
    refused = ""
    for path in reversed(checkpoint_files(folder)):
        state = _read(path, device)
        if not isinstance(state, str):
            if refused and not quiet:
                print(f"warning: {refused}; resuming from the one before, {path.name}", file=sys.stderr)
            return state
        refused = f"{refused}; {path.name}: {state}" if refused else f"cannot read the checkpoint {path} ({state})"
    if refused:
        raise WeightsError(f"{refused}; there is no other: delete it to start over")
    return None


def step_of(path: Path) -> int:
    """The number of steps after which a checkpoint was written, from its file name."""
    return int(path.stem.removeprefix("step-"))


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoint files of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if path.stem.removeprefix("step-").isdecimal())


def _read(path: Path, device: torch.device) -> Checkpoint | str:
    """A checkpoint's content, or the reason why it cannot be read."""
    place = "cpu" if device.type == "cpu" else device  # torch.load does not know accelerate's "cpu:0"
    try:
        if not intact(path):
            return "its content does not match its checksum"
        state = torch.load(path, map_location=place, weights_only=True)
        missing = _NEEDED - state.keys()
        return f"without {', '.join(sorted(missing))}" if missing else state
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return reason_of(error, 120)


def intact(path: Path) -> bool:
    """Whether a file's content matches its checksum; True for files of older versions, which have no checksum."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _COMMENT_BYTES:
            return True  # not an archive; torch.load reports it
        file.seek(size - _COMMENT_BYTES)
        comment = file.read()
        if not comment.startswith(_MARK):
            return True
        return comment == _comment(file, size - _COMMENT_BYTES)


def _seal(path: Path) -> None:
    """Write the checksum into the archive's comment, and flush the whole file to the disk."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        comment = _comment(file, size)
        file.seek(size - 2)  # a zip archive without a comment ends with the comment's length, two zero bytes
        file.write(struct.pack("<H", len(comment)) + comment)
        file.flush()
        os.fsync(file.fileno())


def _comment(file: BinaryIO, size: int) -> bytes:
    """The comment for the archive in the first `size` bytes; its last two bytes, the comment's length, count as 0."""
    digest, left = hashlib.sha256(), size - 2
    file.seek(0)
    while left > 0:
        block = file.read(min(left, 1 << 20))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    digest.update(b"\0\0")
    return _MARK + digest.hexdigest().encode()


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk, where the system can do that for folders (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def by_player(first: C, others: dict[str, C], names: list[str], source: str) -> list[C]:
    """Return the entries of a checkpoint or dump in the order of the players `names`.

    Args:
        first: entry of the first player, which is the content itself.
        others: entries of the other players by name; empty in checkpoints of versions that trained only one model.
        source: name of the file in error messages.

    Raises:
        WeightsError: the checkpoint has other players.
    """
    if others.keys() != set(names[1:]):
        found, wanted = (", ".join([names[0], *sorted(each)]) for each in (others, names[1:]))
        raise WeightsError(
            f"{source}: expected a checkpoint with {wanted}, got one with {found}; "
            "use the recipe it was made with, or start over with --overwrite"
        )
    return [first, *(others[name] for name in names[1:])]

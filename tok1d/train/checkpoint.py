"""Training state on disk: written whole or not at all, with a checksum, and read from the newest that is whole.

A file is what torch.save writes, a zip archive, whose comment holds the SHA-256 of the archive without it: one rename
brings both in place, and torch.load reads the file as any other.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tok1d.errors import WeightsError

_MARK = b"tok1d sha256 "
_TRAILER = len(_MARK) + 64  # bytes of the archive's comment
_NEEDED = {"step", "model", "optimizer", "ema", "seconds"}


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write `content` with its checksum to a temporary name beside `path`, force it to the disk, and rename it.

    Raises:
        WeightsError: no room, or no right to write there; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        _seal(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise WeightsError(f"cannot write {path}: {reason} (disk full or not writable?); then run again") from None
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()
    return path


def save(folder: Path, step: int, state: dict[str, Any], *, keep_last: int = 2, keep_every: int = 0) -> Path:
    """Write step-XXXXXXXX.pt whole; then drop all but the newest `keep_last`, and what unbroken runs do not have.

    Files of later steps are such: a run that fell back behind an unreadable one computes them anew.

    Args:
        keep_every: checkpoints of steps that are multiples of it stay for good; 0 is none.
    """
    path = write(folder / f"step-{step:08d}.pt", {"step": step, **state})
    earlier = [old for old in _files(folder) if step_of(old) <= step]
    stay = {old for old in earlier if keep_every and step_of(old) % keep_every == 0} | set(earlier[-keep_last:])
    for old in _files(folder):
        if old not in stay:
            old.unlink()
    for left in folder.glob(".step-*.tmp"):  # of a process that was killed while it wrote
        left.unlink()
    return path


def load_latest(folder: Path, device: torch.device, *, quiet: bool = False) -> dict[str, Any] | None:
    """The content of the newest checkpoint that can be read, or None where there is no file at all.

    Those that are truncated, damaged or not ours are named on stderr (unless `quiet`).

    Raises:
        WeightsError: there are checkpoints, and none can be read.
    """
    refused = ""
    for path in reversed(_files(folder)):
        state = _read(path, device)
        if not isinstance(state, str):
            if refused and not quiet:
                print(f"warning: {refused}; going on from the one before, {path.name}", file=sys.stderr)
            return state
        refused = f"{refused}; {path.name}: {state}" if refused else f"cannot read the checkpoint {path} ({state})"
    if refused:
        raise WeightsError(f"{refused}; no other is left: delete it to start anew")
    return None


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def _files(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if path.stem.removeprefix("step-").isdecimal())


def _read(path: Path, device: torch.device) -> dict[str, Any] | str:
    """A checkpoint's content, or why it has none."""
    place = "cpu" if device.type == "cpu" else device  # accelerate's "cpu:0" is a place that torch.load does not know
    try:
        if not intact(path):
            return "its checksum does not fit its content"
        state = torch.load(path, map_location=place, weights_only=True)
        missing = _NEEDED - state.keys()
        return f"without {', '.join(sorted(missing))}" if missing else state
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return _first_line(error)


def intact(path: Path) -> bool:
    """Whether a file is what was written; files from before there were checksums are taken at their word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _TRAILER:
            return True  # torch.load tells better what this is not
        file.seek(size - _TRAILER)
        comment = file.read()
        if not comment.startswith(_MARK):
            return True
        return comment == _comment(file, size - _TRAILER)


def _seal(path: Path) -> None:
    """Put the checksum into the archive's comment, and all of the file on the disk."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        comment = _comment(file, size)
        file.seek(size - 2)  # the comment's length is what an archive without one ends with
        file.write(struct.pack("<H", len(comment)) + comment)
        file.flush()
        os.fsync(file.fileno())


def _comment(file: Any, size: int) -> bytes:
    """The comment of the archive in the first `size` bytes, of which the last two count as zeros."""
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
    """Put a rename on the disk, where folders can be synchronised (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def by_player(state: dict[str, Any], names: list[str], source: str) -> list[dict[str, Any]]:
    """What each player of a run left in a checkpoint; the first one's lies at the top, as before there were others.

    Raises:
        WeightsError: the checkpoint is of other players.
    """
    others = state.get("players", {})
    if others.keys() != set(names[1:]):
        found, wanted = (", ".join([names[0], *sorted(each)]) for each in (others, names[1:]))
        raise WeightsError(
            f"{source}: made by a training of {found}, this one trains {wanted}; "
            "use the recipe it was made with, or start anew with --overwrite"
        )
    return [state, *(others[name] for name in names[1:])]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]

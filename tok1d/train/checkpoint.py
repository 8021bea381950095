"""Training state on disk: written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tok1d.errors import WeightsError


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write `content` to a temporary name beside `path` and rename it.

    Raises:
        WeightsError: no room, or no right to write there; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise WeightsError(f"cannot write {path}: {reason} (disk full or not writable?); then run again") from None
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()
    return path


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write step-XXXXXXXX.pt whole and drop all but the newest `keep` files."""
    path = write(folder / f"step-{step:08d}.pt", {"step": step, **state})
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return path


def load_latest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint's content, or None where there is none.

    Raises:
        WeightsError: the newest file is truncated or not one of ours.
    """
    paths = sorted(folder.glob("step-*.pt"))
    if not paths:
        return None
    place = "cpu" if device.type == "cpu" else device  # accelerate's "cpu:0" is a place that torch.load does not know
    try:
        state = torch.load(paths[-1], map_location=place, weights_only=True)
        missing = {"step", "model", "optimizer", "ema", "seconds"} - state.keys()
        reason = f"without {', '.join(sorted(missing))}" if missing else ""
    except Exception as error:
        reason = _first_line(error)
    if reason:
        before = "resume from the one before" if len(paths) > 1 else "start anew"
        raise WeightsError(f"cannot read the checkpoint {paths[-1]} ({reason}); delete it to {before}")
    return state


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

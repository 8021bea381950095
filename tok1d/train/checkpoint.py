"""Training state on disk: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tok1d.errors import WeightsError


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write step-XXXXXXXX.pt beside a temporary name, rename it, and drop all but the newest `keep` files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        torch.save({"step": step, **state}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise WeightsError(f"cannot write the checkpoint {path}: {error} (disk full or not writable?)") from None
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
    try:
        return torch.load(paths[-1], map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise WeightsError(
            f"cannot read the checkpoint {paths[-1]} ({reason}); delete it to resume from the one before"
        ) from None

"""The device of this process, and its rank among the processes of torchrun."""

from __future__ import annotations

import os

import torch

from tok1d.errors import InputError, reason_of


def pick_device(name: str | None) -> str:
    """Return `name`, or by default "cuda" if a GPU is available and "cpu" otherwise; "auto" also takes "mps".

    Raises:
        InputError: the named device cannot be used.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # each backend raises errors of its own when it is missing
        raise InputError(f"device {name!r} is not usable here ({reason_of(error, limit=120)}); use cpu") from None
    return name


def process_part() -> tuple[int, int]:
    """Return (rank, number of processes) as set by torchrun; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def process_device() -> str:
    """Return this process's GPU (torchrun: the one of its local rank), or "cpu" without GPUs."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"

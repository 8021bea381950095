"""Which device and which part of the work belong to this process."""

from __future__ import annotations

import os

import torch

from tok1d.errors import InputError


def pick_device(name: str | None) -> str:
    """The asked device, or a GPU where there is one."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # every backend has its own way to be missing
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"device {name!r} is not usable here ({reason}); try --device cpu") from None
    return name


def process_part() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def process_device() -> str:
    """This process's GPU (torchrun: one each), or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"

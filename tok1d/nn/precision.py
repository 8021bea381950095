"""Arithmetic that stays in float32 in a training in half precision: bottlenecks, statistics, losses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager:
    """A block in which autocast does nothing on the device of `x`: distances are differences of large numbers."""
    if x.device.type == "meta":  # which autocast does not know
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def single(x: Tensor) -> Tensor:
    """Half precision as float32, any other tensor itself."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

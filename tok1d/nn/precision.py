"""Float32 arithmetic within mixed-precision training, for bottlenecks, statistics and losses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of `x`, for arithmetic that is too inaccurate in half precision."""
    if x.device.type == "meta":  # autocast does not support it
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def single(x: Tensor) -> Tensor:
    """A half-precision tensor as float32; any other tensor unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

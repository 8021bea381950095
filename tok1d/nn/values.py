"""Whether the values of a tensor can be checked."""

from __future__ import annotations

import torch
from torch import Tensor


def has_values(x: Tensor) -> bool:
    """Whether a tensor has values that a check can read: not on the meta device, not empty, no graph being traced.

    A traced graph (`torch.export`, `torch.compile`) contains no checks of values.
    """
    return not torch.compiler.is_compiling() and not x.is_meta and x.numel() > 0

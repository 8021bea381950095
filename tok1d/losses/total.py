"""Loss terms and their sum."""

from __future__ import annotations

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]  # images or tokens, labels, and of captioned images words
Tensors = dict[str, Tensor]


def total_loss(terms: Tensors) -> Tensor:
    """The sum of the terms named "loss..."."""
    return torch.stack([value for name, value in terms.items() if name.startswith("loss")]).sum()

"""The batches and scalars of a training step, and the total loss."""

from __future__ import annotations

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]  # images or tokens, then class ids or captions, then other entries that a model uses
Tensors = dict[str, Tensor]  # scalars by name; those named "loss..." are minimised


def total_loss(terms: Tensors) -> Tensor:
    """The sum of the terms named "loss..."."""
    return torch.stack([value for name, value in terms.items() if name.startswith("loss")]).sum()

"""Prefixes of token sequences: how many tokens are kept, and the masks that say so."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.errors import InputError


def draw_keep(
    batch: int,
    length: int,
    *,
    lowest: int = 1,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(batch,) int64, uniform over lowest..length inclusive (Semanticist draws 1..K, SMAP 0..N)."""
    return torch.randint(lowest, length + 1, (batch,), device=device, generator=generator)


def prefix_mask(keep: Tensor, length: int) -> Tensor:
    """(B,) counts -> (B, length) bool, True where the position is below the count."""
    return torch.arange(length, device=keep.device) < keep[:, None]


def resolve_keep(keep: int | Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """`keep` as (B,) int64: None keeps all, an int serves the whole batch.

    Raises:
        InputError: a count outside 0..length, or a tensor that is not (B,).
    """
    if keep is None:
        keep = length
    if isinstance(keep, int):
        keep = torch.full((batch,), keep, dtype=torch.int64, device=device)
    if keep.shape != (batch,):
        raise InputError(f"keep must be an int or a tensor of shape ({batch},), got shape {tuple(keep.shape)}")
    low, high = int(keep.min()), int(keep.max())
    if low < 0 or high > length:
        found = low if low < 0 else high
        raise InputError(f"keep must lie in 0..{length} (this model has {length} tokens), got {found}")
    return keep.to(device=device, dtype=torch.int64)

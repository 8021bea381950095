"""Fixed position tables and the resampling of learned ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Sines then cosines of `positions` at dim/2 frequencies 10000^(-k / (dim/2)). (L,) -> (L, dim) float64."""
    if dim % 2:
        raise ValueError(f"a sine-cosine table needs an even width, got {dim}")
    rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.to(torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(dim: int, height: int, width: int) -> Tensor:
    """The fixed table of DiT and MAE: first half from the column index, second half from the row index.

    Computed in float64, returned as float32 (height * width, dim), row-major. `dim` must be a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a two-dimensional sine-cosine table needs a width that is a multiple of 4, got {dim}")
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    return torch.cat([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], dim=1).float()


def resample_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resampling of a learned table of a row-major grid. (1, h * w, dim) -> (1, h' * w', dim)."""
    if old == new:
        return table
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False).to(table.dtype)
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)

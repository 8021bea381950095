"""Fixed sine-cosine positions, resampling of learned positions, and rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Sines, then cosines of `positions` (L,) at frequencies 10000^(-k / (dim/2)), k < dim/2. -> (L, dim) float64."""
    if dim % 2:
        raise ValueError(f"sine-cosine table: expected an even width, got {dim}")
    rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.to(torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_interleaved(dim: int, length: int) -> Tensor:
    """Positions of 1D tokens as in SiT: sine and cosine of a frequency in adjacent columns. (length, dim) float32."""
    sines, cosines = sincos_1d(dim, torch.arange(length)).chunk(2, dim=1)
    return torch.stack([sines, cosines], dim=-1).flatten(1).float()


def sincos_2d(dim: int, height: int, width: int) -> Tensor:
    """Positions of a grid as in DiT and MAE: first half from the column index, second half from the row index.

    Computed in float64, returned as float32 (height * width, dim), row by row. `dim` is a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"two-dimensional sine-cosine table: expected a width that is a multiple of 4, got {dim}")
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    return torch.cat([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], dim=1).float()


def resample_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample learned positions of a grid bicubically, row by row. (1, h * w, dim) -> (1, h' * w', dim)."""
    if old == new:
        return table
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False).to(table.dtype)
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)


def grid_coordinates(height: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Column and row indices of the positions of a grid, row by row, (height * width,) float32 each."""
    index = torch.arange(height * width, device=device)
    return (index % width).float(), (index // width).float()


def axial_angles(head_dim: int, columns: Tensor, rows: Tensor, theta: float = 100.0) -> Tensor:
    """Fixed rotary angles of a grid: one half of the channel pairs rotates by the column, the other by the row.

    Frequencies are theta^(-4j / head_dim) (arXiv 2403.13298, axial). (N,), (N,) -> (N, head_dim / 2).
    """
    rates = _rates(head_dim, theta).to(columns.device)
    return torch.cat([columns[:, None] * rates, rows[:, None] * rates], dim=1)


def sequence_angles(head_dim: int, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """Rotary angles position * theta^(-2i / head_dim) of a sequence. (L,) -> (L, head_dim / 2) float32."""
    if head_dim % 2:
        raise ValueError(f"rotary positions: expected an even head width, got {head_dim}")
    rates = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    return (positions[:, None] * rates).float()


def mixed_frequencies(head_dim: int, turns: Tensor, theta: float = 10.0) -> Tensor:
    """Initial frequencies of learned mixed rotary angles (RoPE-Mixed, arXiv 2403.13298).

    Args:
        turns: (depth, heads) in [0, 1); the direction of each head, as a fraction of a full turn.

    Returns:
        (2, depth, heads * head_dim / 2): [0] multiplies the column index, [1] the row index.
    """
    direction = 2 * math.pi * turns[..., None]
    rates = _rates(head_dim, theta)
    x = torch.cat([rates * direction.cos(), rates * (direction + math.pi / 2).cos()], dim=-1)
    y = torch.cat([rates * direction.sin(), rates * (direction + math.pi / 2).sin()], dim=-1)
    return torch.stack([x, y]).flatten(2)


def mixed_angles(frequencies: Tensor, heads: int, columns: Tensor, rows: Tensor) -> Tensor:
    """Rotary angles of N positions from learned frequencies (2, depth, heads * d/2). -> (depth, heads, N, d/2)
    float32."""
    x, y = frequencies.float().unflatten(-1, (heads, -1)).unsqueeze(-2)  # (depth, heads, 1, d/2)
    return columns[:, None] * x + rows[:, None] * y


def _rates(head_dim: int, theta: float) -> Tensor:
    if head_dim % 4:
        raise ValueError(
            f"two-dimensional rotary positions: expected a head width that is a multiple of 4, got {head_dim}"
        )
    return theta ** (-4 * torch.arange(head_dim // 4, dtype=torch.float32) / head_dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs (2i, 2i + 1) by angles, computed in float32 or higher precision.

    x (..., N, d); cos and sin are broadcastable to (..., N, d / 2).
    """
    a, b = x.to(torch.promote_types(x.dtype, cos.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)

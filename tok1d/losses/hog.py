"""Histograms of oriented gradients, as targets of masked feature prediction (MaskFeat, arXiv 2112.09133)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 9
EPS = 1e-5  # of the normalisation, added in squares


def hog_cells(images: Tensor, cell: int) -> Tensor:
    """Gradient orientations of every cell and channel, (B, C, H / cell, W / cell, 9), each of length 1 (or 0).

    Central differences, 0 at the border that a difference would cross; each pixel votes with its gradient's length
    for one of 9 equal bins over half a turn, from a gradient along the columns on.

    Args:
        images: (B, C, H, W) in [0, 1].
        cell: side of a square cell in pixels; divides H and W.
    """
    assert images.shape[-2] % cell == 0 and images.shape[-1] % cell == 0, f"cells of {cell}: {tuple(images.shape)}"
    x = images if images.dtype == torch.float64 else images.float()
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    bins = (torch.atan2(dy, dx).remainder(math.pi) * (BINS / math.pi)).floor().long() % BINS
    votes = torch.zeros(*x.shape, BINS, dtype=x.dtype, device=x.device)
    votes.scatter_(-1, bins[..., None], torch.hypot(dx, dy)[..., None])
    histograms = votes.unflatten(3, (-1, cell)).unflatten(2, (-1, cell)).mean((3, 5))
    return histograms / (histograms.square().sum(-1, keepdim=True) + EPS**2).sqrt()


def hog(images: Tensor, patch: int, cell: int) -> Tensor:
    """HOG of every patch: (B, C, H, W) in [0, 1] -> (B, N, (patch / cell)^2 * C * 9), patches row by row.

    A patch holds its cells row by row, a cell its channels, a channel its 9 bins; 108 numbers for colour, patch 16
    and cell 8. Without gradient.
    """
    with torch.no_grad():
        cells = hog_cells(images, cell)
        side = patch // cell
        grid = cells.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side, 9)
        return grid.permute(0, 2, 4, 3, 5, 1, 6).flatten(3).flatten(1, 2)

"""Histograms of oriented gradients (HOG), as targets of masked feature prediction (MaskFeat, arXiv 2112.09133)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 9
EPS = 1e-5  # its square is added to squared norms


def hog_cells(images: Tensor, cell: int) -> Tensor:
    """Histograms of gradient orientations of every cell and channel, (B, C, H / cell, W / cell, 9), of norm 1 or 0.

    Gradients are central differences, 0 across the border of the image. Every pixel adds the norm of its gradient to
    one of 9 bins of 20 degrees each; bin 0 begins at gradients along the x axis.

    Args:
        images: (B, C, H, W) in [0, 1].
        cell: side of a square cell in pixels, which divides H and W.
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
    """HOG of every patch: images (B, C, H, W) in [0, 1] -> (B, N, (patch / cell)^2 * C * 9), patches row by row.

    The features of a patch are ordered (cell row, cell column, channel, bin): 108 for colour images with patch 16 and
    cell 8. Without gradient.
    """
    with torch.no_grad():
        cells = hog_cells(images, cell)
        side = patch // cell
        grid = cells.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side, 9)
        return grid.permute(0, 2, 4, 3, 5, 1, 6).flatten(3).flatten(1, 2)

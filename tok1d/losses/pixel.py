"""Errors of pixels, per image: mean squared error and PSNR."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.errors import DataError


def mse_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference (B,) of pairs of images (B, ...), clamped to [0, 1]; in float32 or float64.

    Raises:
        DataError: the batches have different shapes.
    """
    if a.shape != b.shape:
        raise DataError(
            f"expected image batches of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}; resize one of them"
        )
    # Squares of small differences underflow in half precision.
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    difference = a.to(dtype).clamp(0, 1) - b.to(dtype).clamp(0, 1)
    return difference.square().flatten(1).mean(dim=1)


def psnr_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pairs of images (B, C, H, W) in [0, 1]; inf for equal ones."""
    return -10 * torch.log10(mse_per_image(a, b))

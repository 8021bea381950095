"""Errors of pixels, per image."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.errors import DataError


def mse_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each pair of images `(B, ...)`, clamped to [0, 1]; `(B,)`, float32 or wider."""
    if a.shape != b.shape:
        raise DataError(
            f"two image batches of the same shape are compared, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}; resize one of them"
        )
    # Half precision has no room for squares of small differences; float64 stays float64.
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    difference = a.to(dtype).clamp(0, 1) - b.to(dtype).clamp(0, 1)
    return difference.square().flatten(1).mean(dim=1)


def psnr_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB `(B,)` of image pairs `(B, C, H, W)`, data range 1; inf where equal."""
    return -10 * torch.log10(mse_per_image(a, b))

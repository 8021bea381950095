"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv 2006.10738).

Images (B, C, H, W) are in [-1, 1]; what is shifted in or cut out is 0, which is mid grey there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Group = Literal["color", "translation", "cutout"]
GROUPS: tuple[Group, ...] = get_args(Group)


def brightness(images: Tensor, u: Tensor) -> Tensor:
    """Images plus u - 1/2, for u (B, 1, 1, 1) in [0, 1)."""
    return images + (u - 0.5)


def saturation(images: Tensor, u: Tensor) -> Tensor:
    """Distances from the mean of the channels times 2u; grey images stay as they are."""
    mean = images.mean(1, keepdim=True)
    return (images - mean) * (2 * u) + mean


def contrast(images: Tensor, u: Tensor) -> Tensor:
    """Distances from the mean of each image times u + 1/2."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (u + 0.5) + mean


def translate(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Pixel (y, x) becomes what was at (y + dy, x + dx), or 0 where that is outside; dy, dx (B, 1, 1) int64."""
    # Rows, then columns, by gather: its gradient adds at most one number a pixel, so it is the same in every run.
    for dim, shift in ((2, dy), (3, dx)):
        size = images.shape[dim]
        source = (torch.arange(size, device=images.device) + shift[:, :, 0]).view(
            len(images), 1, *((size, 1) if dim == 2 else (1, size))
        )
        inside = (source >= 0) & (source < size)
        images = images.gather(dim, source.clamp(0, size - 1).expand_as(images)) * inside
    return images


def cut_out(images: Tensor, oy: Tensor, ox: Tensor, side: int) -> Tensor:
    """Zeros in a square of `side` pixels from (oy - side // 2, ox - side // 2) on; oy, ox (B, 1, 1) int64."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None] - (oy - side // 2)
    columns = torch.arange(width, device=images.device)[None] - (ox - side // 2)
    hole = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return images * ~hole[:, None]


def augment(
    images: Tensor,
    *,
    groups: Sequence[Group] = GROUPS,
    probability: float = 0.5,
    cutout: float = 0.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], each group of changes applied to all of them or to none; differentiable.

    Args:
        groups: color (brightness, saturation, contrast), translation by up to an eighth of the size, cutout.
        probability: of each group; one draw a group and call.
        cutout: side of the square over the height of the image; it may hang over the border.
        generator: of the draws, on the CPU, so that they are the same on every device; default: the global one.
    """
    batch, height, width = len(images), images.shape[-2], images.shape[-1]

    def uniform() -> Tensor:
        return torch.rand(batch, 1, 1, 1, generator=generator).to(images)

    def integer(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (batch, 1, 1), generator=generator).to(images.device)

    for group in groups:
        if torch.rand((), generator=generator) >= probability:
            continue
        if group == "color":
            for change in (brightness, saturation, contrast):
                images = change(images, uniform())
        elif group == "translation":
            dy, dx = (int(size / 8 + 0.5) for size in (height, width))
            images = translate(images, integer(-dy, dy), integer(-dx, dx))
        else:
            side = int(cutout * height + 0.5)
            # A square of even side has its centre between two pixels: one place more.
            oy, ox = (integer(0, size - side % 2) for size in (height, width))
            images = cut_out(images, oy, ox, side)
    return images

"""Differentiable augmentation of a discriminator's input (DiffAugment, arXiv 2006.10738).

Images (B, C, H, W) are in [-1, 1]; pixels that are shifted in or cut out are 0, mid grey.
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
    """Multiply differences from the mean over channels by 2u, for u (B, 1, 1, 1) in [0, 1)."""
    mean = images.mean(1, keepdim=True)
    return (images - mean) * (2 * u) + mean


def contrast(images: Tensor, u: Tensor) -> Tensor:
    """Multiply differences from the mean of each image by u + 1/2, for u (B, 1, 1, 1) in [0, 1)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (u + 0.5) + mean


def translate(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """The pixel at (y, x) becomes that at (y + dy, x + dx), or 0 outside the image; dy, dx (B, 1, 1) int64."""
    # Two gathers, because their gradient is deterministic: it has at most one summand per pixel.
    for dim, shift in ((2, dy), (3, dx)):
        size = images.shape[dim]
        source = (torch.arange(size, device=images.device) + shift[:, :, 0]).view(
            len(images), 1, *((size, 1) if dim == 2 else (1, size))
        )
        inside = (source >= 0) & (source < size)
        images = images.gather(dim, source.clamp(0, size - 1).expand_as(images)) * inside
    return images


def cut_out(images: Tensor, oy: Tensor, ox: Tensor, side: int) -> Tensor:
    """Set a square of `side` pixels with its upper left corner at (oy, ox) - side // 2 to 0; oy, ox (B, 1, 1) int64."""
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
    """Augment images (B, C, H, W) in [-1, 1], differentiably. A group is applied to the whole batch or not at all.

    Args:
        groups: color (brightness, saturation, contrast), translation by up to 1/8 of the size, cutout.
        probability: probability of each group.
        cutout: side of the square over the height of the image; parts of it may lie outside the image.
        generator: random numbers, on the CPU, so that they are the same on every device; default: the global generator.
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
            # A square of even side is centred between two pixels and has one more position.
            oy, ox = (integer(0, size - side % 2) for size in (height, width))
            images = cut_out(images, oy, ox, side)
    return images

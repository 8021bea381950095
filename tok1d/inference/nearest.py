"""The nearest training image of an image, by the distance of their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tok1d.data.base import ImageSet
from tok1d.data.transforms import without_border

MOST_BYTES = 2**28  # of all training images, with a byte per number
_ROWS = 4096  # training images in a matrix product
_READ = 250  # images in a batch


def too_many(images: ImageSet) -> str:
    """Why the nearest of these images are not searched: they are more than `MOST_BYTES`; "" if they are not."""
    size = len(images) * images.batch([0])[0].numel()
    if size <= MOST_BYTES:
        return ""
    return f"{len(images):,} training images of this size are {size:,} numbers, more than {MOST_BYTES:,}"


class Training:
    """Training images, among which the nearest one of an image is found by the Euclidean distance of all pixels.

    Args:
        images: all training images (N, C, H, W), without augmentation.
        pad: width of the images' border, in pixels, that is not compared.
    """

    def __init__(self, images: ImageSet, pad: int = 0, device: torch.device | str = "cpu") -> None:
        self.images, self.pad = images, pad
        batches = (images.batch(numbers)[0] for numbers in batches_of(images))
        rows = [without_border(x, pad).flatten(1).mul(255).round().byte() for x in batches]
        self.pixels = torch.cat(rows).to(device)

    def nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) of images (B, C, H, W) in [0, 1] to their nearest training images, and numbers (B,) of these.

        The distance is the root of the mean squared difference of all pixels and channels.
        """
        x = without_border(images, self.pad).flatten(1).to(self.pixels.device, torch.float32).clamp(0, 1)
        best, where = x.new_full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for start in range(0, len(self.pixels), _ROWS):
            rows = self.pixels[start : start + _ROWS].float().div_(255)
            partial = rows.square().sum(1) - 2 * x @ rows.T  # the squared distance without the part of x
            least, index = partial.min(1)
            where = torch.where(least < best, index + start, where)
            best = torch.minimum(best, least)
        # The squared distance again, without cancellation: copies have distance 0.
        found = self.pixels[where].float().div_(255)
        return (x - found).square().mean(1).sqrt().cpu(), where.cpu()


def batches_of(images: ImageSet) -> Iterator[range]:
    """The numbers of all images of a set, in batches."""
    return (range(start, min(start + _READ, len(images))) for start in range(0, len(images), _READ))

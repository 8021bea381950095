"""Subsets of image sets."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from tok1d.data.base import ImageSet, Indices
from tok1d.data.images import ArrayImages
from tok1d.data.lazy import LazyImages
from tok1d.data.splits import spread

T = TypeVar("T")


class Subset:
    """The images of a set at `indices`, in that order.

    Args:
        how: how they were chosen; part of the fingerprint.
    """

    def __init__(self, images: ImageSet, indices: Indices, how: str) -> None:
        self.images, self.indices, self.how = images, np.asarray(indices, dtype=np.int64), how
        self.num_classes, self.class_names = images.num_classes, images.class_names
        captions = getattr(images, "captions", [])
        self.captions = [captions[i] for i in self.indices] if captions else []

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the name of an image in the whole set.

        Raises:
            TypeError: the images are in memory and have no names.
        """
        if not isinstance(self.images, LazyImages | Subset):
            raise TypeError(f"{type(self.images).__name__}: images in memory have no names")
        return self.images.name(self.indices[index])

    def batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """See `ImageSet.batch`."""
        return self.images.batch(self.indices[np.asarray(indices)], seed=seed, epoch=epoch)

    def captioned_batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor, list[str]]:
        """See `ImageSet.captioned_batch`."""
        return self.images.captioned_batch(self.indices[np.asarray(indices)], seed=seed, epoch=epoch)

    def fingerprint(self) -> str:
        return f"{self.how} {len(self)} of {self.images.fingerprint()}"


def underlying(images: T | Subset) -> T | ImageSet:
    """Return the set that nested subsets are taken from, or `images` themselves."""
    found: T | ImageSet | Subset = images
    while isinstance(found, Subset):
        found = found.images
    return found


def subset(images: ImageSet, num: int | None) -> ImageSet:
    """Return `num` images of a set; the set itself if it has no more, or if `num` is None.

    These are the first images of Fashion-MNIST, which is in random order, and evenly spaced images of any other set,
    which may be sorted by class.
    """
    if num is None or num >= len(images):
        return images
    whole = underlying(images)
    if isinstance(whole, ArrayImages) and whole.shuffled:
        return Subset(images, range(num), "first")
    return Subset(images, spread(range(len(images)), num), "spread")

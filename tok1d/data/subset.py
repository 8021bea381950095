"""Some images of a set that are to stand for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tok1d.data.decoded import whole_set
from tok1d.data.images import ArrayImages, ImageSet
from tok1d.data.splits import spread


class Subset:
    """The images of a set at `indices`, in that order; `how` they were chosen is part of the fingerprint."""

    def __init__(self, images: Any, indices: Sequence[int] | np.ndarray, how: str) -> None:
        self.images, self.indices, self.how = images, np.asarray(indices, dtype=np.int64), how
        self.num_classes, self.class_names = images.num_classes, images.class_names
        captions = getattr(images, "captions", [])
        self.captions = [captions[i] for i in self.indices] if captions else []

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """What the whole set calls an image."""
        return str(self.images.name(self.indices[index]))

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.images.batch(self.indices[np.asarray(indices)], seed=seed, epoch=epoch)
        return found

    def captioned_batch(
        self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor, list[str]]:
        chosen = self.indices[np.asarray(indices)]
        found: tuple[Tensor, Tensor, list[str]] = self.images.captioned_batch(chosen, seed=seed, epoch=epoch)
        return found

    def fingerprint(self) -> str:
        return f"{self.how} {len(self)} of {self.images.fingerprint()}"


def subset(images: ImageSet, num: int | None) -> ImageSet:
    """`num` images of a set, or the set itself where it has no more.

    Of arrays (Fashion-MNIST, which is in random order) the first; of any other set, which may be sorted by class, such
    that are spread evenly over it.
    """
    if num is None or num >= len(images):
        return images
    if isinstance(whole_set(images), ArrayImages):
        return Subset(images, range(num), "first")
    return Subset(images, spread(range(len(images)), num), "spread")

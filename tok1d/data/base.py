"""The interface of image sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

Indices = Sequence[int] | np.ndarray


class ImageSet(Protocol):
    """Images with labels and captions, read in batches; augmentation is a pure function of (seed, epoch, index)."""

    class_names: list[str]
    captions: list[str]  # one for each image, "" if it has none

    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images, float (B, C, H, W) in [0, 1], and labels, int64 (B,); a pure function of its arguments.

        With a transform of V views, each image gives V consecutive rows, with equal labels.
        """
        ...

    def captioned_batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, followed by the caption of every row."""
        ...

    def fingerprint(self) -> str:
        """Return a string that identifies the images and their transform, stable across runs and machines."""
        ...

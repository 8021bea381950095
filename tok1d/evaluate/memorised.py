"""Memorisation: whether samples are nearer to training images than test images are, by distance of pixels.

A sample counts as memorised if its nearest training image is nearer than that of the median test image. Blurred images
are near to many images, so the same share is stated for reconstructions of test images, which no generator drew: only
a share above theirs shows that training images are repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from tok1d.data.base import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import Tok1dError
from tok1d.evaluate.measures import Number
from tok1d.inference.nearest import Training, batches_of, too_many

NUM_TEST = 500  # test images, spread evenly over the set

Reconstruct = Callable[[ImageSet, range], Tensor]  # reconstructions (B, C, H, W) of images of these numbers


class Memorisation:
    """The share of samples that are nearer to a training image than the median test image is.

    Args:
        train, test: open the images of the splits without augmentation; called when they are first needed.
        pad: see `Training`.
    """

    def __init__(
        self,
        train: Callable[[], ImageSet],
        test: Callable[[], ImageSet],
        pad: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._train, self._test, self.pad, self.device = train, test, pad, device

    @cached_property
    def images(self) -> ImageSet:
        """The training images."""
        return self._train()

    @cached_property
    def training(self) -> Training:
        return Training(self.images, self.pad, self.device)

    @cached_property
    def test(self) -> ImageSet:
        """At most `NUM_TEST` test images."""
        return subset(self._test(), NUM_TEST)

    @cached_property
    def missing(self) -> str:
        """Why nothing can be measured; "" if it can."""
        try:
            if not (len(self.images) and len(self.test)):
                return "expected training and test images, got none of one"
        except Tok1dError as error:
            return str(error)
        return too_many(self.images)

    @cached_property
    def median(self) -> float:
        """The distance of the median test image to its nearest training image."""
        return float(self._distances(lambda images, numbers: images.batch(numbers)[0]).median())

    def number(self, distances: Sequence[Tensor], reconstruct: Reconstruct) -> Number:
        """The share of samples, from their distances in batches (B,).

        Args:
            reconstruct: reconstructs test images from as many tokens as the samples have.
        """
        if self.missing:
            return Number("memorised", None, note=self.missing)
        control = float((self._distances(reconstruct) < self.median).double().mean())
        note = (
            f"nearer in pixels to one of {len(self.images)} training images than the median of {len(self.test)} test "
            f"images; of the reconstructions of these {control:.3f}"
        )
        return Number("memorised", float((torch.cat([*distances]) < self.median).double().mean()), note=note)

    def _distances(self, images_of: Reconstruct) -> Tensor:
        """Distances (N,) of the test images, or what `images_of` returns for them."""
        found = [self.training.nearest(images_of(self.test, numbers))[0] for numbers in batches_of(self.test)]
        return torch.cat(found)

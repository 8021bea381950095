"""The classes and labels of an image set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tok1d.config.classes import Classes, shortened
from tok1d.data.arrow import ArrowImages
from tok1d.data.base import ImageSet
from tok1d.data.shards import ShardImages
from tok1d.data.subset import underlying

IMAGES = "the images"  # owner of `Classes`


def image_classes(images: ImageSet) -> Classes:
    """The classes of an image set. Shards and saved data sets that only number their classes have no names."""
    names = tuple(images.class_names)
    numbered = isinstance(underlying(images), ShardImages | ArrowImages) and all(map(str.isdecimal, names))
    return Classes(images.num_classes, () if numbered else names, IMAGES)


def mapped(labels: Tensor, places: Sequence[int] | None) -> Tensor:
    """Labels (N,) as the ids of another list of classes, see `Agreement.places`; unchanged for None."""
    return labels if places is None else torch.tensor(places, device=labels.device)[labels]


def classes_text(images: ImageSet, most: int = 20) -> str:
    """One line: the number of classes and their names in the order of their ids, "3 classes: cat, dog, owl"."""
    count = images.num_classes
    return f"{count:,} class{'es' * (count != 1)}: {shortened(images.class_names, most)}"


def say_classes(images: ImageSet) -> None:
    """Print the classes in the order of their ids."""
    print(classes_text(images))


def say_splits(train: ImageSet, test: ImageSet) -> None:
    """Print the numbers of images of a training, and its classes in the order of their ids."""
    print(f"{len(train):,} training and {len(test):,} test images, {classes_text(train)}")

"""The interface of feature networks, and the names of the metrics that are computed from their features.

The names fid, sfid, kid and inception_score are reserved for the published Inception network; see `metric_name`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tok1d.config.classes import Agreement, Classes, agreement
from tok1d.data.transforms import without_border
from tok1d.errors import DataError

INCEPTION = "inception"
KINDS = "inception[:FILE], efficientnet-lite0, timm:NAME[:SIZE][:FILE] or model:FOLDER (or a bundled classifier's name)"
# The name of a metric with any other network, before "@" and the network's name.
_OTHERWISE = {"fid": "fd", "rfid": "fd", "gfid": "fd", "sfid": "sfd", "kid": "kd", "inception_score": "score"}


@dataclass(frozen=True)
class Features:
    """The features of a batch of images, without gradient.

    Args:
        pooled: (B, F), one vector for each image.
        spatial: (B, S) for sFID; Inception only. The first 7 channels of mixed_6/conv, 17 x 17, flattened in the order
            height, width, channel as in the ADM suite (S = 2023).
        logits: (B, C) of a classifier; None for other networks.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)


class FeatureNetwork(Protocol):
    """A frozen network on one device.

    Attributes:
        name: part of the metrics' names. label: "name@hash of the weights", for records.
        dim, spatial_dim: lengths of the pooled and of the spatial features; spatial_dim is 0 without them.
        num_classes: number of logits; 0 without logits.
        classifies: whether the logits are of classes that images can be labelled with.
        class_names: names of these classes, in the order of the logits; empty if they are unknown.
        image_size, channels: of the images that it accepts; None if it accepts and converts others.
        pad: width of the images' border, in pixels, that it cuts off.
    """

    name: str
    label: str
    dim: int
    spatial_dim: int
    num_classes: int
    classifies: bool
    class_names: tuple[str, ...]
    image_size: int | None
    channels: int | None
    pad: int

    def __call__(self, images: Tensor) -> Features:
        """Features of images (B, C, H, W) in [0, 1], on the network's device; raises DataError on other shapes."""
        ...


class FrozenNetwork:
    """Base class of the feature networks. Images are cut, clamped, rounded and measured in float32 without gradient.

    Args:
        digest: hash of the weights, at least 12 hex digits.
        device: the device of the network, to which images are moved.
        eight_bit: round images to 256 levels first. Tools that read image files measure rounded images.
        others: see `FeatureNetwork`.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        digest: str,
        *,
        device: str | torch.device,
        dim: int,
        spatial_dim: int = 0,
        num_classes: int = 0,
        classifies: bool = False,
        image_size: int | None = None,
        channels: int | None = None,
        pad: int = 0,
        eight_bit: bool = True,
    ) -> None:
        self.name, self.label = name, f"{name}@{digest[:12]}"
        self.device = torch.device(device)
        self.dim, self.spatial_dim, self.num_classes, self.classifies = dim, spatial_dim, num_classes, classifies
        self.image_size, self.channels, self.pad, self.eight_bit = image_size, channels, pad, eight_bit

    @property
    def rounding(self) -> str:
        """The rounding of images before the network, as records and references state it."""
        return "rounded to 8 bits" if self.eight_bit else "not rounded"

    def agreement(self, classes: Classes) -> Agreement:
        """How the classes of images correspond to those of a classifier; other networks never agree.

        Args:
            classes: of the images' labels; 0 classes if they are not stated.
        """
        if not self.classifies or not classes.num:
            return Agreement(self.classifies)
        return agreement(classes, Classes(self.num_classes, self.class_names, f"the classifier {self.name}"))

    def no_labels(self, found: Agreement, *, asked: bool) -> str:
        """Why there is no label agreement; "" if it was not asked for and no classes differ.

        Args:
            found: from `agreement`.
        """
        if found.said and not found.agrees:
            return found.said
        if not asked:
            return ""
        if self.classifies:
            return "the images have no labels"
        return f"{self.name} does not classify into the labels of the images"

    def measure(self, images: Tensor) -> Features:
        """Features of images (B, C, h, w) in [0, 1] on the device, after the border was cut off."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, H, W) in [0, 1].

        Raises:
            DataError: images of a shape that the network does not accept.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[-2:]) <= 2 * self.pad:
            raise DataError(
                f"{self.name}: expected images (B, 1 or 3, H, W) larger than a border of {self.pad} pixels, got "
                f"{tuple(images.shape)}"
            )
        images = without_border(images, self.pad).to(self.device, torch.float32).clamp(0, 1)
        if self.eight_bit:
            images = (images * 255).round() / 255
        with torch.autocast(self.device.type, enabled=False):
            return self.measure(images)


def to_rgb(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) as (B, 3, H, W): grey is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def metric_name(metric: str, network: str) -> str:
    """The name of a metric that is measured with a network ("name" or "name@hash").

    With Inception the metric keeps its name (fid, rfid, gfid, sfid, kid, inception_score, precision, ...). With any
    other network it is fd@name, sfd@name, kd@name, score@name, precision@name and so on.
    """
    name = network.partition("@")[0]
    return metric if name == INCEPTION else f"{_OTHERWISE.get(metric, metric)}@{name}"


def default_network(data: str) -> str:
    """The default feature network for a data set: Inception; for Fashion-MNIST the bundled classifier."""
    return "model:fashion-mnist-cnn" if data == "fashion_mnist" else INCEPTION

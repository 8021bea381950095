"""Feature networks, whose features distances between sets of images use. Their name is part of the metric's name.

Only the published Inception graph carries the names fid, sfid, kid and inception_score (`metric_name`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tok1d.data.transforms import without_border
from tok1d.errors import DataError

INCEPTION = "inception"
KINDS = "inception[:FILE], timm:NAME[:SIZE][:FILE] or model:FOLDER (or a bundled classifier's name)"
# What a metric is called on any other network, before "@" and the network's name.
_OTHERWISE = {"fid": "fd", "rfid": "fd", "gfid": "fd", "sfid": "sfd", "kid": "kd", "inception_score": "score"}


@dataclass(frozen=True)
class Features:
    """The features of a batch of images, without gradient.

    Args:
        pooled: (B, F), one vector an image.
        spatial: (B, S) for sFID, of Inception only: the first 7 channels of mixed_6/conv, 17 x 17, flattened in the
            order height, width, channel as the ADM suite does (S = 2023).
        logits: (B, C) of a classifier.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)


class FeatureNetwork(Protocol):
    """A frozen network on one device.

    `name` goes into the metrics' names, `label` is name@hash of the weights, for records. `num_classes` is 0 without
    logits; `classifies` says whether the logits' order is that of the data's labels, so that labels can be compared.
    `image_size` is the only size of images it takes, `channels` the only number of theirs, None where it converts;
    `pad` is the border that it does not see.
    """

    name: str
    label: str
    dim: int
    spatial_dim: int
    num_classes: int
    classifies: bool
    image_size: int | None
    channels: int | None
    pad: int

    def __call__(self, images: Tensor) -> Features:
        """Features of images (B, C, H, W) in [0, 1], on the network's device; raises DataError on other shapes."""
        ...


class FrozenNetwork:
    """What every feature network shares: border, clamping, rounding to 8 bits, full precision, no gradient.

    Args:
        digest: of the weights, at least 12 hex digits.
        device: where it computes; images are moved there.
        eight_bit: round images to 256 levels first, as every suite that reads image files does.
    """

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

    def measure(self, images: Tensor) -> Features:
        """Features of images (B, C, h, w) in [0, 1] without border, on the device."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, H, W) in [0, 1].

        Raises:
            DataError: images of another shape than the network takes.
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
    """What a metric is called on a network ("name" or "name@hash").

    On Inception it keeps its name (fid, rfid, gfid, sfid, kid, inception_score, precision, ...); on any other network
    it is fd@name, sfd@name, kd@name, score@name, precision@name and so on.
    """
    name = network.partition("@")[0]
    return metric if name == INCEPTION else f"{_OTHERWISE.get(metric, metric)}@{name}"


def default_network(data: str) -> str:
    """The default feature network for a data set: for Fashion-MNIST its bundled classifier."""
    return "model:fashion-mnist-cnn" if data == "fashion_mnist" else INCEPTION

"""Frozen teachers: networks whose patch features are training targets of other networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import InputError

Features = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> patch features (B, N, D)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TeacherName:
    """The teacher that a part of a model needs. `zoo.pretrained.teachers.give_teachers` loads it.

    Args:
        name: efficientnet-lite0, a network of timm, a bundled classifier or a model folder.
        weights: a file or folder with weights of a timm network; None: timm's download; "random": random weights.
        image_size: side of the network's input images, in pixels.
    """

    name: str
    weights: str | None = None
    image_size: int = 224

    def missing(self) -> InputError:
        """The error to raise in a loss if this teacher is not loaded."""
        return InputError(
            f"teacher {self.name}: expected the loaded network, got none; call "
            "tok1d.zoo.pretrained.teachers.give_teachers(model) before computing losses"
        )


class Teacher:
    """A frozen network and the preparation of its input images.

    It is not an `nn.Module`: the weights of a teacher stay out of the model's state dict, optimizer, averages and
    checkpoints, and `model.train()` leaves the teacher in eval mode.

    Args:
        network: prepared images (B, C, S, S) -> patch features (B, N, D), row by row.
        image_size: S, in pixels.
        mean, std: one number per channel, by which images in [0, 1] are standardised.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.image_size = image_size
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the input (B, C', S, S) of the network.

        As in Semanticist's release they are standardised first, then resized bicubically without antialiasing. Grey
        images are repeated for a teacher of colour images.

        Raises:
            InputError: images with another number of channels.
        """
        channels = len(self.mean)
        if images.shape[1] not in (1, channels):
            raise InputError(
                f"teacher: expected images of {channels} channels, got {tuple(images.shape)}; choose another teacher"
            )
        self._move(images.device)
        images = (images - self.mean) / self.std  # broadcast: a grey channel is repeated
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size=size, mode="bicubic", align_corners=False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Patch features (B, N, D) of images (B, C, H, W) in [0, 1], without gradient, on the images' device."""
        return self.network(self.prepare(images))

    def _move(self, device: torch.device) -> None:
        if self.mean.device != device:  # `to` of a model does not move its teacher
            self.network.to(device)
            self.mean, self.std = self.mean.to(device), self.std.to(device)


def empty_features(num_patches: int, dim: int) -> Features:
    """A function from images (B, C, H, W) to an empty tensor (B, num_patches, dim), in place of a teacher."""
    return lambda images: images.new_empty(len(images), num_patches, dim)

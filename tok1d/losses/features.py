"""Frozen teachers: networks whose patch features other networks learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TeacherName:
    """Which frozen network a part of a model learns from; what builds the training loads it and sets `teacher`.

    Args:
        name: a timm vision transformer, a bundled classifier or a model folder.
        weights: a file or folder for a timm network; None: what timm downloads; "random": untrained ones.
        image_size: side of the images that the network receives, in pixels.
    """

    name: str
    weights: str | None = None
    image_size: int = 224

    def missing(self) -> InputError:
        """The error of a loss that needs this teacher and was not given one."""
        return InputError(
            f"teacher {self.name}: expected the loaded network, got none; call "
            "tok1d.zoo.pretrained.teachers.give_teachers(model) before computing losses"
        )


class Teacher:
    """A frozen network together with the images it wants to see.

    It is no `nn.Module`: the weights of a teacher that a model holds are not the model's, so they reach no state
    dict, optimizer, average or checkpoint, and `model.train()` leaves the teacher in eval mode.

    Args:
        network: prepared images (B, C, S, S) -> patch features (B, N, D), row by row.
        image_size: S, in pixels.
        mean, std: of the network's images in [0, 1], one number a channel.
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
        """(B, C, H, W) in [0, 1] -> what the network sees: standardised, then resampled as Semanticist's release does.

        Grey images are repeated for a colour teacher. Raises InputError on any other number of channels.
        """
        channels = len(self.mean)
        if images.shape[1] not in (1, channels):
            raise InputError(
                f"the alignment teacher sees {channels} channels, got images {tuple(images.shape)}; choose another"
            )
        self._move(images.device)
        images = (images - self.mean) / self.std  # broadcast: one grey channel becomes the teacher's
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size=size, mode="bicubic", align_corners=False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Patch features (B, N, D) of images (B, C, H, W) in [0, 1], without gradient, on the images' device."""
        return self.network(self.prepare(images))

    def _move(self, device: torch.device) -> None:
        if self.mean.device != device:  # once: a model's own `to` does not know its teacher
            self.network.to(device)
            self.mean, self.std = self.mean.to(device), self.std.to(device)

"""The squared difference of a classifier's logits: the perceptual loss of TiTok, with ConvNeXt-S (arXiv 2406.07550)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224  # side of its input images, in pixels


class LogitsDistance(nn.Module):
    """A frozen classifier, always in eval mode, for images (B, 1 or 3, H, W) in [0, 1].

    Args:
        network: a trained classifier, standardised images (B, 3, side, side) -> logits (B, classes).
        side: side of its input images, in pixels.
        mean, std: one number per channel, by which images in [0, 1] are standardised.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        side: int = SIDE,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LogitsDistance:
        """As `nn.Module.train`, but it stays in eval mode."""
        return super().train(False)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, classes) in float32. Images are resized bilinearly, with antialiasing where they shrink."""
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.std).float()  # broadcast: a grey channel is repeated

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean squared difference (B,) of the logits of pairs of images."""
        return (self.logits(a) - self.logits(b)).square().mean(1)

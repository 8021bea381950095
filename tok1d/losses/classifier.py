"""The squared difference of a classifier's logits: TiTok's perceptual loss, with ConvNeXt-S (arXiv 2406.07550).

Only a trained network counts. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224  # pixels of the images it sees


class LogitsDistance(nn.Module):
    """Frozen, in eval mode for ever. Images (B, 1 or 3, H, W) in [0, 1], resized bilinearly to the network's size.

    Args:
        network: standardised images (B, 3, side, side) -> logits (B, classes).
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
        """Stays in eval mode."""
        return super().train(False)

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) in float32; smaller images are enlarged, larger ones smoothed as they shrink."""
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.std).float()  # broadcast: a grey channel becomes three

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean squared difference of two images' logits (B,)."""
        return (self.logits(a) - self.logits(b)).square().mean(1)

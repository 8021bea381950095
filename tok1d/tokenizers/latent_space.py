"""Where a diffusion decoder paints."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class LatentSpace(Protocol):
    """A fixed map between images in [0, 1] and the latents a decoder denoises."""

    channels: int
    factor: int  # pixels per latent position along each axis

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> latents (B, channels, H / factor, W / factor)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, roughly in [0, 1], not clamped."""
        ...


class Pixels(nn.Module):
    """The images themselves, moved to [-1, 1]."""

    factor = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def encode(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents + 1) / 2

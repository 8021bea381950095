"""The sine pixel head of MAETok's release, whose outputs are not arranged as images; used by the parity tests."""

from __future__ import annotations

from torch import Tensor, nn

FREQUENCY = 30.0


class SirenHead(nn.Module):
    """Two linear layers with sin(30 x) after each; (B, N, dim) -> (B, C, H, H), which needs H = patch^2.

    The release reshapes the outputs to an image without moving patches to their positions.
    """

    def __init__(self, dim: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, image_size * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = (FREQUENCY * self.fc2((FREQUENCY * self.fc1(x)).sin())).sin()
        return x.reshape(len(x), self.channels, self.image_size, self.image_size)

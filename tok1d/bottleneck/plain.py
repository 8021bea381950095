"""The bottleneck of a plain autoencoder, and of MAETok: one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from tok1d.bottleneck.base import Bottleneck, Terms
from tok1d.nn.precision import full_precision


class Plain(Bottleneck):
    """A linear layer to the token width, without a loss (MAETok, arXiv 2502.03444, section 3.1).

    It runs in the precision of the weights, under autocast as well.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim)

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> tokens (B, L, C), and no scalars."""
        return self.encode(features), {}

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, C)."""
        with full_precision(features):
            return self.proj(features.to(self.proj.weight.dtype))

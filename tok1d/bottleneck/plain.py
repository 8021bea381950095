"""MAETok's bottleneck: a linear layer and nothing else.

Bottlenecks of this kind (plain, KL, VQ, SoftVQ) are called on encoder states (B, L, dim) in training and give what the
decoder reads (B, L, C) and scalars, of which those named "loss_..." are weighted and to be added. `encode` gives the
tokens, without drawing anything; `embed` what the decoder reads of tokens. `vocab_size` is set where tokens are ids.
"""

from __future__ import annotations

from torch import Tensor, nn

from tok1d.nn.precision import full_precision

Terms = dict[str, Tensor]


class Plain(nn.Module):
    """Linear to the token width: the plain autoencoder (MAETok, section 3.2). No loss of its own.

    In the precision of the weights, also under autocast.
    """

    vocab_size: int | None = None

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim)

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> (B, L, C)."""
        return self.encode(features), {}

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, C)."""
        with full_precision(features):
            return self.proj(features.to(self.proj.weight.dtype))

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens are what the decoder reads. (B, L, C) -> (B, L, C)."""
        return tokens

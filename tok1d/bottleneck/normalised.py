"""Semanticist's bottleneck: every token is standardised on its own."""

from __future__ import annotations

from torch import Tensor, nn

from tok1d.nn.precision import full_precision


class Normalised(nn.Module):
    """Linear to the token width, then, per token over its channels, (x - mean) / std.

    The std is the unbiased one (n - 1) and, by default, there is no epsilon: LayerNorm differs from this by
    sqrt(D / (D - 1)). Being per token, it commutes with dropping later tokens. All this is in the precision of the
    weights, also under autocast: statistics of half-precision tokens would not be those of the same tokens in a cache.

    Args:
        dim: encoder width.
        token_dim: channels D of a token, at least 2 when `normalise` is on.
        normalise: off leaves the linear projection.
        eps: added to the std.
    """

    def __init__(self, dim: int, token_dim: int, *, normalise: bool = True, eps: float = 0.0) -> None:
        super().__init__()
        if normalise and token_dim < 2:
            raise ValueError(f"a normalised token needs at least 2 channels, got {token_dim}")
        self.proj = nn.Linear(dim, token_dim)
        self.normalise = normalise
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, dim) -> (B, K, D)."""
        with full_precision(features):
            tokens = self.proj(features.to(self.proj.weight.dtype))
            if not self.normalise:
                return tokens
            mean = tokens.mean(-1, keepdim=True)
            return (tokens - mean) / (tokens.std(-1, keepdim=True) + self.eps)

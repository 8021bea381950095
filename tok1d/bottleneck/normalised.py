"""The bottleneck of Semanticist: a linear layer, then every token is standardised."""

from __future__ import annotations

from torch import Tensor, nn

from tok1d.nn.precision import full_precision


class Normalised(nn.Module):
    """A linear layer to the token width, then (x - mean) / std over the channels of each token.

    The standard deviation is the unbiased one (n - 1), by default without an epsilon, so the result is that of
    LayerNorm times sqrt((D - 1) / D). Statistics are per token: dropping later tokens does not change earlier ones.
    It runs in the precision of the weights, under autocast as well: tokens of a training step then have the same
    statistics as those of a token cache.

    Args:
        dim: encoder width.
        token_dim: channels D of a token, at least 2 with `normalise`.
        normalise: False leaves out the standardisation.
        eps: added to the standard deviation.

    Raises:
        ValueError: `normalise` with fewer than 2 channels.
    """

    def __init__(self, dim: int, token_dim: int, *, normalise: bool = True, eps: float = 0.0) -> None:
        super().__init__()
        if normalise and token_dim < 2:
            raise ValueError(f"token_dim: a normalised token needs at least 2 channels, got {token_dim}")
        self.proj = nn.Linear(dim, token_dim)
        self.normalise = normalise
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, dim) -> tokens (B, K, D)."""
        with full_precision(features):
            tokens = self.proj(features.to(self.proj.weight.dtype))
            if not self.normalise:
                return tokens
            mean = tokens.mean(-1, keepdim=True)
            return (tokens - mean) / (tokens.std(-1, keepdim=True) + self.eps)

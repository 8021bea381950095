"""The variational bottleneck: a diagonal normal for every token, pulled to the standard one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tok1d.bottleneck.plain import Terms
from tok1d.nn.precision import full_precision


@dataclass(frozen=True)
class Posterior:
    """Independent normals: mean and log-variance of one shape (B, L, C)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """(B, L, 2C), means first; log-variances are clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=-1)
        return cls(mean, logvar.clamp(-30, 20))

    @property
    def std(self) -> Tensor:
        return (self.logvar / 2).exp()

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise; noise is standard normal, by default drawn from the global generator."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over tokens and channels, (B,)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


class KL(nn.Module):
    """Linear to mean and log-variance, in the precision of the weights; training decodes a sample.

    Encoding gives the mean.

    Args:
        weight: of the divergence, which is summed over tokens and channels and averaged over images.
    """

    vocab_size: int | None = None

    def __init__(self, dim: int, token_dim: int, *, weight: float = 1e-6) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * token_dim)
        self.weight = weight

    def posterior(self, features: Tensor) -> Posterior:
        """(B, L, dim) -> normals over (B, L, C)."""
        with full_precision(features):
            return Posterior.of(self.proj(features.to(self.proj.weight.dtype)))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> a sample (B, L, C), and "loss_kl"."""
        posterior = self.posterior(features)
        return posterior.sample(noise), {"loss_kl": self.weight * posterior.kl().mean()}

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> means (B, L, C)."""
        return self.posterior(features).mean

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens are what the decoder reads. (B, L, C) -> (B, L, C)."""
        return tokens

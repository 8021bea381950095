"""The bottleneck of a variational autoencoder: a diagonal normal distribution for every token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tok1d.bottleneck.base import Bottleneck, Terms
from tok1d.nn.precision import full_precision


@dataclass(frozen=True)
class Posterior:
    """Independent normal distributions: mean and log-variance, both (B, L, C)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """From means and log-variances side by side, (B, L, 2C); log-variances are clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=-1)
        return cls(mean, logvar.clamp(-30, 20))

    @property
    def std(self) -> Tensor:
        """The standard deviation, (B, L, C)."""
        return (self.logvar / 2).exp()

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise, (B, L, C); noise is standard normal, by default from the global generator."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def kl(self) -> Tensor:
        """KL divergence from the standard normal in nats, summed over tokens and channels, (B,)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


class KL(Bottleneck):
    """A linear layer to mean and log-variance, in the precision of the weights (VAE, arXiv 1312.6114).

    Training decodes a sample, `encode` returns the mean.

    Args:
        weight: weight of the KL divergence, which is summed over tokens and channels and averaged over images.
        initial_std: about the standard deviation before any training, above 0, by the bias of the log-variance.
    """

    def __init__(self, dim: int, token_dim: int, *, weight: float = 1e-6, initial_std: float = 1.0) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * token_dim)
        with torch.no_grad():
            self.proj.bias[token_dim:] += 2 * math.log(initial_std)
        self.weight = weight

    def posterior(self, features: Tensor) -> Posterior:
        """(B, L, dim) -> normal distributions over (B, L, C)."""
        with full_precision(features):
            return Posterior.of(self.proj(features.to(self.proj.weight.dtype)))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> a sample (B, L, C), and "loss_kl". `noise`: see `Posterior.sample`."""
        posterior = self.posterior(features)
        return posterior.sample(noise), {"loss_kl": self.weight * posterior.kl().mean()}

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> means (B, L, C)."""
        return self.posterior(features).mean

"""Normalisation and adaptive modulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the mean is computed in float32 (LLaMA)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift (AdaLN; DiT, arXiv 2212.09748, section 3.2)."""
    return torch.addcmul(shift, x, 1 + scale)  # fused: reads x once


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch (adaLN-Zero)."""
    return torch.addcmul(x, gate, branch)


class Modulation(nn.Module):
    """SiLU and Linear from a condition vector to `parts` modulation vectors (adaLN-Zero, see `zero_init`).

    Args:
        dim: width of the condition and of each modulation vector.
        parts: number of modulation vectors.
        rank: width of a linear layer in between, a low-rank factorisation; None: without.
    """

    def __init__(self, dim: int, parts: int, *, rank: int | None = None) -> None:
        super().__init__()
        self.parts = parts
        self.down = nn.Identity() if rank is None else nn.Linear(dim, rank)
        self.linear = nn.Linear(rank or dim, parts * dim)

    def zero_init(self) -> None:
        """Make all modulation vectors zero."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """(..., dim) -> `parts` tensors (..., dim)."""
        return self.linear(self.down(nn.functional.silu(c))).chunk(self.parts, dim=-1)

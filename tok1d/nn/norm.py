"""Normalisation and adaptive modulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; the statistic is taken in float32 (LLaMA's form)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, the adaptive half of AdaLN (DiT, arXiv 2212.09748, section 3.2)."""
    return torch.addcmul(shift, x, 1 + scale)  # one pass over memory


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch, the end of an adaLN-Zero branch."""
    return torch.addcmul(x, gate, branch)


class Modulation(nn.Module):
    """SiLU + Linear from a condition vector to `parts` modulation vectors; zero at initialisation (adaLN-Zero).

    Args:
        rank: width of a linear layer between; None is none.
    """

    def __init__(self, dim: int, parts: int, *, rank: int | None = None) -> None:
        super().__init__()
        self.parts = parts
        self.down = nn.Identity() if rank is None else nn.Linear(dim, rank)
        self.linear = nn.Linear(rank or dim, parts * dim)

    def zero_init(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """(..., dim) -> `parts` tensors (..., dim)."""
        return self.linear(self.down(nn.functional.silu(c))).chunk(self.parts, dim=-1)

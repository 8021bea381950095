"""The pre-norm transformer block, plain or with adaptive LayerNorm, and its feed-forward parts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.attention import Attend, Attention, full
from tok1d.nn.norm import Modulation, gated, modulate


class Mlp(nn.Module):
    """Linear, GELU (exact or tanh form), Linear."""

    def __init__(self, dim: int, hidden: int, *, tanh: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.approximate = "tanh" if tanh else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), by default without biases (LLaMA)."""

    def __init__(self, dim: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def swiglu_hidden(dim: int, multiple: int = 256) -> int:
    """LLaMA's hidden width: two thirds of 4 * dim, rounded up to a multiple (768 -> 2048, 1024 -> 2816)."""
    return -(-(8 * dim // 3) // multiple) * multiple


class DropPath(nn.Module):
    """Stochastic depth per sample: in training drop the branch with probability `rate`, else divide by 1 - rate."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """x * gamma, a learned number a channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)).

    Args:
        norms: the two normalisation layers.
        mlp: the feed-forward part.
        dropout: applied to the output of both branches.
        drop_path: stochastic depth of both branches.
        layer_scale: initial factor of both branches, learned for every channel; None has none.
    """

    def __init__(
        self,
        attn: Attention,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        *,
        dropout: tuple[float, float] = (0.0, 0.0),
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attn = attn
        self.mlp = mlp
        dim = attn.proj.out_features
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop1 = nn.Sequential(nn.Dropout(dropout[0]), DropPath(drop_path))
        self.drop2 = nn.Sequential(nn.Dropout(dropout[1]), DropPath(drop_path))

    def forward(self, x: Tensor, attend: Attend = full) -> Tensor:
        """(B, L, dim) -> (B, L, dim)."""
        x = x + self.drop1(self.ls1(self.attn(self.norm1(x), attend)))
        return x + self.drop2(self.ls2(self.mlp(self.norm2(x))))


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + feed-forward(x)): the original transformer's order, and BERT's."""

    def forward(self, x: Tensor, attend: Attend = full) -> Tensor:
        """(B, L, dim) -> (B, L, dim)."""
        x = self.norm1(x + self.drop1(self.ls1(self.attn(x, attend))))
        return self.norm2(x + self.drop2(self.ls2(self.mlp(x))))


def run_with_skips(x: Tensor, blocks: nn.ModuleList, skips: nn.ModuleList, attend: Attend = full) -> Tensor:
    """An odd number of blocks with U-ViT's long skips (arXiv 2209.12152). (B, L, dim) -> (B, L, dim).

    Each block after the middle one first maps [its input, the output of its mirror block] back to the width.
    """
    half = len(skips)
    assert len(blocks) == 2 * half + 1
    kept: list[Tensor] = []
    for i, block in enumerate(blocks):
        if i > half:
            x = skips[i - half - 1](torch.cat([x, kept.pop()], dim=-1))
        x = block(x, attend)
        if i < half:
            kept.append(x)
    return x


class AdaLNBlock(nn.Module):
    """A block whose two LayerNorms are shifted, scaled and gated by a condition (DiT, section 3.2, adaLN-Zero)."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float = 4.0, *, qk_norm: Literal["none", "layer", "rms"] = "none"
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, heads, qk_norm=qk_norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), tanh=True)
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, c: Tensor, attend: Attend = full) -> Tensor:
        """x (B, L, dim), c (B, 1, dim) or (B, L, dim) -> (B, L, dim)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        x = gated(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1), attend))
        return gated(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))

"""The pre-norm transformer block, plain or with adaptive LayerNorm, and its feed-forward parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.attention import Attend, Attention, CrossAttention, full
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
    """down(silu(gate(x)) * up(x)), by default without biases (LLaMA, arXiv 2302.13971)."""

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
    """Stochastic depth (arXiv 1603.09382): in training a sample's branch is 0 with probability `rate`, else divided by
    1 - rate."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """x * gamma with one learned factor per channel (arXiv 2103.17239)."""

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
        dropout: rates of dropout on the output of the attention and of the feed-forward branch.
        drop_path: stochastic depth rate of both branches.
        layer_scale: initial LayerScale factor of both branches; None: no LayerScale.
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

    def forward(self, x: Tensor, attend: Attend = full, rows: slice | None = None) -> Tensor:
        """(B, L, dim) -> (B, L, dim), or the outputs at the positions `rows` only; see `Attention.forward`."""
        branch = self.drop1(self.ls1(self.attn(self.norm1(x), attend, rows)))
        x = (x if rows is None else x[:, rows]) + branch
        return x + self.drop2(self.ls2(self.mlp(self.norm2(x))))


def vit_blocks(
    dim: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    eps: float = 1e-6,
) -> nn.ModuleList:
    """The blocks of a vision transformer: LayerNorm with epsilon `eps`, exact GELU.

    Args:
        drop_path: stochastic depth rate of the last block; the rate grows linearly from 0 over the blocks.
    """
    return nn.ModuleList(
        Block(
            Attention(dim, heads),
            Mlp(dim, int(dim * mlp_ratio)),
            (nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)),
            drop_path=drop_path * i / max(depth - 1, 1),
            layer_scale=layer_scale,
        )
        for i in range(depth)
    )


def init_linears(module: nn.Module) -> None:
    """Truncated normal with std 0.02 for the weights of all linear layers, zero for their biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + feed-forward(x)): the order of the original transformer and of BERT."""

    def forward(self, x: Tensor, attend: Attend = full, rows: slice | None = None) -> Tensor:
        """As `Block`."""
        branch = self.drop1(self.ls1(self.attn(x, attend, rows)))
        x = self.norm1((x if rows is None else x[:, rows]) + branch)
        return self.norm2(x + self.drop2(self.ls2(self.mlp(x))))


def run_with_skips(x: Tensor, blocks: nn.ModuleList, skips: nn.ModuleList, attend: Attend = full) -> Tensor:
    """Run an odd number of blocks with U-ViT's long skip connections (arXiv 2209.12152). (B, L, dim) -> (B, L, dim).

    Before each block of the second half, a layer of `skips` maps [input, output of the mirrored block of the first
    half] from 2 * dim to dim.
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
    """The adaLN-Zero block of DiT (arXiv 2212.09748, section 3.2).

    A condition vector shifts and scales the outputs of both LayerNorms and gates both branches.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        qk_norm: Literal["none", "layer", "rms"] = "none",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.attn = Attention(dim, heads, qk_norm=qk_norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), tanh=True)
        self.modulation = Modulation(dim, 6)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        attend: Attend = full,
        rows: slice | None = None,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """x (B, L, dim), c (B, 1, dim) or (B, L, dim) -> (B, L, dim); `rows` (see `Block`) only with (B, 1, dim).

        Args:
            between: applied after the attention's branch; None: nothing.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        branch = self.attn(modulate(self.norm1(x), shift1, scale1), attend, rows)
        x = gated(x if rows is None else x[:, rows], gate1, branch)
        x = x if between is None else between(x)
        return gated(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class CrossAdaLNBlock(nn.Module):
    """An `AdaLNBlock` with cross-attention between its two branches, which the condition vector does not modulate."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.block = AdaLNBlock(dim, heads, mlp_ratio, eps=eps)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.cross = CrossAttention(dim, heads)

    def zero_init(self) -> None:
        """Make the cross-attention's output zero, as the gates make the other branches'."""
        nn.init.zeros_(self.cross.proj.weight)
        nn.init.zeros_(self.cross.proj.bias)

    def forward(self, x: Tensor, c: Tensor, context: Tensor) -> Tensor:
        """x (B, L, dim), c (B, 1, dim), the sequence attended to (B, K, dim) -> (B, L, dim)."""
        return self.block(x, c, between=lambda x: x + self.cross(self.norm(x), context))

"""LightningDiT (arXiv 2501.01423) on sequences of tokens, as in MAETok (arXiv 2502.03444).

A SiT with rotary positions, SwiGLU, RMSNorm, lognormal training times and a loss on the direction of the velocity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.generators.sequence import FlowConfig, FlowModel, grid_side
from tok1d.generators.sit import condition, init_adaln_zero, position_table
from tok1d.generators.statistics import Statistics
from tok1d.nn.attention import Attend, Attention, full, rotary
from tok1d.nn.block import SwiGLU
from tok1d.nn.embed import IntervalEmbed, LabelEmbed, TimeEmbed
from tok1d.nn.norm import Modulation, RMSNorm, gated, modulate
from tok1d.nn.position import axial_angles, grid_coordinates, sequence_angles


@dataclass
class LightningDiTConfig(FlowConfig):
    """A LightningDiT of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "B": {"dim": 768, "depth": 12, "heads": 12},
        "XL": {"dim": 1152, "depth": 28, "heads": 16},
        "1.0B": {"dim": 1536, "depth": 24, "heads": 24},
        "1.6B": {"dim": 1792, "depth": 28, "heads": 28},
    }

    name: str = option("lightningdit", "name of the model")
    rotary: Literal["1d", "2d", "none"] = option("1d", "rotary positions of a sequence, or of a square grid")
    positions: Literal["1d", "2d", "none"] = option("none", "fixed sine-cosine positions, added to the embedded tokens")
    qk_norm: bool = option(False, "RMSNorm of queries and keys")
    shift: bool = option(True, "adaLN has shifts besides scales and gates")
    statistics: Statistics = option(
        "channel", "mean and std that normalise the tokens: one of each (scalar), or one per channel or position"
    )
    direction_weight: float = option(1.0, "weight of the loss on the velocity's direction in channel space", ge=0)
    sampler: Literal["sde", "euler", "heun"] = option("euler", "default sampler; sde is Euler-Maruyama")

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        super().check()
        rotary_table(self)
        if self.positions != "none":
            position_table(self.positions, self.dim, self.num_tokens)
        elif self.rotary == "none":
            raise ConfigError("rotary: expected rotary or positions other than none, because tokens need positions")


def rotary_table(config: LightningDiTConfig) -> Tensor | None:
    """Rotation angles (K, head width / 2), None for rotary=none; raises ConfigError for heads that do not fit."""
    if config.rotary == "none":
        return None
    head_dim, parts = config.dim // config.heads, 2 if config.rotary == "1d" else 4
    if head_dim % parts:
        raise ConfigError(
            f"heads: expected a head width that is a multiple of {parts} for rotary={config.rotary}, got {head_dim}"
        )
    if config.rotary == "1d":
        return sequence_angles(head_dim, torch.arange(config.num_tokens))
    side = grid_side(config.num_tokens)
    columns, rows = grid_coordinates(side, side)
    # As in the release, the first half of a head rotates with the row.
    return axial_angles(head_dim, rows, columns, theta=10000.0)


class LightningBlock(nn.Module):
    """A block with RMSNorm, SwiGLU and adaLN.

    Args:
        shift: adaLN has shift, scale and gate for attention and feed-forward; without it scale and gate.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float = 4.0, *, qk_norm: bool, shift: bool, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim, eps=eps), RMSNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm="rms" if qk_norm else "none")
        self.mlp = SwiGLU(dim, int(2 / 3 * int(dim * mlp_ratio)), bias=True)
        self.shift = shift
        self.modulation = Modulation(dim, 6 if shift else 4)

    def forward(self, x: Tensor, c: Tensor, attend: Attend = full) -> Tensor:
        """x (B, K, dim), c (B, 1, dim) -> (B, K, dim)."""
        parts = self.modulation(c)
        if not self.shift:
            zero = torch.zeros_like(parts[0])
            parts = (zero, *parts[:2], zero, *parts[2:])
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = gated(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1), attend))
        return gated(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class LightningDiTNetwork(nn.Module):
    """x (B, K, D), t (B,) or (1,), labels (B,) -> velocity (B, K, D)."""

    positions: Tensor | None
    cos: Tensor | None
    sin: Tensor | None

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        dim, angles = config.dim, rotary_table(config)
        fixed = None if config.positions == "none" else position_table(config.positions, dim, config.num_tokens)
        self.register_buffer("positions", fixed, persistent=False)
        self.register_buffer("cos", None if angles is None else angles.cos(), persistent=False)
        self.register_buffer("sin", None if angles is None else angles.sin(), persistent=False)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.time_embed = TimeEmbed(dim)
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.beta_embed = TimeEmbed(dim) if config.guidance_free else None
        self.interval_embed = IntervalEmbed(dim) if config.few_step is not None else None
        self.blocks = nn.ModuleList(
            LightningBlock(
                dim, config.heads, config.mlp_ratio, qk_norm=config.qk_norm, shift=config.shift, eps=config.norm_eps
            )
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(dim, eps=config.norm_eps)
        self.modulation = Modulation(dim, 2)
        self.out = nn.Linear(dim, config.token_dim)
        init_adaln_zero(self)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, beta: Tensor | None = None, d: Tensor | None = None
    ) -> Tensor:
        c = condition(self, t, labels, beta, d)
        x = self.token_embed(x)
        if self.positions is not None:
            x = x + self.positions
        attend = full if self.cos is None or self.sin is None else rotary(self.cos, self.sin)
        for block in self.blocks:
            x = block(x, c, attend)
        return self.out(modulate(self.norm(x), *self.modulation(c)))


class LightningDiT(FlowModel):
    """Generates tokens (B, K, D) for class ids (B,) along a learned velocity."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__(config)
        self.net = LightningDiTNetwork(config)

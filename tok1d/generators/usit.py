"""USiT: a U-ViT (arXiv 2209.12152) trained as a SiT, on sequences of tokens; after the USiT-2B of DC-AE.

No paper describes the released model. Where its sizes leave a choice, this follows U-ViT: the time token is the
sinusoidal embedding of 1000 t without an MLP, and the blocks have no adaLN. USiT-2B has 1,580.1 M parameters here at
128 tokens of 32 channels; the release states 1,580.4 M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.generators.sequence import FlowConfig, FlowModel
from tok1d.nn.attention import Attention
from tok1d.nn.block import Block, Mlp, run_with_skips
from tok1d.nn.embed import IntervalEmbed, LabelEmbed, time_rates, time_waves


@dataclass
class USiTConfig(FlowConfig):
    """A USiT of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {"2B": {"dim": 2048, "depth": 29, "heads": 32}}

    name: str = option("usit", "name of the model")
    dim: int = option(2048, "width; size=2B sets width, depth and heads", ge=1)
    depth: int = option(29, "number of blocks, odd: as many before the middle one as after it", ge=1)
    heads: int = option(32, "attention heads", ge=1)
    norm_eps: float = option(1e-5, "epsilon of the norms", gt=0)

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        super().check()
        if self.depth % 2 == 0:
            raise ConfigError(f"depth: expected an odd number of blocks, got {self.depth}")


class USiTNetwork(nn.Module):
    """x (B, K, D), t (B,) or (1,), labels (B,) -> velocity (B, K, D); time and class are extra tokens at the beginning.

    Each block of the second half starts with a linear map of [its input, the output of its mirror block] to `dim`.
    """

    rates: Tensor

    def __init__(self, config: USiTConfig) -> None:
        super().__init__()
        dim, half = config.dim, config.depth // 2
        self.num_extra = 3 if config.guidance_free else 2
        self.register_buffer("rates", time_rates(dim), persistent=False)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.positions = nn.Parameter(torch.empty(1, self.num_extra + config.num_tokens, dim))
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, config.heads, qkv_bias=False),
                Mlp(dim, int(dim * config.mlp_ratio)),
                (nn.LayerNorm(dim, eps=config.norm_eps), nn.LayerNorm(dim, eps=config.norm_eps)),
            )
            for _ in range(config.depth)
        )
        self.skips = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(half))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.out = nn.Linear(dim, config.token_dim)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.interval_embed = IntervalEmbed(dim) if config.few_step is not None else None
        if self.interval_embed is not None:
            self.interval_embed.init_weights()

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, beta: Tensor | None = None, d: Tensor | None = None
    ) -> Tensor:
        time = self.waves(t)
        if self.interval_embed is not None:
            time = time + self.interval_embed(torch.zeros_like(t) if d is None else d)
        extra = [time, self.label_embed(labels)]
        if self.num_extra == 3:
            extra.append(self.waves(torch.ones_like(t) if beta is None else beta))
        head = torch.stack([token.expand(len(x), -1) for token in extra], dim=1)
        x = torch.cat([head.to(x.dtype), self.token_embed(x)], dim=1) + self.positions
        x = run_with_skips(x, self.blocks, self.skips)
        return self.out(self.norm(x[:, self.num_extra :]))

    def waves(self, t: Tensor) -> Tensor:
        """The token (B, dim) of times or strengths (B,) in [0, 1]."""
        return time_waves(1000 * t, self.rates, self.positions.shape[-1])


class USiT(FlowModel):
    """Generates tokens (B, K, D) for class ids (B,) along a learned velocity."""

    def __init__(self, config: USiTConfig) -> None:
        super().__init__(config)
        self.net = USiTNetwork(config)

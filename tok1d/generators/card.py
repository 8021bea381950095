"""CARD (SMAP, arXiv 2603.25249): a causal stack over [start, token 0, ..., token K-2], whose states condition a flow
head for the next token.

The class is not in the sequence: it modulates the norms of every block. Its vectors may be those of the tokenizer,
whose values then lie among CARD's own weights. With `condition.kind=text` the mean of a caption's embeddings stands
where the class's vector stands (beyond the paper): a modulation is one vector, so a caption has to become one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.condition import ConditionConfig
from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.generators.autoregressive import CausalGenerator
from tok1d.generators.captions import CaptionVectors
from tok1d.generators.head import DiffusionHead, HeadConfig
from tok1d.generators.modulation import BlockModulations, ClassBlock, ClassVectors, ModulationKind, Parts
from tok1d.generators.statistics import NormalisedTokens, Statistics
from tok1d.nn.attention import Attend, Attention, rotary
from tok1d.nn.block import SwiGLU, swiglu_hidden
from tok1d.nn.norm import RMSNorm
from tok1d.nn.position import sequence_angles
from tok1d.nn.roles import TOKENS, Roles


@dataclass
class CARDConfig:
    """A CARD of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "B": {"dim": 768, "depth": 24, "heads": 12, "head": {"width": 1024, "depth": 6}},
        "L": {"dim": 1024, "depth": 32, "heads": 16, "head": {"width": 1280, "depth": 8}},
        "XL": {"dim": 1280, "depth": 40, "heads": 16, "head": {"width": 1536, "depth": 12}},
    }

    name: str = option("card", "which model this is")
    num_tokens: int = option(128, "tokens K of a sequence", ge=1)
    token_dim: int = option(16, "numbers D of a token", ge=1)
    num_classes: int = option(1000, "classes; 0 makes it unconditional, or of captions", ge=0)
    condition: ConditionConfig = option(ConditionConfig())
    class_source: Literal["shared", "independent"] = option(
        "shared", "class vectors: copied from the tokenizer's table, or a table of its own"
    )
    class_dim: int = option(768, "width of the class table; shared: that of the tokenizer's", ge=1)
    freeze_class_embedding: bool = option(True, "shared: keep the tokenizer's class vectors as they are")
    class_dropout: float = option(0.1, "probability of training with the null class, or without a caption", ge=0, lt=1)
    dim: int = option(768, "width; size=B, L or XL sets width, depth and heads, and the head's width and depth", ge=1)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    modulation: ModulationKind = option(
        "scale2", "what a class does to a block: two scales, or DiT's six of a block, of low rank or mostly shared"
    )
    start: Literal["learned", "class"] = option("learned", "first input: a learned vector, or the class vector")
    positions: Literal["learned", "rope1d"] = option("learned", "positions: learned and absolute, or rotary")
    dropout: float = option(0.1, "dropout after attention and feed-forward", ge=0, lt=1)
    statistics: Statistics = option(
        "scalar", "mean and std that tokens are normalised by: of all numbers, or of each of the D of a token"
    )
    guidance_schedule: Literal["constant", "linear"] = option(
        "constant", "how a plain guidance scale grows over the tokens"
    )
    head: HeadConfig = option(
        HeadConfig(width=1024, depth=6, condition="adaln", time_scale=1000.0, sampler="euler", steps=25)
    )

    @property
    def shares_classes(self) -> bool:
        """Whether the class table's values come from a tokenizer (`ClassVectors.set_table`)."""
        return self.class_source == "shared" and self.num_classes > 0

    def check(self) -> None:
        """Contradictions between the fields."""
        self.condition.check_classes(self.num_classes)
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.positions == "rope1d" and self.dim // self.heads % 2:
            raise ConfigError(f"heads: rotary positions need an even width of a head, got {self.dim // self.heads}")
        if self.head.objective != "interpolant":
            raise ConfigError(
                f"head.objective: CARD's head gives a velocity, expected interpolant, got {self.head.objective}"
            )


class CARD(NormalisedTokens, CausalGenerator):
    """Tokens (B, K, D) float given classes (B,) int64, or captions (B, T, E); see the module's text.

    Sampling is `CausalGenerator.sample`. `temperature` multiplies the noise that the head starts from.
    """

    label_embed: ClassVectors | CaptionVectors
    config: CARDConfig

    roles: ClassVar[Roles] = {"positions": (TOKENS,), "head_positions": (TOKENS,)}

    def __init__(self, config: CARDConfig) -> None:
        super().__init__()
        self.config = config
        self.hold_statistics(config.statistics, config.token_dim)
        dim, length = config.dim, config.num_tokens
        self.label_embed = self._label_embed(config)
        self.modulations = BlockModulations(config.modulation, dim, config.depth)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.start = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if config.start == "learned" else None
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.randn(1, length, dim) * 0.02) if learned else None
        self.blocks = nn.ModuleList(
            ClassBlock(
                Attention(dim, config.heads, bias=False),
                SwiGLU(dim, swiglu_hidden(dim)),
                (RMSNorm(dim), RMSNorm(dim)),
                dropout=(config.dropout, config.dropout),
            )
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(dim)
        self.head_positions = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self._init_weights()
        # Made after the initialisation pass: the head keeps its own.
        self.head = DiffusionHead(config.head, config.token_dim, dim)

    @staticmethod
    def _label_embed(config: CARDConfig) -> ClassVectors | CaptionVectors:
        told, dropout = config.condition, config.class_dropout
        if told.is_text:
            return CaptionVectors(told.dim, told.length, config.dim, dropout)
        frozen = config.shares_classes and config.freeze_class_embedding
        return ClassVectors(config.num_classes, config.class_dim, config.dim, dropout, frozen=frozen)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Class vectors as large as the rows of their table; a tokenizer's are small.
        nn.init.xavier_uniform_(self.label_embed.proj.weight)
        self.modulations.zero_init()

    @property
    def guidance_schedule(self) -> Literal["constant", "linear"]:
        return self.config.guidance_schedule

    def context(self, labels: Tensor) -> tuple[Tensor, list[Parts]]:
        """The vectors (B, dim) of classes or captions, and what they make of every block."""
        vectors = self.label_embed(labels)
        return vectors, self.modulations(vectors)

    def prefix(self, context: tuple[Tensor, list[Parts]]) -> Tensor:
        vectors = context[0]
        return vectors[:, None] if self.start is None else self.start.expand(len(vectors), -1, -1)

    def run(self, x: Tensor, start: int, attends: list[Attend], context: tuple[Tensor, list[Parts]]) -> Tensor:
        end = start + x.shape[1]
        if self.positions is not None:
            x = x + self.positions[:, start:end]
        else:
            width = self.config.dim // self.config.heads
            angles = sequence_angles(width, torch.arange(start, end, device=x.device))
            attends = [rotary(angles.cos(), angles.sin(), attend) for attend in attends]
        for block, attend, parts in zip(self.blocks, attends, context[1]):
            x = block(x, attend, parts=parts)
        return self.norm(x)

    def start_noise(self, noise: Tensor, temperature: float) -> Tensor:
        return noise * temperature

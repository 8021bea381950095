"""CARD (SMAP, arXiv 2603.25249): a causal stack whose states condition a flow-matching head for the next token.

The class is not part of the sequence: it modulates the norms of every block. `modulation=none start=class` is the other
way: the class vector is the first input, and the norms are plain. The class vectors may be those of the tokenizer;
CARD's weights then include a copy of that table. With `condition.kind=text` or words, which are
not in the paper, the mean of a caption's embeddings takes the place of the class vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.condition import ConditionConfig
from tok1d.config.fields import option
from tok1d.config.sampling import Schedule
from tok1d.errors import ConfigError
from tok1d.generators.autoregressive import HeadGenerator
from tok1d.generators.captions import CaptionVectors
from tok1d.generators.causal import Context, end_of, init_llama, llama_blocks
from tok1d.generators.head import DiffusionHead, HeadConfig
from tok1d.generators.modulation import BlockModulations, ClassBlock, ClassVectors, ModulationKind
from tok1d.generators.statistics import NormalisedTokens, Statistics
from tok1d.nn.attention import Attend, rotary
from tok1d.nn.block import Block
from tok1d.nn.norm import RMSNorm
from tok1d.nn.position import sequence_angles
from tok1d.nn.roles import TOKENS, Roles


@dataclass
class CARDConfig:
    """A CARD of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int | dict[str, int]]]] = {
        "B": {"dim": 768, "depth": 24, "heads": 12, "head": {"width": 1024, "depth": 6}},
        "L": {"dim": 1024, "depth": 32, "heads": 16, "head": {"width": 1280, "depth": 8}},
        "XL": {"dim": 1280, "depth": 40, "heads": 16, "head": {"width": 1536, "depth": 12}},
    }

    name: str = option("card", "name of the model")
    num_tokens: int = option(128, "tokens K of a sequence", ge=1)
    token_dim: int = option(16, "channels D of a token", ge=1)
    num_classes: int = option(1000, "number of classes; 0 for an unconditional model or one of captions", ge=0)
    condition: ConditionConfig = option(ConditionConfig())
    class_source: Literal["shared", "independent", "random"] = option(
        "shared",
        "class vectors: a copy of the tokenizer's table, a trained table of its own, or fixed random vectors with the "
        "lengths of the tokenizer's",
    )
    class_dim: int = option(768, "width of the class table; shared: of the tokenizer's table", ge=1)
    freeze_class_embedding: bool = option(True, "shared: do not train the class vectors; random ones are never trained")
    class_dropout: float = option(0.1, "probability of the null condition in training", ge=0, lt=1)
    dim: int = option(768, "width; size=B, L or XL sets width, depth and heads, and the head's width and depth", ge=1)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    modulation: ModulationKind | Literal["none"] = option(
        "scale2",
        "how the condition modulates a block: two scales (scale2), or DiT's shifts, scales and gates (dit6), of low "
        "rank (lowrank6) or mostly shared between blocks (shared6); none needs start=class",
    )
    start: Literal["learned", "class"] = option(
        "learned", "first input of the stack: a learned vector, or the class vector"
    )
    positions: Literal["learned", "rope1d"] = option("learned", "positions: learned and absolute, or rotary")
    dropout: float = option(0.1, "dropout after attention and feed-forward", ge=0, lt=1)
    stop: bool = option(
        False,
        "stop by itself: predict before every token whether the sequence ends; trained on the numbers of tokens that "
        "images need for budget.quality",
    )
    statistics: Statistics = option(
        "scalar", "mean and std that normalise the tokens: one of each (scalar), or one per channel or position"
    )
    guidance_schedule: Literal["constant", "linear"] = option(
        "constant", "schedule of a plain guidance scale over the tokens"
    )
    head: HeadConfig = option(
        HeadConfig(width=1024, depth=6, condition="adaln", time_scale=1000.0, sampler="euler", steps=25)
    )

    @property
    def shares_classes(self) -> bool:
        """Whether the class table is made from a tokenizer's (`ClassVectors.set_table`)."""
        return self.class_source != "independent" and self.num_classes > 0

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        self.condition.check_classes(self.num_classes)
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.positions == "rope1d" and self.dim // self.heads % 2:
            raise ConfigError(f"heads: expected an even head width for rotary positions, got {self.dim // self.heads}")
        if self.modulation == "none" and self.start != "class":
            raise ConfigError(
                f"start: expected class, because without modulation (modulation=none) the condition is only the first "
                f"input, got {self.start}"
            )
        if self.head.class_token:
            raise ConfigError("head.class_token: expected false, because CARD's sequence has no class token, got true")
        if self.head.objective != "interpolant":
            raise ConfigError(
                f"head.objective: expected interpolant, because CARD predicts velocities, got {self.head.objective}"
            )


class CARD(NormalisedTokens, HeadGenerator):
    """Generates tokens (B, K, D) for class ids (B,) or captions (B, T, E); see the module's docstring.

    The temperature of sampling also multiplies the initial noise of the head's sampler.
    """

    label_embed: ClassVectors | CaptionVectors
    config: CARDConfig

    roles: ClassVar[Roles] = {"positions": (TOKENS,), "head_positions": (TOKENS,), **NormalisedTokens.roles}

    def __init__(self, config: CARDConfig) -> None:
        super().__init__()
        self.config = config
        self.hold_statistics(config.statistics, config.num_tokens, config.token_dim)
        dim, length = config.dim, config.num_tokens
        self.label_embed = self._label_embed(config)
        kind = config.modulation
        self.modulations = None if kind == "none" else BlockModulations(kind, dim, config.depth)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.start = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if config.start == "learned" else None
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.randn(1, length, dim) * 0.02) if learned else None
        block = Block if self.modulations is None else ClassBlock
        self.blocks = llama_blocks(dim, config.depth, config.heads, dropout=config.dropout, block=block)
        self.norm = RMSNorm(dim)
        self.head_positions = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        init_llama(self)
        # Xavier keeps class vectors at the scale of the table's rows; std 0.02 would make them far smaller.
        nn.init.xavier_uniform_(self.label_embed.proj.weight)
        if self.modulations is not None:
            self.modulations.zero_init()
        # Made after `init_llama`, because the head has its own initialisation.
        self.head = DiffusionHead(config.head, config.token_dim, dim)
        self.stop = end_of(dim, length) if config.stop else None

    @staticmethod
    def _label_embed(config: CARDConfig) -> ClassVectors | CaptionVectors:
        condition, dropout = config.condition, config.class_dropout
        if condition.is_text:
            return CaptionVectors(condition.dim, condition.length, config.dim, dropout, condition.num_words)
        frozen = config.shares_classes and (config.freeze_class_embedding or config.class_source == "random")
        return ClassVectors(config.num_classes, config.class_dim, config.dim, dropout, frozen=frozen)

    @property
    def guidance_schedule(self) -> Schedule:
        return self.config.guidance_schedule

    def context(self, cond: Tensor) -> Context:
        vectors = self.label_embed(cond)
        prefix = vectors[:, None] if self.start is None else self.start.expand(len(vectors), -1, -1)
        return Context(prefix, modulations=None if self.modulations is None else self.modulations(vectors))

    def embed(self, x: Tensor, start: int, attends: list[Attend]) -> tuple[Tensor, list[Attend]]:
        end = start + x.shape[1]
        if self.positions is not None:
            return x + self.positions[:, start:end], attends
        width = self.config.dim // self.config.heads
        angles = sequence_angles(width, torch.arange(start, end, device=x.device))
        return x, [rotary(angles.cos(), angles.sin(), attend) for attend in attends]

    def initial_noise(self, noise: Tensor, temperature: float) -> Tensor:
        return noise * temperature

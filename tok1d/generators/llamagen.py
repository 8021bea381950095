"""LlamaGen (arXiv 2406.06525): a LLaMA stack over [class, id 0, ..., id K-2] that predicts the next id.

Rotary positions are one table of cosines and sines for the whole sequence. The released models rotate queries and
keys by the row and column of a token in a square grid, and the row of their table for the class is zero, in cosine and
sine: query and key of the class are then zero vectors. The class attends to itself alone, and every later position
attends to the class with logit 0. The "2d" table here has that row, too. In the "1d" table, the default for tokens
without a grid, the class has the position before the first token.

With `condition.kind=text` or words the embeddings of a caption take the place of the class, as in LlamaGen's
text-to-image models: one position for each of the largest number of words or sub-words, padding first and masked from
attention. Their rows in the tables are made like the row of the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.condition import ConditionConfig
from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings
from tok1d.diffusion.guidance import Guidance, combine
from tok1d.diffusion.solver import NoiseSource
from tok1d.errors import ConfigError
from tok1d.generators.autoregressive import EpsilonLlamaGenConfig
from tok1d.generators.base import IntervalOf
from tok1d.generators.captions import CaptionPrefix
from tok1d.generators.categorical import filter_logits, other_ids, sample_ids
from tok1d.generators.causal import (
    CandidateSampler,
    CausalGenerator,
    Context,
    TokenSampler,
    end_of,
    init_llama,
    llama_blocks,
)
from tok1d.nn.attention import Attend, rotary
from tok1d.nn.embed import LabelEmbed
from tok1d.nn.norm import RMSNorm
from tok1d.nn.position import axial_angles, grid_coordinates, sequence_angles
from tok1d.nn.precision import single
from tok1d.nn.roles import TOKENS, Roles


@dataclass
class LlamaGenConfig:
    """A LlamaGen of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = EpsilonLlamaGenConfig.SIZES

    name: str = option("llamagen", "name of the model")
    num_tokens: int = option(128, "ids K of a sequence", ge=1)
    vocab_size: int = option(8192, "size V of the vocabulary", ge=1)
    num_classes: int = option(1000, "number of classes; 0 for an unconditional model or one of captions", ge=0)
    condition: ConditionConfig = option(ConditionConfig())
    dim: int = option(1024, "width; size=B, L, XL, XXL, XXXL, 1B, 3B or 7B sets width, depth and heads", ge=1)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    kv_heads: int | None = option(
        None, "heads of keys and values, shared by groups of query heads; null: as heads", ge=1
    )
    hidden: int | None = option(None, "hidden width of the feed-forward part; null: 8/3 dim, rounded up to 256", ge=1)
    rope: Literal["1d", "2d", "none"] = option(
        "1d",
        "rotary positions of a sequence, of a square grid (as released), or none: learned positions",
    )
    rope_base: float = option(10000.0, "base of the rotary frequencies", gt=1)
    norm_eps: float = option(1e-5, "epsilon of the norms", gt=0)
    class_dropout: float = option(0.1, "probability of the null condition in training", ge=0, lt=1)
    token_dropout: float = option(0.1, "dropout of the embedded sequence", ge=0, lt=1)
    dropout: float = option(0.1, "dropout after attention and feed-forward", ge=0, lt=1)
    drop_path: float = option(0.0, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)
    stop: bool = option(
        False,
        "stop by itself: predict before every token whether the sequence ends; trained on the numbers of tokens that "
        "images need for budget.quality",
    )

    @property
    def num_prefix(self) -> int:
        """Positions before the first id: one for the class, or one per sub-word of a caption."""
        return self.condition.length if self.condition.is_text else 1

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        self.condition.check_classes(self.num_classes)
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if self.rope == "2d" and math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ConfigError(f"rope: expected a square number of tokens for 2d, got {self.num_tokens}; use rope=1d")
        pairs = {"1d": 2, "2d": 4, "none": 1}[self.rope]
        if self.dim // self.heads % pairs:
            width = self.dim // self.heads
            raise ConfigError(f"rope: {self.rope} needs a head width that is a multiple of {pairs}, got {width}")


def rotary_table(config: LlamaGenConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (P + K, head width / 2), for a prefix of P positions and K tokens.

    "1d": prefix at -P..-1, tokens at 0..K-1. "2d": the first half of the channels of a head is rotated by a token's
    row in the grid, the second half by its column; the rows of the prefix are zero (see the module's docstring).
    """
    head_dim, base, prefix = config.dim // config.heads, config.rope_base, config.num_prefix
    if config.rope == "1d":
        angles = sequence_angles(head_dim, torch.arange(-float(prefix), config.num_tokens), base)
        return angles.cos(), angles.sin()
    side = math.isqrt(config.num_tokens)
    columns, rows = grid_coordinates(side, side)
    angles = axial_angles(head_dim, rows, columns, base)
    return F.pad(angles.cos(), (0, 0, prefix, 0)), F.pad(angles.sin(), (0, 0, prefix, 0))


class LlamaGen(CausalGenerator):
    """Generates ids (B, K) for class ids (B,) or captions (B, T, E); see the module's docstring.

    `sample` takes from `noise` one array (B, V) per id. Guidance acts on the logits before the temperature.
    """

    kind: ClassVar[Kind] = "categorical"
    guidance_interval_of: ClassVar[IntervalOf | None] = "sequence"
    own_options: ClassVar[tuple[str, ...]] = ("greedy",)  # the most likely id instead of a random one

    config: LlamaGenConfig
    label_embed: LabelEmbed | CaptionPrefix
    cos: Tensor
    sin: Tensor

    roles: ClassVar[Roles] = {"positions": (TOKENS,)}

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        dim, condition = config.dim, config.condition
        self.label_embed = (
            CaptionPrefix(condition.dim, condition.length, dim, config.class_dropout, condition.num_words)
            if condition.is_text
            else LabelEmbed(config.num_classes, dim, config.class_dropout)
        )
        self.token_embed = nn.Embedding(config.vocab_size, dim)
        self.positions = None
        if config.rope == "none":
            self.positions = nn.Parameter(torch.randn(1, config.num_prefix + config.num_tokens, dim) * 0.02)
        else:
            cos, sin = rotary_table(config)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.embed_dropout = nn.Dropout(config.token_dropout)
        self.blocks = llama_blocks(
            dim,
            config.depth,
            config.heads,
            dropout=config.dropout,
            drop_path=config.drop_path,
            kv_heads=config.kv_heads,
            hidden=config.hidden,
            norm_eps=config.norm_eps,
        )
        self.norm = RMSNorm(dim, config.norm_eps)
        self.out = nn.Linear(dim, config.vocab_size, bias=False)
        init_llama(self)
        nn.init.zeros_(self.out.weight)
        self.stop = end_of(dim, config.num_tokens) if config.stop else None

    def context(self, cond: Tensor) -> Context:
        if isinstance(self.label_embed, CaptionPrefix):
            return Context(*self.label_embed(cond))
        return Context(self.label_embed(cond)[:, None])

    def embed(self, x: Tensor, start: int, attends: list[Attend]) -> tuple[Tensor, list[Attend]]:
        places = slice(start, start + x.shape[1])
        if self.positions is not None:
            x = x + self.positions[:, places]
        else:
            attends = [rotary(self.cos[places], self.sin[places], attend) for attend in attends]
        return self.embed_dropout(x), attends

    def outputs(self, states: Tensor, first: int, context: Context) -> Tensor:
        """Logits (B, L, V)."""
        return self.out(states)

    def loss_rows(self, ids: Tensor, cond: Tensor) -> Tensor:
        """Mean cross-entropy (B,) in nats over the ids (B, k) of each sequence, with checked conditions."""
        logits = single(self(ids[:, :-1], cond))
        return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(1)

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """Mean cross-entropy in nats; batch: ids (B, k), and class ids (B,), captions (B, T, E) or None.

        Of a model that stops by itself, the batch also has the numbers of ids (B,), and the loss is over these ids;
        "loss_stop" is that of the ends.
        """
        ids, cond = batch[0], self.training_cond(batch[1], len(batch[0]))
        if self.stop is None:
            return {"loss": self.loss_rows(ids, cond).mean()}
        lengths = self.lengths_in(batch, ids.shape[1])
        states, context = self.states(ids[:, :-1], cond)
        kept = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = single(self.outputs(states, 0, context)).transpose(1, 2)
        rows = F.cross_entropy(logits, ids, reduction="none")
        return {"loss": (rows * kept).sum() / kept.sum(), "loss_stop": self.stop_loss(states, lengths)}

    def empty(self, rows: int, length: int) -> Tensor:
        return torch.zeros(rows, length, dtype=torch.int64, device=self.device)

    def token_sampler(self, settings: SampleSettings, noise: NoiseSource, **own: object) -> TokenSampler:
        candidates = self.candidate_sampler(settings, noise, **own)
        return lambda logits, null_logits, scale: candidates(logits, null_logits, scale, 1)

    def candidate_sampler(self, settings: SampleSettings, noise: NoiseSource, **own: object) -> CandidateSampler:
        """Different ids: the first as `token_sampler`, the others as if sampled without replacement (`other_ids`).

        With `greedy` the most likely ids.
        """
        greedy = bool(own.get("greedy", False))

        def candidates(logits: Tensor, null_logits: Tensor | None, scale: float, copies: int) -> Tensor:
            if scale != 1:
                assert null_logits is not None
                logits = combine(logits, null_logits, scale)
            if greedy:
                first, kept, numbers = logits.argmax(-1), logits.float(), None
            else:
                kept = filter_logits(logits.float(), settings)
                numbers = noise(kept)
                first = sample_ids(kept.softmax(-1), numbers)
            return first if copies == 1 else other_ids(kept, numbers, first, copies).flatten()

        return candidates

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The output layer, which each evaluation of the stack calls once."""
        return [self.out]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, object]:
        """The name of the only sampler."""
        return {"sampler": "categorical"}

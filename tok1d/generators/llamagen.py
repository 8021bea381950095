"""LlamaGen (arXiv 2406.06525): a LLaMA-style stack over [class, id 0, ..., id K-2] that predicts the next id.

Rotary positions come as one table of cosines and sines for the whole sequence, which decides everything about
places: forward knows no difference between a sequence and a grid. The released models turn queries and keys by the
row and column of a square grid, and their table's row for the class is zero, in cosine and sine: the class has no
query and no key, so it sees itself (nothing else is there) and every later position gives it the logit 0. That row is
part of the "2d" table here. In the "1d" table, the default for tokens that are no grid, the class has the place before
the first token.

With `condition.kind=text` the embeddings of a caption stand where the class stands, as in LlamaGen's text-to-image
models: as many places as the caption may have sub-words, those of padding first and seen by nobody. Like the class's
one, their rows of the "2d" table are zero; in the "1d" table they have the places before the first token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.condition import ConditionConfig
from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings
from tok1d.diffusion.guidance import Guidance, as_guidance, combine
from tok1d.diffusion.solver import Generators, Randn, exponential_from
from tok1d.errors import ConfigError, InputError
from tok1d.generators.autoregressive import EpsilonLlamaGenConfig
from tok1d.generators.base import IntervalOf
from tok1d.generators.captions import CaptionPrefix, causal_behind
from tok1d.generators.categorical import check_filter, draw_ids, filter_logits
from tok1d.nn.attention import Attend, Attention, KVCache, causal, masked, rotary
from tok1d.nn.block import Block, SwiGLU, swiglu_hidden
from tok1d.nn.embed import LabelEmbed, class_ids, training_ids
from tok1d.nn.norm import RMSNorm
from tok1d.nn.position import axial_angles, grid_coordinates, sequence_angles
from tok1d.nn.precision import single
from tok1d.nn.roles import TOKENS, Roles


@dataclass
class LlamaGenConfig:
    """A LlamaGen of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = EpsilonLlamaGenConfig.SIZES

    name: str = option("llamagen", "which model this is")
    num_tokens: int = option(128, "ids K of a sequence", ge=1)
    vocab_size: int = option(8192, "size V of the vocabulary", ge=1)
    num_classes: int = option(1000, "classes; 0 makes it unconditional, or of captions", ge=0)
    condition: ConditionConfig = option(ConditionConfig())
    dim: int = option(1024, "width; size=B, L, XL, XXL, XXXL, 1B, 3B or 7B sets width, depth and heads", ge=1)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    kv_heads: int | None = option(None, "heads of keys and values, which queries share in groups; null: as heads", ge=1)
    hidden: int | None = option(None, "hidden width of the feed-forward part; null: 8/3 dim, up to 256 more", ge=1)
    rope: Literal["1d", "2d", "none"] = option(
        "1d", "rotary positions: of a sequence, of a square grid as released, or none but learned positions"
    )
    rope_base: float = option(10000.0, "base of the rotary frequencies", gt=1)
    class_dropout: float = option(0.1, "probability of training with the null class, or without a caption", ge=0, lt=1)
    token_dropout: float = option(0.1, "dropout of the embedded sequence", ge=0, lt=1)
    dropout: float = option(0.1, "dropout after attention and feed-forward", ge=0, lt=1)
    drop_path: float = option(0.0, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)

    @property
    def num_prefix(self) -> int:
        """Places before the first id: the class's, or those of a caption."""
        return self.condition.length if self.condition.is_text else 1

    def check(self) -> None:
        """Contradictions between the fields."""
        self.condition.check_classes(self.num_classes)
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if self.rope == "2d" and math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ConfigError(f"rope: 2d needs a square number of tokens, got {self.num_tokens}; take 1d")
        pairs = {"1d": 2, "2d": 4, "none": 1}[self.rope]
        if self.dim // self.heads % pairs:
            raise ConfigError(f"rope: {self.rope} needs heads of a multiple of {pairs}, not {self.dim // self.heads}")


def rotary_table(config: LlamaGenConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (P + K, head width / 2): the class's row (P = 1) or a caption's, then the tokens'.

    "1d": the class at -1, tokens at 0..K-1. "2d": zeros for the class (see the module's text); in the tokens' rows
    the first half turns with the row of the grid, the second with the column.
    """
    head_dim, base, prefix = config.dim // config.heads, config.rope_base, config.num_prefix
    if config.rope == "1d":
        angles = sequence_angles(head_dim, torch.arange(-float(prefix), config.num_tokens), base)
        return angles.cos(), angles.sin()
    side = math.isqrt(config.num_tokens)
    columns, rows = grid_coordinates(side, side)
    angles = axial_angles(head_dim, rows, columns, base)
    return F.pad(angles.cos(), (0, 0, prefix, 0)), F.pad(angles.sin(), (0, 0, prefix, 0))


class LlamaGen(nn.Module):
    """Ids (B, K) int64 given classes (B,) int64, or captions (B, T, E); see the module's text."""

    kind: ClassVar[Kind] = "categorical"
    parallel: ClassVar[bool] = False
    guidance_interval_of: ClassVar[IntervalOf] = "sequence"
    cos: Tensor
    sin: Tensor

    roles: ClassVar[Roles] = {"positions": (TOKENS,)}

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        dim, told = config.dim, config.condition
        self.label_embed: LabelEmbed | CaptionPrefix = (
            CaptionPrefix(told.dim, told.length, dim, config.class_dropout)
            if told.is_text
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
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, config.heads, bias=False, kv_heads=config.kv_heads),
                SwiGLU(dim, config.hidden or swiglu_hidden(dim)),
                (RMSNorm(dim), RMSNorm(dim)),
                dropout=(config.dropout, config.dropout),
                drop_path=config.drop_path * i / max(config.depth - 1, 1),
            )
            for i in range(config.depth)
        )
        self.norm = RMSNorm(dim)
        self.out = nn.Linear(dim, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.out.weight)

    def labels(self, cond: Tensor | None, batch: int) -> Tensor:
        """Checked class ids (B,), or captions, see `class_ids`."""
        return class_ids(self.label_embed, cond, batch, self.out.weight.device)

    def prefix(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The inputs (B, P, dim) before the ids, and which of them are no padding (B, P), None for all."""
        if isinstance(self.label_embed, CaptionPrefix):
            return self.label_embed(labels)
        return self.label_embed(labels)[:, None], None

    def run(self, x: Tensor, start: int, attends: list[Attend], *, skip: int = 0) -> Tensor:
        """Embedded inputs (B, L, dim) at places start.. -> logits (B, L - skip, V), without the first ones."""
        places = slice(start, start + x.shape[1])
        if self.positions is not None:
            x = x + self.positions[:, places]
        else:
            attends = [rotary(self.cos[places], self.sin[places], attend) for attend in attends]
        x = self.embed_dropout(x)
        for block, attend in zip(self.blocks, attends):
            x = block(x, attend)
        return self.out(self.norm(x[:, skip:]))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, 1 + k, V) of ids (B, k), 0 <= k <= K: row i is of id i, and sees the condition and ids < i."""
        prefix, seen = self.prefix(labels)
        x = torch.cat([prefix, self.token_embed(ids)], dim=1)
        attend = causal if seen is None else masked(causal_behind(seen, x.shape[1]))
        return self.run(x, 0, [attend] * len(self.blocks), skip=prefix.shape[1] - 1)

    def loss_rows(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy (B,) of the ids (B, k) of each sequence, in nats; labels as `labels` gives them."""
        logits = single(self(ids[:, :-1], labels))
        return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(1)

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """Mean cross-entropy on (ids (B, k), classes (B,), captions or None)."""
        ids, cond = batch
        labels = training_ids(self.label_embed, cond, len(ids), self.out.weight.device)
        return {"loss": self.loss_rows(ids, labels).mean()}

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The last layer, which is called once an id."""
        return [self.out]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, Any]:
        """The name of the only sampler."""
        return {"sampler": "categorical"}

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor | None = None,
        *,
        num: int | None = None,
        length: int | None = None,
        guidance: float | Guidance = 1.0,
        steps: int | None = None,
        temperature: float = 1.0,
        generator: Generators | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        exponential: Randn | None = None,
    ) -> Tensor:
        """Ids (B, length), one after the other with a KV cache.

        Args:
            cond: (B,) class ids, or captions (B, T, E) for a model of those; None with `num`: the unconditional model,
                or the null condition.
            length: how many ids, 1..K (default K).
            guidance: a scale, constant over the ids, or a Guidance; it acts on logits before the temperature. An
                interval is in shares of the sequence: id i is guided where i / K lies in it.
            steps: None or 1: an id takes one call.
            temperature, top_k, top_p: see `filter_logits`. greedy: the likeliest id each time, nothing is drawn.
            generator: source of all noise; default: one seeded with 0. With a single one a sample depends on
                the size of its batch; with a sequence of them, one a row, only on its own.
            exponential: source of all noise instead of `generator` (recorded draws): for every id (B, V), of mean 1.

        Raises:
            InputError: class ids, lengths, guidance or settings this model cannot serve.
        """
        if cond is None and (num is None or num < 1):
            raise InputError(f"sample needs a condition, or num for how many sequences to draw, got num {num}")
        if steps not in (None, 1):
            raise InputError(f"steps: this generator draws a token in one call, leave it out; got {steps}")
        check_filter(top_k=top_k, top_p=top_p, temperature=temperature)
        labels = self.labels(cond, num or 0)
        length = self.config.num_tokens if length is None else length
        scales = self.token_scales(guidance, length)
        draw = exponential or exponential_from(generator or torch.Generator(labels.device).manual_seed(0))
        decoder = IdDecoder(self, labels, length, with_null=any(scale != 1 for scale in scales))
        ids = torch.zeros(len(labels), length, dtype=torch.int64, device=labels.device)
        for i, scale in enumerate(scales):
            logits, null_logits = decoder.step(ids[:, i - 1] if i else None)
            if scale != 1:
                assert null_logits is not None
                logits = combine(logits, null_logits, scale)
            if greedy:
                ids[:, i] = logits.argmax(-1)
                continue
            kept = filter_logits(logits.float(), temperature=temperature, top_k=top_k, top_p=top_p)
            ids[:, i] = draw_ids(kept.softmax(-1), draw(kept))
        return ids

    def token_scales(self, guidance: float | Guidance, length: int) -> list[float]:
        """The guidance scale of each of the first ids; 1 outside the interval.

        Raises:
            InputError: a length out of range, or a weak model.
        """
        if not 1 <= length <= self.config.num_tokens:
            raise InputError(f"length must lie in 1..{self.config.num_tokens}, got {length}")
        guidance = as_guidance(guidance)
        if guidance.weak_model is not None:
            raise InputError("guidance of this generator has a scale, a schedule and an interval, no weak_model")
        scales = guidance.token_scales(length).tolist()
        return [scale if guidance.acts_at(i / self.config.num_tokens) else 1.0 for i, scale in enumerate(scales)]


class IdDecoder:
    """Id-by-id logits with a KV cache; guided and unguided streams share one batch.

    Args:
        labels: (B,) class ids, or captions.
        length: ids to decode.
        with_null: also run the null class, rows B..2B-1.
    """

    def __init__(self, model: LlamaGen, labels: Tensor, length: int, *, with_null: bool) -> None:
        self.model, self.rows, self.with_null = model, len(labels), with_null
        labels = torch.cat([labels, model.labels(None, self.rows)]) if with_null else labels
        self.prefix, seen = model.prefix(labels)
        config, weight = model.config, model.out.weight
        places, heads = -(-(config.num_prefix + length) // 8) * 8, config.kv_heads or config.heads
        head_dim, allowed = config.dim // config.heads, None if seen is None else causal_behind(seen, places)
        how: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device, "allowed": allowed}
        self.caches = [KVCache(len(labels), heads, places, head_dim, **how) for _ in model.blocks]

    def step(self, ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Feed the ids (B,) just drawn (None at first) and get the next logits (B, V), and the null class's."""
        model = self.model
        x = self.prefix if ids is None else model.token_embed(ids.repeat(2) if self.with_null else ids)[:, None]
        attends: list[Attend] = [cache.attend for cache in self.caches]
        logits = model.run(x, self.caches[0].filled, attends, skip=x.shape[1] - 1)[:, 0]
        return logits[: self.rows], logits[self.rows :] if self.with_null else None

"""Causal generators with a diffusion head, cached decoding, and epsilon-LlamaGen.

epsilon-LlamaGen (Semanticist, arXiv 2503.08685, section 3.4) is a LLaMA-style stack over [class, token 0, ...,
token K-1] whose states condition a diffusion head for the next token. CARD, its kin, is in `card.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings
from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.diffusion.solver import Generators, Randn, randn_from
from tok1d.errors import ConfigError, InputError
from tok1d.generators.base import IntervalOf, check_temperature
from tok1d.generators.head import DiffusionHead, HeadConfig
from tok1d.nn.attention import Attend, Attention, KVCache, causal
from tok1d.nn.block import Block, SwiGLU, swiglu_hidden
from tok1d.nn.embed import Condition, LabelEmbed, class_ids, training_ids
from tok1d.nn.norm import RMSNorm
from tok1d.nn.roles import TOKENS, Roles


class CausalGenerator(nn.Module):
    """Losses and samples of a causal stack whose states condition a diffusion head, token after token.

    Subclasses make these parts, `label_embed` and `token_embed` giving vectors (..., dim), and the methods below them.
    """

    config: Any
    label_embed: Condition
    token_embed: nn.Linear
    blocks: nn.ModuleList
    head_positions: nn.Parameter  # (1, K, dim), told to the head
    head: DiffusionHead
    kind: ClassVar[Kind] = "diffusion"
    parallel: ClassVar[bool] = False
    guidance_interval_of: ClassVar[IntervalOf | None] = None

    @property
    def num_prefix(self) -> int:
        """Positions of the stack before the first token's; the last of them conditions the first token."""
        return 1

    @property
    def guidance_schedule(self) -> Literal["constant", "linear"]:
        """How a plain guidance scale grows over the tokens."""
        return "linear"

    @abstractmethod
    def context(self, labels: Tensor) -> Any:
        """What the stack is told of class ids (B,), the null class included, or of captions; made once a sequence."""

    @abstractmethod
    def prefix(self, context: Any) -> Tensor:
        """The inputs (B, num_prefix, dim) before the tokens."""

    @abstractmethod
    def run(self, x: Tensor, start: int, attends: list[Attend], context: Any) -> Tensor:
        """Inputs (B, L, dim) at positions start.. -> final states (B, L, dim)."""

    def normalise(self, tokens: Tensor) -> Tensor:
        """Raw tokens (B, K, D) as stack and head see them."""
        return tokens

    def denormalise(self, tokens: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return tokens

    def start_noise(self, noise: Tensor, temperature: float) -> Tensor:
        """What the head starts from, of a normal draw (B, D)."""
        return noise

    def labels(self, cond: Tensor | None, batch: int) -> Tensor:
        """Checked class ids (B,), or captions, see `class_ids`."""
        return class_ids(self.label_embed, cond, batch, self.head_positions.device)

    def hidden(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The head's conditions (B, k, dim) of normalised tokens (B, k, D), k <= K; row i sees class and tokens < i."""
        length, context = tokens.shape[1], self.context(labels)
        # The state of the last token conditions nothing, so it is not computed.
        x = torch.cat([self.prefix(context), self.token_embed(tokens[:, : length - 1])], dim=1)
        states = self.run(x, 0, [causal] * len(self.blocks), context)
        return states[:, self.num_prefix - 1 :] + self.head_positions[:, :length]

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """The head's mean loss on (raw tokens (B, k, D), classes (B,), captions or None)."""
        tokens, cond = self.normalise(batch[0]), batch[1]
        labels = training_ids(self.label_embed, cond, tokens.shape[0], self.head_positions.device)
        hidden = self.hidden(tokens, labels)
        return {"loss": self.head.loss_rows(tokens.flatten(0, 1), hidden.flatten(0, 1)).mean()}

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The layer of the head that is called once an evaluation."""
        return [self.head.net.input]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, Any]:
        """The head's sampler and steps, the configuration's where the settings have none."""
        return {"sampler": self.head.sampler(settings.sampler), "steps": settings.steps or self.config.head.steps}

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
        sampler: str | None = None,
        randn: Randn | None = None,
    ) -> Tensor:
        """Raw tokens (B, length, D), one after the other with a KV cache.

        Args:
            cond: (B,) class ids, or captions (B, T, E) for a model of those; None with `num`: the unconditional model,
                or the null condition.
            length: how many tokens, 1..K (default K).
            guidance: a plain scale follows the model's `guidance_schedule` over the tokens; guidance acts inside the
                head, on its outputs. 1 is off, 0 is the null class, values between them are allowed.
            steps: the head's network evaluations a token; default `config.head.steps`.
            temperature: multiplies the head's sampling noise, and in CARD what it starts from.
            generator: source of all noise; default: one seeded with 0. With a single one a sample depends on
                the size of its batch; with a sequence of them, one a row, only on its own.
            sampler: the head's sampler, see `DiffusionHead.sample`.
            randn: source of all noise instead of `generator` (recorded draws): for every token the starting noise
                (B, D), then what the sampler draws.

        Raises:
            InputError: class ids, lengths, guidance or a temperature this model cannot serve.
        """
        if cond is None and (num is None or num < 1):
            raise InputError(f"sample needs a condition, or num for how many sequences to draw, got num {num}")
        labels = self.labels(cond, num or 0)
        length = self.config.num_tokens if length is None else length
        if not 1 <= length <= self.config.num_tokens:
            raise InputError(f"length must lie in 1..{self.config.num_tokens}, got {length}")
        check_temperature(temperature)
        guidance = as_guidance(guidance, self.guidance_schedule)
        if guidance.weak_model is not None or guidance.interval != (0.0, 1.0):
            raise InputError("guidance of the diffusion head has a scale and a schedule, no interval and no weak_model")
        scales = guidance.token_scales(length).tolist()
        if randn is None:
            randn = randn_from(generator or torch.Generator(labels.device).manual_seed(0))
        decoder = CachedDecoder(self, labels, length, with_null=any(scale != 1 for scale in scales))
        tokens = self.head_positions.new_zeros(labels.shape[0], length, self.config.token_dim)
        table = self.head.table(steps, sampler)
        for i, scale in enumerate(scales):
            hidden, null_hidden = decoder.step(tokens[:, i - 1] if i else None)
            tokens[:, i] = self.head.sample(
                hidden,
                self.start_noise(randn(tokens[:, i]), temperature),
                randn,
                uncond=null_hidden,
                scale=scale,
                steps=steps,
                sampler=sampler,
                temperature=temperature,
                table=table,
            )
        return self.denormalise(tokens)


@dataclass
class EpsilonLlamaGenConfig:
    """An epsilon-LlamaGen of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "B": {"dim": 768, "depth": 12, "heads": 12},
        "L": {"dim": 1024, "depth": 24, "heads": 16},
        "XL": {"dim": 1280, "depth": 36, "heads": 20},
        "XXL": {"dim": 1536, "depth": 48, "heads": 24},
        "XXXL": {"dim": 2560, "depth": 48, "heads": 40},
        "1B": {"dim": 2048, "depth": 22, "heads": 32},
        "3B": {"dim": 3200, "depth": 24, "heads": 32},
        "7B": {"dim": 4096, "depth": 32, "heads": 32},
    }

    name: str = option("epsilon_llamagen", "which model this is")
    num_tokens: int = option(32, "tokens K of a sequence", ge=1)
    token_dim: int = option(16, "numbers D of a token", ge=1)
    num_classes: int = option(1000, "classes; 0 makes it unconditional", ge=0)
    dim: int = option(1024, "width; size=B, L, XL, XXL, XXXL, 1B, 3B or 7B sets width, depth and heads", ge=1)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    class_tokens: int = option(1, "copies of the class vector before the tokens", ge=1)
    class_dropout: float = option(0.1, "probability of training with the null class", ge=0, lt=1)
    dropout: float = option(0.1, "dropout after attention and feed-forward", ge=0, lt=1)
    drop_path: float = option(0.0, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)
    head: HeadConfig = option(HeadConfig())

    def check(self) -> None:
        """Contradictions between the fields."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")


class EpsilonLlamaGen(CausalGenerator):
    """Tokens (B, K, D) float given classes (B,) int64; see the module's text."""

    guidance_schedule: ClassVar[Literal["linear"]] = "linear"  # how a plain guidance scale grows over the tokens

    roles: ClassVar[Roles] = {"positions": (TOKENS,), "head_positions": (TOKENS,)}

    def __init__(self, config: EpsilonLlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        dim, length = config.dim, config.num_tokens
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.positions = nn.Parameter(torch.randn(1, config.class_tokens + length, dim) * 0.02)
        self.embed_norm = RMSNorm(dim)
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, config.heads, bias=False),
                SwiGLU(dim, swiglu_hidden(dim)),
                (RMSNorm(dim), RMSNorm(dim)),
                dropout=(config.dropout, config.dropout),
                drop_path=config.drop_path * i / max(config.depth - 1, 1),
            )
            for i in range(config.depth)
        )
        self.norm = RMSNorm(dim)
        self.head_positions = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Made after the initialisation pass: the head keeps its own.
        self.head = DiffusionHead(config.head, config.token_dim, dim)

    @property
    def num_prefix(self) -> int:
        return self.config.class_tokens

    def context(self, labels: Tensor) -> Tensor:
        return self.label_embed(labels)

    def prefix(self, context: Tensor) -> Tensor:
        return context[:, None].expand(-1, self.num_prefix, -1)

    def run(self, x: Tensor, start: int, attends: list[Attend], context: Tensor) -> Tensor:
        x = self.embed_norm(x + self.positions[:, start : start + x.shape[1]])
        for block, attend in zip(self.blocks, attends):
            x = block(x, attend)
        return self.norm(x)


class CachedDecoder:
    """Token-by-token states of the stack; guided and unguided streams share one batch and one cache.

    Args:
        labels: (B,) class ids, or captions.
        with_null: also run the null class, rows B..2B-1.
    """

    def __init__(self, model: CausalGenerator, labels: Tensor, length: int, *, with_null: bool) -> None:
        self.model = model
        self.rows = labels.shape[0]
        if with_null:
            labels = torch.cat([labels, model.labels(None, self.rows)])
        self.labels, self.context = labels, model.context(labels)
        config, weight = model.config, model.head_positions
        positions = -(-(model.num_prefix + length) // 8) * 8
        self.caches = [
            KVCache(
                labels.shape[0],
                config.heads,
                positions,
                config.dim // config.heads,
                dtype=weight.dtype,
                device=weight.device,
            )
            for _ in model.blocks
        ]

    def step(self, token: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Feed the token (B, D) just generated (None at first) and get the next head conditions (B, dim)."""
        hidden = self.step_rows(token if token is None or len(self.labels) == self.rows else token.repeat(2, 1))
        return hidden[: self.rows], hidden[self.rows :] if len(self.labels) > self.rows else None

    def step_rows(self, tokens: Tensor | None) -> Tensor:
        """As `step`, with one token for every row of the batch."""
        model = self.model
        start = self.caches[0].filled
        x = model.prefix(self.context) if tokens is None else model.token_embed(tokens)[:, None]
        states = model.run(x, start, [cache.attend for cache in self.caches], self.context)
        index = start + x.shape[1] - model.num_prefix
        return states[:, -1] + model.head_positions[:, index]

"""Causal generators with a diffusion head, and epsilon-LlamaGen.

epsilon-LlamaGen (Semanticist, arXiv 2503.08685, section 4.4) is a LLaMA stack over [class, token 0, ..., token K-1]
whose states condition a diffusion head for the next token. CARD, which has such a head as well, is in `card.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings, Schedule
from tok1d.diffusion.few_step import FewStepModel, FewStepObjective, Velocity, guided_velocity
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import NoiseSource
from tok1d.errors import ConfigError
from tok1d.generators.base import IntervalOf
from tok1d.generators.causal import CausalGenerator, Context, TokenSampler, end_of, init_llama, llama_blocks
from tok1d.generators.head import DiffusionHead, HeadConfig
from tok1d.nn.attention import Attend
from tok1d.nn.embed import LabelEmbed
from tok1d.nn.norm import RMSNorm
from tok1d.nn.roles import TOKENS, Roles


class HeadGenerator(FewStepModel, CausalGenerator):
    """A causal generator of continuous tokens: the states of the stack condition a diffusion head.

    Subclasses also set `head` and `head_positions`. `sample` takes from `noise`, for each token in turn, the initial
    noise (B, D) and then the noise of the head's sampler. Guidance acts on the outputs of the head's network.
    """

    kind: ClassVar[Kind] = "diffusion"
    guidance_interval_of: ClassVar[IntervalOf | None] = None

    same_as_teacher: ClassVar[tuple[str, ...]] = ("num_tokens", "token_dim", "num_classes", "statistics")
    weights_of_teacher: ClassVar[tuple[str, ...]] = ("token_mean", "token_std")

    head_positions: nn.Parameter  # (1, K, dim), added to the states
    head: DiffusionHead

    @property
    def few_step(self) -> FewStepObjective | None:  # type: ignore[override]
        """The objective of the head."""
        return self.head.few_step

    def final_norm(self, x: Tensor, skip: int) -> Tensor:
        # The other order would round the gradient of the norm's weight differently where the prefix has several inputs.
        return self.norm(x)[:, skip:]

    def outputs(self, states: Tensor, first: int, context: Context) -> Tensor:
        """The head's conditions (B, L, dim), see `DiffusionHead`."""
        return states + self.head_positions[:, first : first + states.shape[1]]

    def hidden(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """Conditions (B, k, C) of the head for normalised tokens (B, k, D), 1 <= k <= K; row i uses tokens < i."""
        # The state of the last token conditions nothing, so it is not computed.
        return self(tokens[:, :-1], cond)

    def normalise(self, tokens: Tensor) -> Tensor:
        """Raw tokens (B, K, D) -> tokens as stack and head receive them."""
        return tokens

    def denormalise(self, tokens: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return tokens

    def initial_noise(self, noise: Tensor, temperature: float) -> Tensor:
        """The initial noise (B, D) of the head's sampler, from standard normal noise (B, D)."""
        return noise

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """The head's mean loss; batch: raw tokens (B, k, D), and class ids (B,), captions (B, T, E) or None.

        Of a model that stops by itself, the batch also has the numbers of tokens (B,), and the head's loss is over
        these tokens; "loss_stop" is that of the ends.
        """
        tokens = self.normalise(batch[0])
        cond = self.training_cond(batch[1], len(tokens))
        if self.stop is not None:
            return self._stopping_losses(tokens, cond, self.lengths_in(batch, tokens.shape[1]))
        hidden = self.hidden(tokens, cond)
        velocity = None if self.few_step is None else self.learned_velocity(tokens, cond)
        return {"loss": self.head.loss_rows(tokens.flatten(0, 1), hidden.flatten(0, 1), velocity=velocity).mean()}

    @torch.no_grad()
    def learned_velocity(self, tokens: Tensor, cond: Tensor) -> Velocity | None:
        """The guided velocity that few-step training learns for normalised tokens (B, k, D); None: the data's.

        The scale follows the model's schedule over the tokens.

        Raises:
            InputError: the teacher is not loaded.
        """
        assert self.few_step is not None
        teacher, scale = self.taught_by(), self.few_step.config.guidance
        if teacher is None and scale == 1:
            return None
        source: HeadGenerator = self if teacher is None else teacher
        copies, (num, length) = self.head.config.batch_mul, tokens.shape[:2]
        null = scales = None
        if scale != 1:
            null = source.hidden(tokens, source.check_cond(None, num)).flatten(0, 1)
            of_tokens = source.token_scales(source.guidance_of(scale), length)
            scales = tokens.new_tensor(of_tokens).repeat(copies * num)[:, None]
        if teacher is None:
            assert null is not None and scales is not None
            return guided_velocity(self.head.field(null, copies=copies), scales)
        given = teacher.hidden(tokens, cond).flatten(0, 1)
        field = teacher.head.field(given, null, 1.0 if scales is None else scales, copies=copies)
        return lambda x, t, v: field(x, t)

    def _stopping_losses(self, tokens: Tensor, cond: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The head's mean loss over the tokens until the sequences end, and that of the ends; see `losses`."""
        states, context = self.states(tokens[:, :-1], cond)
        hidden = self.outputs(states, 0, context)
        velocity = None if self.few_step is None else self.learned_velocity(tokens, cond)
        rows = self.head.loss_rows(tokens.flatten(0, 1), hidden.flatten(0, 1), velocity=velocity)
        kept = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).flatten()
        kept = kept.repeat(len(rows) // len(kept))
        return {"loss": (rows * kept).sum() / kept.sum(), "loss_stop": self.stop_loss(states, lengths)}

    def finished(self, tokens: Tensor) -> Tensor:
        """Raw tokens (B, k, D)."""
        return self.denormalise(tokens)

    def empty(self, rows: int, length: int) -> Tensor:
        return self.head_positions.new_zeros(rows, length, self.head.token_dim)

    def token_sampler(self, settings: SampleSettings, noise: NoiseSource, **own: object) -> TokenSampler:
        steps, sampler, temperature = settings.steps, settings.sampler, settings.temperature
        table = self.head.table(steps, sampler)

        def sample(cond: Tensor, null_cond: Tensor | None, scale: float) -> Tensor:
            start = noise(self.head_positions.new_empty(len(cond), self.head.token_dim))
            return self.head.sample(
                cond,
                self.initial_noise(start, temperature),
                noise,
                uncond=null_cond,
                scale=scale,
                steps=steps,
                sampler=sampler,
                temperature=temperature,
                table=table,
            )

        return sample

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The input layer of the head's network, which each of its evaluations calls once."""
        return [self.head.net.input]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, object]:
        """The head's sampler and steps."""
        return {"sampler": self.head.sampler(settings.sampler), "steps": settings.steps or self.head.config.steps}


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

    name: str = option("epsilon_llamagen", "name of the model")
    num_tokens: int = option(32, "tokens K of a sequence", ge=1)
    token_dim: int = option(16, "channels D of a token", ge=1)
    num_classes: int = option(1000, "classes; 0 makes it unconditional", ge=0)
    dim: int = option(1024, "width; size=B, L, XL, XXL, XXXL, 1B, 3B or 7B sets width, depth and heads", ge=1)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    class_tokens: int = option(1, "copies of the class vector before the tokens", ge=1)
    norm_eps: float = option(1e-5, "epsilon of the norms", gt=0)
    class_dropout: float = option(0.1, "probability of training with the null class", ge=0, lt=1)
    dropout: float = option(0.1, "dropout after attention and feed-forward", ge=0, lt=1)
    drop_path: float = option(0.0, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)
    stop: bool = option(
        False,
        "stop by itself: predict before every token whether the sequence ends; trained on the numbers of tokens that "
        "images need for budget.quality",
    )
    head: HeadConfig = option(HeadConfig())

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.head.class_token and not self.num_classes:
            raise ConfigError("head.class_token: num_classes=0 has no class token, expected false, got true")


class EpsilonLlamaGen(HeadGenerator):
    """Generates tokens (B, K, D) for class ids (B,); see the module's docstring."""

    config: EpsilonLlamaGenConfig

    roles: ClassVar[Roles] = {"positions": (TOKENS,), "head_positions": (TOKENS,)}

    def __init__(self, config: EpsilonLlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        dim, length = config.dim, config.num_tokens
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.positions = nn.Parameter(torch.randn(1, config.class_tokens + length, dim) * 0.02)
        self.embed_norm = RMSNorm(dim, config.norm_eps)
        self.blocks = llama_blocks(
            dim,
            config.depth,
            config.heads,
            dropout=config.dropout,
            drop_path=config.drop_path,
            norm_eps=config.norm_eps,
        )
        self.norm = RMSNorm(dim, config.norm_eps)
        self.head_positions = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        init_llama(self)
        # Made after `init_llama`, because the head has its own initialisation.
        self.head = DiffusionHead(config.head, config.token_dim, dim)
        self.stop = end_of(dim, length) if config.stop else None

    @property
    def guidance_schedule(self) -> Schedule:
        return "linear"

    def context(self, cond: Tensor) -> Context:
        return Context(self.label_embed(cond)[:, None].expand(-1, self.config.class_tokens, -1))

    def outputs(self, states: Tensor, first: int, context: Context) -> Tensor:
        """The head's conditions (B, L, dim), or with `head.class_token` (B, L, 2 dim): followed by the class vector."""
        conditions = super().outputs(states, first, context)
        if not self.config.head.class_token:
            return conditions
        return torch.cat([conditions, context.prefix[:, :1].expand_as(conditions)], dim=-1)

    def embed(self, x: Tensor, start: int, attends: list[Attend]) -> tuple[Tensor, list[Attend]]:
        return self.embed_norm(x + self.positions[:, start : start + x.shape[1]]), attends

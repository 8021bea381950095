"""MaskGIT (arXiv 2202.04200) on 1D tokens, as TiTok uses it (arXiv 2406.07550): all ids at once, in a few steps.

A bidirectional transformer over [class, ids] with some ids masked gives the logits of every id. Sampling starts with
all ids masked: each step samples all masked ids and masks the least confident of them again, along an arccos schedule.
The transformer is BERT's (post-norm) or a U-ViT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings, Schedule
from tok1d.diffusion.guidance import Guidance, combine
from tok1d.diffusion.solver import NoiseSource
from tok1d.errors import ConfigError
from tok1d.generators.base import Generator, IntervalOf
from tok1d.generators.categorical import gumbel
from tok1d.losses.masked import weighted_mean
from tok1d.nn.attention import Attention, dropped, full
from tok1d.nn.block import Block, Mlp, PostNormBlock, run_with_skips
from tok1d.nn.embed import LabelEmbed
from tok1d.nn.precision import single
from tok1d.nn.roles import TOKENS, Roles


@dataclass
class MaskGITConfig:
    """A MaskGIT of any width, depth and heads, and its default sampling."""

    name: str = option("maskgit", "name of the model")
    num_tokens: int = option(128, "ids K of a sequence", ge=1)
    vocab_size: int = option(8192, "size V of the vocabulary, without the mask", ge=1)
    num_classes: int = option(1000, "number of classes; 0 for an unconditional model", ge=0)
    trunk: Literal["vit", "uvit"] = option(
        "vit", "BERT's post-norm blocks (vit), or pre-norm blocks with U-ViT's skips (uvit)"
    )
    dim: int = option(768, "width", ge=1)
    depth: int = option(24, "number of blocks; with trunk=uvit an odd number", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of a feed-forward part over the width", gt=0)
    norm_eps: float | None = option(None, "epsilon of the norms; null: 1e-12 for trunk=vit, 1e-5 for uvit", gt=0)
    class_dropout: float = option(0.1, "probability of the null class in training", ge=0, lt=1)
    dropout: float = option(0.1, "dropout of embeddings and after attention and feed-forward", ge=0, lt=1)
    attention_dropout: float = option(0.1, "dropout of attention weights", ge=0, lt=1)
    label_smoothing: float = option(0.1, "label smoothing of the targets", ge=0, lt=1)
    visible_weight: float = option(0.1, "weight of visible ids in the loss; masked ids have 1", ge=0)
    steps: int = option(8, "default sampling steps", ge=1)
    noise: float = option(9.5, "Gumbel noise of ids and confidences at the first step; falls linearly to 0", ge=0)
    annealing: bool = option(True, "divide the logits by a temperature that falls from 1.3 to 0.5 over the steps")
    guidance_schedule: Schedule = option("linear", "schedule of a plain guidance scale over the steps")
    guidance_power: float = option(3.0, "power of the power_cosine schedule", gt=0)

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.trunk == "uvit" and self.depth % 2 == 0:
            raise ConfigError(f"depth: expected an odd number of blocks for trunk=uvit, got {self.depth}")


def mask_ratio(time: Tensor) -> Tensor:
    """The share of masked ids at times in [0, 1], from 1 down to 0: acos(time) 2 / pi, at least 1e-6."""
    return (time.acos() * 2 / math.pi).clamp(1e-6, 1.0)


def masked_counts(num_tokens: int, steps: int) -> list[int]:
    """Numbers of masked ids before each step and after the last: steps + 1 integers from `num_tokens` to 0.

    After step k it is floor(num_tokens acos((k + 1) / steps) 2 / pi), limited to at least 1 and to one fewer than
    before. With more steps than tokens the last masked id stays masked until the last step.
    """
    counts = [num_tokens]
    for k in range(1, steps):
        wanted = math.floor(num_tokens * (math.acos(k / steps) / (math.pi / 2)))
        counts.append(max(1, min(counts[-1] - 1, wanted)))
    return [*counts, 0]


class MaskGITNetwork(nn.Module):
    """Ids (B, K), with V for a masked one, and class ids (B,) -> logits (B, K, V); attention is bidirectional."""

    roles: ClassVar[Roles] = {"positions": (TOKENS,)}

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        dim, bert = config.dim, config.trunk == "vit"
        eps = config.norm_eps or (1e-12 if bert else 1e-5)
        self.attention_dropout = config.attention_dropout
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.token_embed = nn.Embedding(config.vocab_size + 1, dim)
        self.positions = nn.Parameter(torch.empty(1, 1 + config.num_tokens, dim))
        # BERT has a norm before the blocks, a pre-norm transformer one after them.
        self.embed_norm = nn.LayerNorm(dim, eps=eps) if bert else nn.Identity()
        self.embed_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            (PostNormBlock if bert else Block)(
                Attention(dim, config.heads, qkv_bias=bert),
                Mlp(dim, int(dim * config.mlp_ratio)),
                (nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)),
                dropout=(config.dropout, config.dropout),
            )
            for _ in range(config.depth)
        )
        half = 0 if bert else config.depth // 2
        self.skips = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(half))
        self.norm = nn.Identity() if bert else nn.LayerNorm(dim, eps=eps)
        self.out = nn.Linear(dim, config.vocab_size)
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = torch.cat([self.label_embed(labels)[:, None], self.token_embed(ids)], dim=1)
        x = self.embed_dropout(self.embed_norm(x + self.positions))
        attend = dropped(self.attention_dropout) if self.training and self.attention_dropout else full
        if self.skips:
            x = run_with_skips(x, self.blocks, self.skips, attend)
        else:
            for block in self.blocks:
                x = block(x, attend)
        return self.out(self.norm(x[:, 1:]))


class MaskGIT(Generator):
    """Generates ids (B, K) for class ids (B,); see the module's docstring.

    In `sample` a guidance interval is in fractions of the steps, and `temperature` multiplies `config.noise`. For each
    step but the last, `noise` supplies (B, K, V) numbers for the ids, then (B, K) for the confidences. The released
    guidance scales of the constant and linear schedules are smaller by 1, see `zoo.compat.guidance`.
    """

    kind: ClassVar[Kind] = "masked"
    parallel: ClassVar[bool] = True
    guidance_interval_of: ClassVar[IntervalOf | None] = "steps"
    own_options: ClassVar[tuple[str, ...]] = ("annealing",)  # default: `config.annealing`

    config: MaskGITConfig

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_id = config.vocab_size
        self.net = MaskGITNetwork(config)

    @property
    def label_embed(self) -> LabelEmbed:  # type: ignore[override]
        """The network's class embedding."""
        return self.net.label_embed

    @property
    def guidance_schedule(self) -> Schedule:
        return self.config.guidance_schedule

    @property
    def guidance_power(self) -> float:
        return self.config.guidance_power

    def mask(self, ids: Tensor, *, time: Tensor | None = None, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mask round(K mask_ratio(time)) of the ids (B, K) in each row, at least 1.

        Args:
            time: (B,) in [0, 1]; None: uniform random ones.
            order: (B, K); positions with the smallest numbers are masked; None: uniform random numbers.

        Returns:
            The ids (B, K) with `mask_id` where masked, and (B, K) bool, True where masked.
        """
        time = torch.rand(len(ids), device=ids.device) if time is None else time
        order = torch.rand(ids.shape, device=ids.device) if order is None else order
        count = (ids.shape[1] * mask_ratio(time)).round().clamp(min=1)
        masked = order.argsort(dim=-1) < count[:, None]
        return torch.where(masked, self.mask_id, ids), masked

    def loss(self, logits: Tensor, ids: Tensor, masked: Tensor) -> Tensor:
        """Weighted mean cross-entropy of logits (B, K, V) with smoothed targets: weight 1 where `masked` (B, K).

        Visible ids have the weight `config.visible_weight`.
        """
        smoothing = self.config.label_smoothing
        errors = F.cross_entropy(single(logits).transpose(1, 2), ids, reduction="none", label_smoothing=smoothing)
        weights = torch.where(masked, 1.0, self.config.visible_weight)
        return weighted_mean(errors, weights, shared=self.training, least=1e-8)

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """The "loss", and the "accuracy" at masked ids; batch: ids (B, K), and class ids (B,) or None."""
        ids, cond = batch
        labels = self.training_cond(cond, len(ids))
        visible, masked = self.mask(ids)
        logits = self.net(visible, labels)
        return {"loss": self.loss(logits, ids, masked), "accuracy": accuracy(logits, ids, masked)}

    def make_tokens(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> Tensor:
        """Ids (B, K), see `Generator.make_tokens`."""
        steps = self.config.steps if settings.steps is None else settings.steps
        annealing = own.get("annealing")
        *_, ids = self.decoding_steps(
            cond,
            noise,
            guidance=guidance,
            steps=steps,
            noise_scale=self.config.noise * settings.temperature,
            annealing=self.config.annealing if annealing is None else bool(annealing),
        )
        return ids

    @torch.no_grad()
    def decoding_steps(
        self, labels: Tensor, noise: NoiseSource, *, guidance: Guidance, steps: int, noise_scale: float, annealing: bool
    ) -> Iterator[Tensor]:
        """The ids (B, K) after each step, `mask_id` where masked (arXiv 2202.04200, section 3.2).

        Args:
            labels: (B,), the null class included.
            noise: uniform numbers in [0, 1], see `MaskGIT`.
            noise_scale: of the Gumbel noise at the first step.
        """
        ids = torch.full((len(labels), self.config.num_tokens), self.mask_id, device=labels.device)
        for k, (_, left) in enumerate(pairwise(masked_counts(self.config.num_tokens, steps))):
            done, remaining = k / steps, 1 - (k + 1) / steps
            logits = self.guided(ids, labels, guidance.scale_at(done) if guidance.acts_at(done) else 1.0)
            if annealing:
                logits = logits / (0.5 + 0.8 * remaining)
            masked, scale = ids == self.mask_id, noise_scale * remaining
            noisy = logits + scale * gumbel(noise(logits)) if scale else logits
            sampled = noisy.argmax(-1)
            if left:
                confidence = logits.gather(-1, sampled[..., None])[..., 0]
                confidence = confidence + scale * gumbel(noise(confidence)) if scale else confidence
                confidence = confidence.masked_fill(~masked, torch.inf)
                again = confidence.topk(left, largest=False).indices
                sampled = sampled.scatter(1, again, self.mask_id)
            ids = torch.where(masked, sampled, ids)
            yield ids

    def guided(self, ids: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Guided logits (B, K, V) in float32; unless the scale is 1, class and null class run in one batch."""
        if scale == 1:
            return self.net(ids, labels).float()
        pair = torch.cat([labels, self.check_cond(None, len(labels))])
        conditional, unconditional = self.net(ids.repeat(2, 1), pair).float().chunk(2)
        return combine(conditional, unconditional, scale)

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The network."""
        return [self.net]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, object]:
        """The name of the only sampler, its steps, and the configured noise and annealing."""
        config, steps = self.config, settings.steps or self.config.steps
        return {"sampler": "maskgit", "steps": steps, "noise": config.noise, "annealed": config.annealing}


def accuracy(logits: Tensor, ids: Tensor, masked: Tensor) -> Tensor:
    """The fraction of a row's masked ids (B, K) that have the largest logit (B, K, V), averaged over the rows."""
    right = (logits.argmax(-1) == ids) & masked
    return (right.sum(1) / masked.sum(1)).mean()

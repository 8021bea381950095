"""MaskGIT (arXiv 2202.04200) on 1D tokens, as TiTok uses it (arXiv 2406.07550): all ids at once, in a few steps.

A bidirectional transformer over [class, ids], where hidden ids are the mask's, gives the logits of every id. Sampling
starts from masks alone: each step draws all hidden ids and hides the least confident again, along an arccos schedule.
The body is BERT's (post-norm) or a U-ViT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings
from tok1d.diffusion.guidance import Guidance, Schedule, combine
from tok1d.diffusion.solver import Generators, Randn, uniform_from
from tok1d.errors import ConfigError, InputError
from tok1d.generators.base import IntervalOf, check_temperature
from tok1d.generators.categorical import gumbel
from tok1d.losses.masked import weighted_mean
from tok1d.nn.attention import Attention, dropped, full
from tok1d.nn.block import Block, Mlp, PostNormBlock, run_with_skips
from tok1d.nn.embed import LabelEmbed, class_ids, training_ids
from tok1d.nn.precision import single
from tok1d.nn.roles import TOKENS, Roles


@dataclass
class MaskGITConfig:
    """A MaskGIT of any width, depth and heads, and how it samples by default."""

    name: str = option("maskgit", "which model this is")
    num_tokens: int = option(128, "ids K of a sequence", ge=1)
    vocab_size: int = option(8192, "size V of the vocabulary, without the mask", ge=1)
    num_classes: int = option(1000, "classes; 0 makes it unconditional", ge=0)
    trunk: Literal["vit", "uvit"] = option("vit", "BERT's post-norm blocks, or pre-norm blocks with U-ViT's skips")
    dim: int = option(768, "width", ge=1)
    depth: int = option(24, "number of blocks; of a uvit odd, as many before the middle one as after it", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of a feed-forward part over the width", gt=0)
    class_dropout: float = option(0.1, "probability of training with the null class", ge=0, lt=1)
    dropout: float = option(0.1, "dropout of embeddings and after attention and feed-forward", ge=0, lt=1)
    attention_dropout: float = option(0.1, "dropout of attention weights", ge=0, lt=1)
    label_smoothing: float = option(0.1, "share of the target that is spread over all ids", ge=0, lt=1)
    visible_weight: float = option(0.1, "weight in the loss of ids that are not hidden, beside 1 of hidden ones", ge=0)
    steps: int = option(8, "default sampling steps", ge=1)
    noise: float = option(9.5, "Gumbel noise of draws and confidences at the start, falls linearly to 0", ge=0)
    annealing: bool = option(True, "divide logits by a temperature that falls from 1.3 to 0.5")
    guidance_schedule: Schedule = option("linear", "how guidance grows over the steps")
    guidance_power: float = option(3.0, "power of the power_cosine schedule", gt=0)

    def check(self) -> None:
        """Contradictions between the fields."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.trunk == "uvit" and self.depth % 2 == 0:
            raise ConfigError(f"depth: a uvit has an odd number of blocks, got {self.depth}")


def mask_ratio(time: Tensor) -> Tensor:
    """The share of ids hidden at times in [0, 1], from 1 down to 0: acos(time) 2 / pi, at least 1e-6."""
    return (time.acos() * 2 / math.pi).clamp(1e-6, 1.0)


def masked_counts(num_tokens: int, steps: int) -> list[int]:
    """How many ids are hidden before each step, and after the last: steps + 1 numbers from all to 0.

    After step k it is floor(num_tokens acos((k + 1) / steps) 2 / pi), but at least one and one fewer than before;
    with more steps than tokens the last one stays hidden until the end.
    """
    counts = [num_tokens]
    for k in range(1, steps):
        wanted = math.floor(num_tokens * (math.acos(k / steps) / (math.pi / 2)))
        counts.append(max(1, min(counts[-1] - 1, wanted)))
    return [*counts, 0]


class MaskGITNetwork(nn.Module):
    """Ids (B, K), V standing for a hidden one, and labels (B,) -> logits (B, K, V); nothing is causal."""

    roles: ClassVar[Roles] = {"positions": (TOKENS,)}

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        dim, bert = config.dim, config.trunk == "vit"
        eps = 1e-12 if bert else 1e-5
        self.attention_dropout = config.attention_dropout
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.token_embed = nn.Embedding(config.vocab_size + 1, dim)
        self.positions = nn.Parameter(torch.empty(1, 1 + config.num_tokens, dim))
        # BERT normalises what enters, a pre-norm body what leaves.
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


class MaskGIT(nn.Module):
    """Ids (B, K) int64 given classes (B,) int64; see the module's text."""

    kind: ClassVar[Kind] = "masked"
    parallel: ClassVar[bool] = True
    guidance_interval_of: ClassVar[IntervalOf] = "steps"

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_id = config.vocab_size
        self.net = MaskGITNetwork(config)

    @property
    def label_embed(self) -> LabelEmbed:
        """The network's table of classes."""
        return self.net.label_embed

    @property
    def guidance_schedule(self) -> Schedule:
        """How a plain guidance scale grows over the steps."""
        return self.config.guidance_schedule

    @property
    def guidance_power(self) -> float:
        """The power of that schedule, where it is power_cosine."""
        return self.config.guidance_power

    def labels(self, cond: Tensor | None, batch: int) -> Tensor:
        """Checked class ids (B,), see `class_ids`."""
        return class_ids(self.label_embed, cond, batch, self.net.positions.device)

    def hide(self, ids: Tensor, *, time: Tensor | None = None, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ids (B, K) with some of them hidden, and where (B, K) bool: round(K mask_ratio(time)) of them, at least 1.

        Args:
            time: (B,) uniform draws in [0, 1]. order: (B, K) uniform draws that decide which; else drawn.
        """
        time = torch.rand(len(ids), device=ids.device) if time is None else time
        order = torch.rand(ids.shape, device=ids.device) if order is None else order
        count = (ids.shape[1] * mask_ratio(time)).round().clamp(min=1)
        hidden = order.argsort(dim=-1) < count[:, None]
        return torch.where(hidden, self.mask_id, ids), hidden

    def loss(self, logits: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
        """Cross-entropy of logits (B, K, V) with smoothed targets, a mean weighted by what was hidden (B, K)."""
        smoothing = self.config.label_smoothing
        errors = F.cross_entropy(single(logits).transpose(1, 2), ids, reduction="none", label_smoothing=smoothing)
        weights = torch.where(hidden, 1.0, self.config.visible_weight)
        return weighted_mean(errors, weights, shared=self.training, least=1e-8)

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """The loss on (ids (B, K), classes (B,) or None), and "accuracy", the share of hidden ids it guesses."""
        ids, cond = batch
        labels = training_ids(self.label_embed, cond, len(ids), self.net.positions.device)
        seen, hidden = self.hide(ids)
        logits = self.net(seen, labels)
        return {"loss": self.loss(logits, ids, hidden), "accuracy": accuracy(logits, ids, hidden)}

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The network over the whole sequence."""
        return [self.net]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, Any]:
        """The name of the only sampler, its steps, and the configuration's noise and annealing."""
        config = self.config
        steps = settings.steps or config.steps
        return {"sampler": "maskgit", "steps": steps, "noise": config.noise, "annealed": config.annealing}

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
        annealing: bool | None = None,
        uniform: Randn | None = None,
    ) -> Tensor:
        """Ids (B, K), all drawn in a few steps.

        Args:
            cond: (B,) class ids, or None with `num`: the unconditional model, or the null class of a conditional one.
            length: None or K; a sequence is drawn whole.
            guidance: a scale, growing over the steps as `config.guidance_schedule` says, or a Guidance, whose interval
                is in shares of the steps. 1 is off and costs no second call (the release's scales of the constant and
                linear schedules are smaller by one, see `zoo.compat.guidance`).
            steps, annealing: default as in `config`.
            temperature: multiplies `config.noise`.
            generator: source of all noise; default: one seeded with 0. With a sequence of them, one a row, a sample
                does not depend on the other rows.
            uniform: source of all noise instead of `generator`, draws in [0, 1]: each step but the last (B, K, V) for
                the ids, then (B, K) for the confidences.

        Raises:
            InputError: class ids, lengths, steps or guidance this model cannot serve.
        """
        if cond is None and (num is None or num < 1):
            raise InputError(f"sample needs class ids, or num for how many sequences to draw, got num {num}")
        config = self.config
        if length not in (None, config.num_tokens):
            raise InputError(
                f"length: this generator draws all {config.num_tokens} tokens at once, got {length}; "
                "leave it out and decode a prefix of them"
            )
        steps = config.steps if steps is None else steps
        if steps < 1:
            raise InputError(f"a sampler needs at least 1 step, got {steps}")
        check_temperature(temperature)
        if not isinstance(guidance, Guidance):
            guidance = Guidance(float(guidance), schedule=self.guidance_schedule, power=self.guidance_power)
        if guidance.weak_model is not None:
            raise InputError("guidance of this generator has a scale, a schedule and an interval, no weak_model")
        labels = self.labels(cond, num or 0)
        *_, ids = self.sample_from(
            labels,
            uniform or uniform_from(generator or torch.Generator(labels.device).manual_seed(0)),
            guidance=guidance,
            steps=steps,
            noise=config.noise * temperature,
            annealing=config.annealing if annealing is None else annealing,
        )
        return ids

    @torch.no_grad()
    def sample_from(
        self, labels: Tensor, uniform: Randn, *, guidance: Guidance, steps: int, noise: float, annealing: bool
    ) -> Iterator[Tensor]:
        """The ids (B, K) after each step, `mask_id` where hidden; labels (B,), the null class included."""
        ids = torch.full((len(labels), self.config.num_tokens), self.mask_id, device=labels.device)
        for k, (_, left) in enumerate(pairwise(masked_counts(self.config.num_tokens, steps))):
            done, remaining = k / steps, 1 - (k + 1) / steps
            logits = self.guided(ids, labels, guidance.scale_at(done) if guidance.acts_at(done) else 1.0)
            if annealing:
                logits = logits / (0.5 + 0.8 * remaining)
            hidden, strength = ids == self.mask_id, noise * remaining
            noisy = logits + strength * gumbel(uniform(logits)) if strength else logits
            drawn = noisy.argmax(-1)
            if left:
                confidence = logits.gather(-1, drawn[..., None])[..., 0]
                confidence = confidence + strength * gumbel(uniform(confidence)) if strength else confidence
                confidence = confidence.masked_fill(~hidden, torch.inf)
                again = confidence.topk(left, largest=False).indices
                drawn = drawn.scatter(1, again, self.mask_id)
            ids = torch.where(hidden, drawn, ids)
            yield ids

    def guided(self, ids: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Logits (B, K, V) in float32: of the class alone at scale 1, else of class and null class in one batch."""
        if scale == 1:
            return self.net(ids, labels).float()
        pair = torch.cat([labels, self.labels(None, len(labels))])
        yes, no = self.net(ids.repeat(2, 1), pair).float().chunk(2)
        return combine(yes, no, scale)


def accuracy(logits: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
    """Share of a row's hidden ids (B, K) that the largest logit (B, K, V) names, averaged over the rows."""
    right = (logits.argmax(-1) == ids) & hidden
    return (right.sum(1) / hidden.sum(1)).mean()

"""What the generators that denoise a whole sequence at once share: token statistics, classes, guidance and sampling.

SiT, LightningDiT and USiT follow a velocity from noise (t = 0) to tokens (t = 1) on a continuous path; the networks
are in `sit.py`, `lightningdit.py` and `usit.py`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings
from tok1d.diffusion.guidance import Guidance, as_guidance, combine, guided
from tok1d.diffusion.objective import FlowObjective, Times, direction_loss
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Generators, Randn, euler, heun, interpolant_sde, randn_from, time_grid
from tok1d.errors import ConfigError, InputError
from tok1d.generators.base import IntervalOf, check_temperature
from tok1d.generators.statistics import NormalisedTokens, Statistics
from tok1d.nn.embed import LabelEmbed, class_ids, training_ids
from tok1d.nn.precision import single


@dataclass
class SequenceConfig:
    """A network over all tokens of an image at once."""

    name: str = option("", "which model this is")
    num_tokens: int = option(128, "tokens K of a sequence", ge=1)
    token_dim: int = option(32, "numbers D of a token", ge=1)
    num_classes: int = option(1000, "classes; 0 makes it unconditional", ge=0)
    class_dropout: float = option(0.1, "probability of training with the null class", ge=0, lt=1)
    dim: int = option(1152, "width; size= sets width, depth and heads", ge=1)
    depth: int = option(28, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of a feed-forward part over the width", gt=0)
    statistics: Statistics = option(
        "scalar", "mean and std that tokens are normalised by: of all numbers, or of each of the D of a token"
    )
    steps: int = option(250, "default sampling steps", ge=1)

    def check(self) -> None:
        """Contradictions between the fields."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.dim % 2:
            raise ConfigError(f"dim: expected an even width, got {self.dim}")


@dataclass
class FlowConfig(SequenceConfig):
    """A network trained on the velocity of a continuous path from noise to tokens."""

    path: Literal["linear", "cosine"] = option("linear", "how noise and tokens are mixed over time")
    times: Literal["uniform", "lognormal"] = option(
        "lognormal", "training times: uniform, or with a lognormal ratio of tokens to noise (logit-normal if linear)"
    )
    direction_weight: float = option(0.0, "weight of the loss on the velocity's direction in channel space", ge=0)
    guidance_free: bool = option(False, "train the guided velocity itself, at a strength the network is told")
    sampler: Literal["sde", "euler", "heun"] = option("sde", "default sampler; sde is Euler-Maruyama")
    last_step: float = option(0.04, "length in time of the SDE sampler's last step, without noise", gt=0, lt=1)
    time_shift: float = option(1.0, "above 1 the ODE samplers spend more of their steps near the noise", gt=0)

    def check(self) -> None:
        """Contradictions between the fields."""
        super().check()
        if self.guidance_free and not (self.num_classes and self.class_dropout):
            raise ConfigError("guidance_free: needs classes and class_dropout > 0, set both or guidance_free=false")


class SequenceModel(NormalisedTokens):
    """Token statistics, classes, and the frame of sampling of a network `net` over whole sequences.

    Subclasses make `self.net`, whose call is net(x (B, K, D), t (B,) or (1,), labels (B,)) and which holds a
    `label_embed`.
    """

    net: nn.Module
    kind: ClassVar[Kind] = "diffusion"
    parallel: ClassVar[bool] = True
    guidance_interval_of: ClassVar[IntervalOf] = "time"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.hold_statistics(config.statistics, config.token_dim)

    @property
    def label_embed(self) -> LabelEmbed:
        """The network's table of classes."""
        return self.net.label_embed  # type: ignore[return-value]

    def labels(self, cond: Tensor | None, batch: int) -> Tensor:
        """Checked class ids (B,), see `class_ids`."""
        return class_ids(self.label_embed, cond, batch, self.token_mean.device)

    def training_labels(self, cond: Tensor | None, batch: int) -> Tensor:
        """Class ids (B,) of a training step, see `training_ids`."""
        return training_ids(self.label_embed, cond, batch, self.token_mean.device)

    def both(self, labels: Tensor) -> Any:
        """The conditional and the unconditional output of the network at (x, t), in one batch of 2B rows."""
        pair = torch.cat([labels, self.labels(None, len(labels))])

        def outputs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            yes, no = self.net(x.repeat(2, 1, 1), t if len(t) == 1 else t.repeat(2), pair).chunk(2)
            return yes, no

        return outputs

    def check_guidance(self, guidance: float | Guidance) -> Guidance:
        """A Guidance this model can follow.

        Raises:
            InputError: a schedule over tokens, no null class to guide against, or a weak model of another kind.
        """
        guidance = as_guidance(guidance)
        if guidance.schedule != "constant":
            raise InputError("guidance of a whole sequence has a scale and an interval, no schedule over the tokens")
        weak = guidance.weak_model
        if weak is None:
            if guidance.scale != 1 and (not self.label_embed.has_null or self.config.num_classes == 0):
                raise InputError("guidance: this model has no classes or no null class to guide against; pass 1")
            return guidance
        for key in ("name", "num_tokens", "token_dim", "num_classes", "path", "schedule"):
            ours, theirs = getattr(self.config, key, None), getattr(getattr(weak, "config", None), key, None)
            if ours != theirs:
                raise InputError(f"weak model: expected an earlier or smaller one with {key}={ours}, got {theirs}")
        for key in ("token_mean", "token_std"):
            if not torch.allclose(getattr(self, key).cpu(), getattr(weak, key).cpu(), rtol=1e-2, atol=1e-3):
                raise InputError(f"weak model: its {key} differs; it was trained on the tokens of another cache")
        return guidance

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The networks that sampling calls: the model's, and that of a weak model."""
        return [self.net] if guidance.weak_model is None else [self.net, guidance.weak_model.net]

    def resolved_settings(self, settings: SampleSettings) -> dict[str, Any]:
        """Sampler and steps, the configuration's where the settings have none."""
        return {"sampler": self.sampler(settings.sampler), "steps": settings.steps or self.config.steps}

    @abstractmethod
    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the configuration's; InputError for one there is not."""

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
        """Raw tokens (B, K, D), all at once.

        Args:
            cond: (B,) class ids, or None with `num`: the unconditional model, or the null class of a conditional one.
            length: None or K; a sequence is drawn whole.
            guidance: a scale, or a Guidance. Its interval is in our time, 0 = noise to 1 = tokens: MAETok's [0, 0.75],
                with noise at 1, is (0.25, 1) here. Inside it a step takes one call on 2B rows, outside on B rows; a
                `weak_model` costs a call of its own (Autoguidance), a guidance-free model never a second one.
            steps: of the sampler, default `config.steps`.
            temperature: multiplies the noise of a stochastic sampler.
            generator: source of all noise; default: one seeded with 0. With a sequence of them, one a row, a sample
                does not depend on the other rows.
            sampler: one of the model's, default the configured one.
            randn: source of all noise instead of `generator`: the starting noise (B, K, D), then what the sampler
                draws.

        Raises:
            InputError: class ids, lengths, samplers, steps or guidance this model cannot serve.
        """
        if cond is None and (num is None or num < 1):
            raise InputError(f"sample needs class ids, or num for how many sequences to draw, got num {num}")
        config = self.config
        if length not in (None, config.num_tokens):
            raise InputError(
                f"length: this generator draws all {config.num_tokens} tokens at once, got {length}; "
                "leave it out and decode a prefix of them"
            )
        check_temperature(temperature)
        labels = self.labels(cond, num or 0)
        randn = randn or randn_from(generator or torch.Generator(labels.device).manual_seed(0))
        return self.sample_from(
            labels,
            randn(self.token_mean.new_empty(len(labels), config.num_tokens, config.token_dim)),
            randn,
            guidance=self.check_guidance(guidance),
            steps=config.steps if steps is None else steps,
            sampler=sampler,
            temperature=temperature,
        )

    @abstractmethod
    def sample_from(
        self,
        labels: Tensor,
        x: Tensor,
        randn: Randn,
        *,
        guidance: Guidance,
        steps: int,
        sampler: str | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Raw tokens from checked labels (B,), the null class included, and starting noise x (B, K, D)."""

    @abstractmethod
    def loss_rows(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Per-sample terms (B,) of the loss on normalised tokens."""

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """Mean loss terms on (raw tokens (B, K, D), classes (B,) or None)."""
        tokens, cond = batch
        rows = self.loss_rows(self.normalise(tokens), self.training_labels(cond, len(tokens)))
        return {name: row.mean() for name, row in rows.items()}


class FlowModel(SequenceModel):
    """A generator trained to give the velocity of the path (SiT, arXiv 2401.08740), with its samplers."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self.objective = FlowObjective(Path(config.path), "velocity")
        lognormal = "logit_normal" if config.path == "linear" else "atan_normal"
        self.times = Times("uniform" if config.times == "uniform" else lognormal)

    def loss_rows(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Per-sample squared error of the velocity (B,), and its direction loss where that has a weight.

        Args:
            tokens: (B, K, D), normalised. labels: (B,), the null class included.
            t, noise, beta: (B,), (B, K, D), (B,), else drawn; beta is read by guidance-free training.
        """
        t = self.times.draw(len(tokens), tokens.device) if t is None else t
        noise = torch.randn_like(tokens) if noise is None else noise
        x_t = self.objective.path.interpolate(tokens, noise, t)
        target = self.objective.target(tokens, noise, t)
        prediction = self.guidance_free(x_t, t, labels, beta) if self.config.guidance_free else self.net(x_t, t, labels)
        losses = {"loss": (single(prediction) - target).square().flatten(1).mean(1)}
        if self.config.direction_weight:
            losses["loss_direction"] = self.config.direction_weight * direction_loss(prediction, target)
        return losses

    def guidance_free(self, x_t: Tensor, t: Tensor, labels: Tensor, beta: Tensor | None = None) -> Tensor:
        """beta f(x_t, labels, beta) + (1 - beta) f(x_t, null, 1), the second without gradient (arXiv 2501.15420).

        beta (B,) is uniform in (0, 1], and 1 where the class was dropped: there it is the ordinary prediction.
        """
        beta = 1 - torch.rand_like(t) if beta is None else beta
        beta = torch.where(labels == self.label_embed.null, 1.0, beta)
        with torch.no_grad():
            free = self.net(x_t, t, torch.full_like(labels, self.label_embed.null))
        return combine(single(self.net(x_t, t, labels, beta)), single(free), beta[:, None, None])

    def field(self, labels: Tensor, guidance: Guidance) -> Field:
        """The velocity f(x, t) the samplers follow, in normalised tokens (B, K, D)."""

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t, labels)

        weak = guidance.weak_model
        if weak is not None:
            return guided(lambda x, t: (self.net(x, t, labels), weak.net(x, t, labels)), conditional, guidance)
        if self.config.guidance_free:
            return self.guidance_free_field(labels, guidance)
        return guided(self.both(labels), conditional, guidance) if guidance.scale != 1 else conditional

    def guidance_free_field(self, labels: Tensor, guidance: Guidance) -> Field:
        """One call a step: inside the interval the network is told beta = 1 / scale, outside beta = 1."""
        if guidance.scale < 1:
            raise InputError(f"guidance: a guidance-free model takes scales of 1 and above, got {guidance.scale:g}")

        def field(x: Tensor, t: Tensor) -> Tensor:
            scale = guidance.scale if guidance.acts_at(float(t.flatten()[0])) else 1.0
            return self.net(x, t, labels, x.new_full((1,), 1 / scale))

        return field

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the configuration's; InputError for one there is not."""
        if name not in (None, "sde", "euler", "heun"):
            raise InputError(f"sampler: this model samples with 'sde', 'euler' or 'heun', got {name!r}")
        return name or self.config.sampler

    def sample_from(
        self,
        labels: Tensor,
        x: Tensor,
        randn: Randn,
        *,
        guidance: Guidance,
        steps: int,
        sampler: str | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """As `SequenceModel.sample_from`, by "sde" (Euler-Maruyama), "euler" or "heun" (2 steps - 1 calls)."""
        config, name, field = self.config, self.sampler(sampler), self.field(labels, guidance)
        if name == "sde":
            options = {"last_step": config.last_step, "temperature": temperature, "path": self.objective.path}
            return self.denormalise(interpolant_sde(field, x, steps, randn, **options))
        times = time_grid(steps, shift=config.time_shift, device=x.device)
        return self.denormalise((heun if name == "heun" else euler)(field, x, times))


def grid_side(num_tokens: int) -> int:
    """The side of a square grid of so many tokens; ConfigError where there is none."""
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ConfigError(f"num_tokens: two-dimensional positions need a square number of tokens, got {num_tokens}")
    return side

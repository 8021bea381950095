"""Base classes of generators that denoise a whole sequence at once: guidance, sampling and token statistics.

SiT, LightningDiT and USiT follow a velocity from noise (t = 0) to tokens (t = 1) on a continuous path, DiT is a DDPM;
the networks are in `sit.py`, `lightningdit.py` and `usit.py`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.sampling import Kind, SampleSettings
from tok1d.config.text import override_text
from tok1d.diffusion.few_step import FewStepConfig, FewStepModel, FewStepObjective, Intervals, Velocity, guided_velocity
from tok1d.diffusion.guidance import Guidance, combine, guided
from tok1d.diffusion.objective import FlowObjective, Times, direction_loss
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, NoiseSource, euler, heun, interpolant_sde, time_grid
from tok1d.errors import ConfigError, InputError
from tok1d.generators.base import Generator, IntervalOf
from tok1d.generators.statistics import NormalisedTokens, Statistics
from tok1d.nn.embed import LabelEmbed
from tok1d.nn.precision import single


@dataclass
class SequenceConfig:
    """Fields of all generators of this module."""

    name: str = option("", "name of the model")
    num_tokens: int = option(128, "tokens K of a sequence", ge=1)
    token_dim: int = option(32, "channels D of a token", ge=1)
    num_classes: int = option(1000, "number of classes; 0 for an unconditional model", ge=0)
    class_dropout: float = option(0.1, "probability of the null class in training", ge=0, lt=1)
    dim: int = option(1152, "width; size= sets width, depth and heads", ge=1)
    depth: int = option(28, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of a feed-forward part over the width", gt=0)
    norm_eps: float = option(1e-6, "epsilon of the norms", gt=0)
    statistics: Statistics = option(
        "scalar", "mean and std that normalise the tokens: one of each (scalar), or one per channel or position"
    )
    steps: int = option(250, "default sampling steps", ge=1)

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.dim % 2:
            raise ConfigError(f"dim: expected an even width, got {self.dim}")


@dataclass
class FlowConfig(SequenceConfig):
    """Fields of generators trained on the velocity of a continuous path from noise to tokens."""

    path: Literal["linear", "cosine"] = option("linear", "interpolation of noise and tokens over time")
    times: Literal["uniform", "lognormal"] = option(
        "lognormal", "training times: uniform, or with a lognormal ratio of tokens to noise (logit-normal if linear)"
    )
    direction_weight: float = option(0.0, "weight of the loss on the velocity's direction in channel space", ge=0)
    guidance_free: bool = option(False, "train the guided velocity itself; the network receives its strength")
    sampler: Literal["sde", "euler", "heun"] = option("sde", "default sampler; sde is Euler-Maruyama")
    last_step: float = option(0.04, "length in time of the SDE sampler's last step, without noise", gt=0, lt=1)
    time_shift: float = option(1.0, "above 1 the ODE samplers place more of their steps near the noise", gt=0)
    few_step: FewStepConfig | None = option(None, "sampling in few steps; null: a model of the velocity")

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        super().check()
        if self.guidance_free and not (self.num_classes and self.class_dropout):
            raise ConfigError("guidance_free: expected classes and class_dropout > 0, set both or guidance_free=false")
        if self.few_step is not None:
            expected = {"guidance_free": False, "direction_weight": 0.0, "sampler": "euler"}
            for key, value in expected.items():
                if (got := getattr(self, key)) != value:
                    raise ConfigError(f"{key}: expected {override_text(value)} with few_step, got {override_text(got)}")
            if self.few_step.guidance != 1 and not (self.num_classes and self.class_dropout):
                raise ConfigError("few_step.guidance: expected 1 without classes or class_dropout")


class SequenceModel(NormalisedTokens, Generator):
    """A network `net` over whole sequences of normalised tokens, with class ids and guidance.

    Subclasses set `net`, which is called as net(x (B, K, D), t (B,) or (1,), labels (B,)) and has a `label_embed`.
    `sample` takes from `noise` the initial noise (B, K, D), then the noise of the sampler.

    Guidance has a scale and an interval of times from 0 (noise) to 1 (tokens): MAETok's [0, 0.75], with noise at 1, is
    (0.25, 1) here. A step inside it calls the network once on 2B rows, a step outside on B rows. With a
    `weak_model` (Autoguidance, arXiv 2406.02507) it calls each network on B rows; a guidance-free model is called on B
    rows in any case.
    """

    kind: ClassVar[Kind] = "diffusion"
    parallel: ClassVar[bool] = True
    guidance_interval_of: ClassVar[IntervalOf | None] = "time"

    config: SequenceConfig
    net: nn.Module

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.hold_statistics(config.statistics, config.num_tokens, config.token_dim)

    @property
    def label_embed(self) -> LabelEmbed:  # type: ignore[override]
        """The network's class embedding."""
        embed = self.net.label_embed
        assert isinstance(embed, LabelEmbed)
        return embed

    @abstractmethod
    def loss_rows(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss terms (B,) of normalised tokens (B, K, D) and class ids (B,), the null class included."""

    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """Mean loss terms on (raw tokens (B, K, D), class ids (B,) or None)."""
        tokens, cond = batch
        rows = self.loss_rows(self.normalise(tokens), self.training_cond(cond, len(tokens)))
        return {name: row.mean() for name, row in rows.items()}

    def initial_noise(self, rows: int, noise: NoiseSource) -> Tensor:
        """Noise (rows, K, D) that sampling starts from."""
        return noise(self.token_mean.new_empty(rows, self.config.num_tokens, self.config.token_dim))

    def both(
        self, labels: Tensor, intervals: Intervals | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The conditional and the unconditional output of the network at (x, t), in one batch of 2B rows."""
        network = of_labels(self.net, torch.cat([labels, self.check_cond(None, len(labels))]), intervals)

        def outputs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            conditional, unconditional = network(x.repeat(2, 1, 1), t if len(t) == 1 else t.repeat(2)).chunk(2)
            return conditional, unconditional

        return outputs

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise InputError on parts of `guidance` that this model does not support.

        Raises:
            InputError: a schedule over tokens, no null class, or a weak model of another kind or for other tokens.
        """
        if guidance.schedule != "constant":
            raise InputError("guidance: this generator takes a scale and an interval, but no schedule over the tokens")
        weak = guidance.weak_model
        if weak is None:
            if guidance.scale != 1 and (not self.label_embed.has_null or self.config.num_classes == 0):
                raise InputError("guidance: expected 1, because this model has no classes or no null class")
            return
        for key in ("name", "num_tokens", "token_dim", "num_classes", "path", "schedule"):
            ours, theirs = getattr(self.config, key, None), getattr(getattr(weak, "config", None), key, None)
            if ours != theirs:
                raise InputError(f"weak model: expected an earlier or smaller model with {key}={ours}, got {theirs}")
        if (getattr(self, "few_step", None) is None) != (getattr(weak, "few_step", None) is None):
            raise InputError("weak model: expected few_step in both models or in none")
        for key in ("token_mean", "token_std"):
            if not torch.allclose(getattr(self, key).cpu(), getattr(weak, key).cpu(), rtol=1e-2, atol=1e-3):
                raise InputError(f"weak model: its {key} differs; it was trained on the tokens of another cache")

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The network, and that of a weak model."""
        return [self.net] if guidance.weak_model is None else [self.net, guidance.weak_model.net]

    @abstractmethod
    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the model's own; raises InputError for an unknown one."""

    def resolved_settings(self, settings: SampleSettings) -> dict[str, object]:
        """Sampler and steps."""
        return {"sampler": self.sampler(settings.sampler), "steps": settings.steps or self.config.steps}


def of_labels(net: nn.Module, labels: Tensor, intervals: Intervals | None = None) -> Field:
    """The output f(x, t) of a network for class ids (B,); over intervals it gets the lengths of the steps, too."""
    if intervals is None:
        return lambda x, t: net(x, t, labels)
    return lambda x, t: net(x, t, labels, d=intervals(t))


class FlowModel(FewStepModel, SequenceModel):
    """A generator trained on the velocity of the path (SiT, arXiv 2401.08740), with its samplers."""

    same_as_teacher: ClassVar[tuple[str, ...]] = ("num_tokens", "token_dim", "num_classes", "path", "statistics")
    weights_of_teacher: ClassVar[tuple[str, ...]] = ("token_mean", "token_std")

    config: FlowConfig

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self.objective = FlowObjective(Path(config.path), "velocity")
        lognormal = "logit_normal" if config.path == "linear" else "atan_normal"
        self.times = Times("uniform" if config.times == "uniform" else lognormal)
        if config.few_step is not None:
            self.few_step = FewStepObjective(config.few_step, self.objective, self.times, config.time_shift)

    def loss_rows(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Squared error of the velocity (B,), and its direction loss where `direction_weight` is above 0.

        With `few_step` and without given times the loss of the average velocity.

        Args:
            tokens: (B, K, D), normalised.
            labels: (B,), the null class included.
            t: times (B,); noise: (B, K, D); beta: strengths (B,) of guidance-free training; None: random ones.
        """
        if self.few_step is not None and t is None:

            def network(x: Tensor, t: Tensor, d: Tensor, rows: slice) -> Tensor:
                return self.net(x, t, labels[rows], d=d)

            noise = torch.randn_like(tokens) if noise is None else noise
            return {"loss": self.few_step.loss(network, tokens, noise, velocity=self.learned_velocity(labels))}
        t = self.times.sample(len(tokens), tokens.device) if t is None else t
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

        beta (B,) is uniform in (0, 1], and 1 for the null class, where it is the ordinary prediction.
        """
        beta = 1 - torch.rand_like(t) if beta is None else beta
        beta = torch.where(labels == self.label_embed.null, 1.0, beta)
        # The pass with gradients is the first: autocast keeps the half-precision weights of the first for both.
        conditional = self.net(x_t, t, labels, beta)
        with torch.no_grad():
            unconditional = self.net(x_t, t, torch.full_like(labels, self.label_embed.null))
        return combine(single(conditional), single(unconditional), beta[:, None, None])

    def learned_velocity(self, labels: Tensor) -> Velocity | None:
        """The guided velocity that few-step training learns for class ids (B,); None: the data's.

        Raises:
            InputError: the teacher is not loaded.
        """
        assert self.few_step is not None
        teacher, scale = self.taught_by(), self.few_step.config.guidance
        if teacher is not None:
            field: Field = teacher.field(labels, Guidance(scale))
            return lambda x, t, v: field(x, t)
        return None if scale == 1 else guided_velocity(of_labels(self.net, self.check_cond(None, len(labels))), scale)

    def field(self, labels: Tensor, guidance: Guidance, intervals: Intervals | None = None) -> Field:
        """The guided velocity f(x, t) of normalised tokens (B, K, D), which the samplers integrate.

        Args:
            intervals: f is the average velocity over these steps; None: the velocity.
        """
        conditional, weak = of_labels(self.net, labels, intervals), guidance.weak_model
        if weak is not None:
            other = of_labels(weak.net, labels, intervals)
            return guided(lambda x, t: (conditional(x, t), other(x, t)), conditional, guidance)
        if self.config.guidance_free:
            return self.guidance_free_field(labels, guidance)
        return guided(self.both(labels, intervals), conditional, guidance) if guidance.scale != 1 else conditional

    def guidance_free_field(self, labels: Tensor, guidance: Guidance) -> Field:
        """As `field`, of a guidance-free model: its input beta is 1 / scale inside the interval, 1 outside.

        Raises:
            InputError: a scale below 1.
        """
        if guidance.scale < 1:
            raise InputError(f"guidance: a guidance-free model takes scales of 1 and above, got {guidance.scale:g}")

        def field(x: Tensor, t: Tensor) -> Tensor:
            scale = guidance.scale if guidance.acts_at(float(t.flatten()[0])) else 1.0
            return self.net(x, t, labels, x.new_full((1,), 1 / scale))

        return field

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the configured one; raises InputError for an unknown one."""
        if name not in (None, "sde", "euler", "heun"):
            raise InputError(f"sampler: expected 'sde', 'euler' or 'heun', got {name!r}")
        return name or self.config.sampler

    def make_tokens(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> Tensor:
        """Raw tokens (B, K, D) by "sde" (Euler-Maruyama), "euler" or "heun" (2 steps - 1 calls of the network).

        With `few_step` Euler's steps follow the average velocity, the others the velocity.
        """
        config, name = self.config, self.sampler(settings.sampler)
        steps = config.steps if settings.steps is None else settings.steps
        x = self.initial_noise(len(cond), noise)
        if name == "sde":
            x = interpolant_sde(
                self.field(cond, guidance),
                x,
                steps,
                noise,
                last_step=config.last_step,
                temperature=settings.temperature,
                path=self.objective.path,
            )
        else:
            times = time_grid(steps, shift=config.time_shift, device=x.device)
            intervals = Intervals(times) if self.few_step is not None and name == "euler" else None
            x = (heun if name == "heun" else euler)(self.field(cond, guidance, intervals), x, times)
        return self.denormalise(x)


def grid_side(num_tokens: int) -> int:
    """The side of a square grid of `num_tokens` tokens; raises ConfigError if the number is not a square."""
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ConfigError(f"num_tokens: expected a square number for two-dimensional positions, got {num_tokens}")
    return side

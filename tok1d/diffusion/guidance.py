"""Classifier-free guidance: combinations of a conditional and an unconditional prediction.

A scale of 1 gives the conditional prediction, 0 the unconditional one, above 1 an extrapolation (arXiv 2207.12598,
with scale = 1 + w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tok1d.config.sampling import Schedule
from tok1d.diffusion.solver import Field
from tok1d.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Scale, interval, schedule and reference of guidance.

    Args:
        scale: the guidance scale.
        interval: times (0 = noise, 1 = data) at which guidance acts; outside of it the conditional prediction is used
            and no second call is made (arXiv 2404.07724). For ids: shares of the tokens or steps.
        schedule: over the tokens of an autoregressive sequence, or the steps of MaskGIT: "constant", or growing from 1
            to `scale` as "linear" or "power_cosine".
        weak_model: a weaker model whose prediction replaces the unconditional one (Autoguidance, arXiv 2406.02507).
        power: exponent of the power-cosine schedule; above 1 the scale grows mostly in the last tokens or steps (MDT,
            arXiv 2303.14389).

    Raises:
        InputError: a scale that is not finite.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: Schedule = "constant"
    weak_model: Any = None  # a generator, whose class is in a higher layer
    power: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.scale, int | float) and not math.isfinite(self.scale):
            raise InputError(f"guidance: expected a finite scale (1: no guidance), got {self.scale}")

    def acts_at(self, t: float) -> bool:
        """Whether a time (0 = noise, 1 = data) lies in the interval, both ends included."""
        # The tolerance admits float32 times that differ from an end of the interval by rounding.
        return self.interval[0] - 1e-6 <= t <= self.interval[1] + 1e-6

    def token_scales(self, length: int) -> Tensor:
        """The scale of each of `length` tokens (length,), float64; linear is 1 + (scale - 1)(i + 1) / length."""
        return torch.tensor([self.scale_at((i + 1) / length) for i in range(length)], dtype=torch.float64)

    def scale_at(self, done: float) -> float:
        """The scale after a share `done` in [0, 1] of the tokens or steps: 1 + (scale - 1) w(done).

        w is 1 (constant), `done` (linear), or (1 - cos(pi done^power)) / 2 (power-cosine).
        """
        if self.schedule == "constant":
            return self.scale
        rise = done if self.schedule == "linear" else (1 - math.cos(math.pi * done**self.power)) / 2
        return 1 + (self.scale - 1) * rise


def as_guidance(guidance: float | Guidance, schedule: Schedule = "constant") -> Guidance:
    """A plain scale as a Guidance with this schedule; a Guidance is returned unchanged."""
    return guidance if isinstance(guidance, Guidance) else Guidance(float(guidance), schedule=schedule)


def combine(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


def guided(
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    conditional: Field,
    guidance: Guidance,
    data_time: Callable[[Tensor], Tensor] = lambda t: t,
) -> Field:
    """A guided field f(x, t).

    Args:
        both: returns the conditional and the unconditional prediction at (x, t), usually from one batched call.
        conditional: the conditional prediction alone, for times at which guidance is off.
        data_time: converts the sampler's time to one from 0 (noise) to 1 (data), in which the interval is given.
    """
    if guidance.scale == 1:
        return conditional
    low, high = guidance.interval
    everywhere = low <= 0 and high >= 1

    def field(x: Tensor, t: Tensor) -> Tensor:
        if everywhere or guidance.acts_at(float(data_time(t).flatten()[0])):
            return combine(*both(x, t), guidance.scale)
        return conditional(x, t)

    return field

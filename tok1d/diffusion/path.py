"""Continuous paths from noise to data and the algebra between their parameterisations.

The convention of the whole package: t = 0 is noise, t = 1 is data, and

    x_t = alpha(t) x + sigma(t) noise,        v_t = alpha'(t) x + sigma'(t) noise.

Any one of (data, noise, velocity) together with x_t fixes the other two (stochastic interpolants,
arXiv 2303.08797; SiT, arXiv 2401.08740, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["data", "noise", "velocity"]


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Append axes to t (B,) until it broadcasts against `like` (B, ...)."""
    return t.reshape(t.shape + (1,) * (like.dim() - t.dim()))


@dataclass(frozen=True)
class Path:
    """A noise-to-data path: `linear` (alpha = t, sigma = 1 - t) or `cosine` (sin and cos of pi t / 2)."""

    kind: Literal["linear", "cosine"] = "linear"

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their derivatives in t, each with the shape of t."""
        if self.kind == "linear":
            return t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
        angle = t * (math.pi / 2)
        return angle.sin(), angle.cos(), angle.cos() * (math.pi / 2), -angle.sin() * (math.pi / 2)

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for data and noise (B, ...) at times t (B,)."""
        alpha, sigma, _, _ = self.coefficients(expand(t, data))
        return alpha * data + sigma * noise

    def velocity(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v_t = d x_t / dt for given data and noise (B, ...)."""
        _, _, d_alpha, d_sigma = self.coefficients(expand(t, data))
        return d_alpha * data + d_sigma * noise

    def to_velocity(self, prediction: Tensor, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity that a prediction of the given kind implies at (x_t, t).

        A data prediction is singular at t = 1 and a noise prediction at t = 0 (linear path).
        """
        if kind == "velocity":
            return prediction
        alpha, sigma, d_alpha, d_sigma = self.coefficients(expand(t, x_t))
        if kind == "data":
            return d_alpha * prediction + d_sigma * (x_t - alpha * prediction) / sigma
        return d_alpha * (x_t - sigma * prediction) / alpha + d_sigma * prediction

    def to_data(self, prediction: Tensor, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean data that a prediction of the given kind implies at (x_t, t)."""
        if kind == "data":
            return prediction
        alpha, sigma, d_alpha, d_sigma = self.coefficients(expand(t, x_t))
        if kind == "noise":
            return (x_t - sigma * prediction) / alpha
        return (sigma * prediction - d_sigma * x_t) / (sigma * d_alpha - alpha * d_sigma)

    def to_noise(self, prediction: Tensor, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction of the given kind implies at (x_t, t)."""
        if kind == "noise":
            return prediction
        alpha, sigma, d_alpha, d_sigma = self.coefficients(expand(t, x_t))
        if kind == "data":
            return (x_t - alpha * prediction) / sigma
        return (d_alpha * x_t - alpha * prediction) / (sigma * d_alpha - alpha * d_sigma)

    def from_velocity(self, velocity: Tensor, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction of the given kind that implies a velocity at (x_t, t); the inverse of `to_velocity`."""
        if kind == "velocity":
            return velocity
        return (self.to_data if kind == "data" else self.to_noise)(velocity, "velocity", x_t, t)

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t) = -E[noise | x_t] / sigma(t); singular at t = 1."""
        _, sigma, _, _ = self.coefficients(expand(t, x_t))
        return -self.to_noise(velocity, "velocity", x_t, t) / sigma

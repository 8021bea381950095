"""Training objectives of continuous-time denoisers: distribution of times, noised input, target and weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tok1d.diffusion.path import Path, Prediction, expand
from tok1d.nn.precision import single


@dataclass(frozen=True)
class Times:
    """The distribution of training times, on (0, 1) with 1 = data.

    Args:
        kind: "uniform"; or "logit_normal", the sigmoid of a normal variable, where a negative mean favours noisy times
            (Stable Diffusion 3, arXiv 2403.03206, section 3.1); or "atan_normal", (2 / pi) atan(exp(normal)), its
            counterpart for the cosine path. log(alpha / sigma) then equals the normal variable: for logit_normal on the
            linear path, for atan_normal on the cosine path.
        mean: mean of the normal variable.
        std: standard deviation of the normal variable.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def sample(self, num: int, device: torch.device | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Random times (num,), float32."""
        if self.kind == "uniform":
            return torch.rand(num, device=device, generator=generator)
        return self.from_normal(torch.randn(num, device=device, generator=generator))

    def from_normal(self, normal: Tensor) -> Tensor:
        """Times from standard normal numbers, for the kinds other than "uniform"."""
        ratio = normal * self.std + self.mean
        return torch.sigmoid(ratio) if self.kind == "logit_normal" else torch.atan(ratio.exp()) * (2 / math.pi)


def direction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity over the channels, (B, L, D) -> (B,).

    LightningDiT's velocity-direction loss (arXiv 2501.01423, section 4).
    """
    return (1 - cosine_similarity(single(prediction), single(target), dim=-1)).flatten(1).mean(1)


@dataclass(frozen=True)
class FlowObjective:
    """Denoising regression on a continuous path.

    Args:
        path: linear or cosine.
        prediction: the network's output: clean data, noise or velocity.
        weight_power: the squared error of the prediction is multiplied by max(sigma(t), 0.05)^-weight_power. For a data
            prediction on the linear path 2 gives the velocity loss, 0 the plain error.
    """

    path: Path
    prediction: Prediction = "velocity"
    weight_power: float = 0.0

    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target of the network's output, (B, ...)."""
        if self.prediction == "data":
            return data
        return noise if self.prediction == "noise" else self.path.velocity(data, noise, t)

    def loss(self, network: Callable[[Tensor, Tensor], Tensor], data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Weighted mean squared error (B,) of network(x_t, t)."""
        return self.weighted(single(network(self.path.interpolate(data, noise, t), t)) - self.target(data, noise, t), t)

    def weighted(self, error: Tensor, t: Tensor) -> Tensor:
        """Weighted mean square (B,) of errors (B, ...) of the network's output at times t (B,)."""
        loss = error.square().flatten(1).mean(1)
        if self.weight_power == 0:
            return loss
        _, sigma, _, _ = self.path.coefficients(t)
        return loss * sigma.clamp(min=0.05) ** -self.weight_power

    def velocity_field(self, network: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The network as a velocity f(x, t) for the samplers; t is a (B,) or (1,) tensor."""

        def field(x: Tensor, t: Tensor) -> Tensor:
            return self.path.to_velocity(network(x, t), self.prediction, x, expand(t, x))

        return field

"""A target with an exact solution: independent normal data, whose optimal denoiser is known and affine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tok1d.diffusion.path import Path, Prediction


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2) and the optimal predictions for x_t = alpha x + sigma noise."""

    mean: float = 1.5
    std: float = 0.5

    def data(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_t]."""
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[noise | x_t]."""
        return sigma * (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)

    def predict(self, kind: Prediction, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
        """The optimal network f(x, t) of this prediction type on a continuous path."""

        def network(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma, d_alpha, d_sigma = path.coefficients(t.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1)))
            if kind == "data":
                return self.data(x, alpha, sigma)
            if kind == "noise":
                return self.noise(x, alpha, sigma)
            return d_alpha * self.data(x, alpha, sigma) + d_sigma * self.noise(x, alpha, sigma)

        return network


Sampler = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


def affine_moments(sampler: Sampler, num_noises: int) -> tuple[float, float]:
    """Mean and std of what `sampler(start, randn)` makes of standard normal noise, exactly, without sampling.

    A sampler driven by an affine field is affine in its start and in each of its noises. A batch of impulses (none,
    only the start, only the first noise, ...) therefore gives all its coefficients.
    """
    calls = 0

    def randn(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        impulse = torch.zeros_like(x)
        impulse[1 + calls] = 1
        return impulse

    start = torch.zeros(2 + num_noises, 1, dtype=torch.float64)
    start[1] = 1
    out = sampler(start, randn)
    assert calls == num_noises, f"the sampler used {calls} noises"
    return out[0].item(), (out[1:] - out[0]).square().sum().sqrt().item()


@pytest.fixture
def target() -> Gaussian:
    return Gaussian()


@pytest.fixture
def moments() -> Callable[[Sampler, int], tuple[float, float]]:
    return affine_moments

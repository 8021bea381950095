"""Discrete-time diffusion with noise prediction and learned variance, and its samplers.

DDPM (arXiv 2006.11239), improved DDPM (arXiv 2102.09672: cosine schedule, learned range of variances, variational
bound, respacing) and DDIM (arXiv 2010.02502). Step 0 is almost clean, the last step is noise. A network f(x, t)
receives the step's index in the original chain and returns noise, or noise and variance as channels on axis 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tok1d.diffusion.path import expand
from tok1d.diffusion.solver import Field, Randn
from tok1d.errors import InputError
from tok1d.nn.precision import single


def linear_betas(steps: int = 1000) -> np.ndarray:
    """Betas (steps,) from 1e-4 to 0.02 for 1000 steps, both ends included; scaled for other lengths. Float64."""
    scale = 1000 / steps
    return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)


def cosine_betas(steps: int = 1000) -> np.ndarray:
    """Betas (steps,) of the squared-cosine alpha_bar with offset 0.008, at most 0.999 (arXiv 2102.09672, eq. 17)."""

    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - level((i + 1) / steps) / level(i / steps), 0.999) for i in range(steps)])


def respaced_steps(num_steps: int, spec: str | int | Sequence[int]) -> list[int]:
    """The indices of the `num_steps` original steps that a shorter chain keeps, in increasing order.

    Args:
        spec: "" or 0 for all steps; a number n for n evenly spaced steps, both ends included; "ddimN" for the smallest
            integer stride from 0 that gives exactly N steps; "a,b,c" for that many steps in equal sections.

    Raises:
        InputError: an invalid `spec`, more steps than the chain has, or no stride that gives N steps.
    """
    text = ",".join(map(str, spec)) if isinstance(spec, list | tuple) else str(spec).strip()
    if text in ("", "0"):
        return list(range(num_steps))
    if text.startswith("ddim"):
        wanted = _count(text[4:], text)
        for stride in range(1, num_steps + 1):
            if len(range(0, num_steps, stride)) == wanted:
                return list(range(0, num_steps, stride))
        raise InputError(
            f"steps: no integer stride over {num_steps} steps gives exactly {wanted}; "
            + (f"use '{wanted}' for evenly spaced steps" if wanted <= num_steps else f"use at most {num_steps}")
        )
    counts = [_count(part, text) for part in text.split(",")]
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = num_steps // len(counts) + (1 if i < num_steps % len(counts) else 0)
        if not 1 <= count <= size:
            raise InputError(f"steps: cannot take {count} steps from a section of {size} (of {num_steps} in all)")
        spacing = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += spacing
        start += size
    return kept


def _count(part: str, text: str) -> int:
    if not part.strip().isdecimal() or int(part) < 1:
        raise InputError(
            f"steps: expected a positive number such as 50, or ddim50, or counts such as 10,10,5, got {text!r}"
        )
    return int(part)


class Chain:
    """A chain of diffusion steps and the constants of its posterior.

    Args:
        betas: (T,) float64 in (0, 1].
        step_map: index of every step in the original chain, the network's input t (default 0..T-1).
    """

    def __init__(self, betas: np.ndarray, step_map: Sequence[int] | None = None) -> None:
        assert betas.ndim == 1 and (betas > 0).all() and (betas <= 1).all()
        self.betas = betas
        self.step_map = list(range(len(betas))) if step_map is None else list(step_map)
        self.alpha_bar = np.cumprod(1 - betas)
        previous = np.append(1.0, self.alpha_bar[:-1])
        self.alpha_bar_previous = previous
        self.posterior_variance = betas * (1 - previous) / (1 - self.alpha_bar)
        first = self.posterior_variance[1:2] if len(betas) > 1 else betas[:1]
        self.posterior_log_variance = np.log(np.append(first, self.posterior_variance[1:]))
        self.posterior_mean_data = betas * np.sqrt(previous) / (1 - self.alpha_bar)
        self.posterior_mean_x = (1 - previous) * np.sqrt(1 - betas) / (1 - self.alpha_bar)
        self._constants = {
            "signal": np.sqrt(self.alpha_bar),
            "sigma": np.sqrt(1 - self.alpha_bar),
            "log_beta": np.log(betas),
            "posterior_log_variance": self.posterior_log_variance,
            "posterior_mean_data": self.posterior_mean_data,
            "posterior_mean_x": self.posterior_mean_x,
        }
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    @classmethod
    def named(cls, schedule: str, steps: int = 1000) -> Chain:
        """The full "linear" or "cosine" chain."""
        return cls({"linear": linear_betas, "cosine": cosine_betas}[schedule](steps))

    def __len__(self) -> int:
        return len(self.betas)

    def respace(self, spec: str | int | Sequence[int]) -> Chain:
        """A shorter chain with the same alpha_bar at the kept steps: beta = 1 - alpha_bar_i / alpha_bar_previous.

        Args:
            spec: see `respaced_steps`, which raises InputError.
        """
        kept = respaced_steps(len(self), spec)
        levels = self.alpha_bar[kept]
        return Chain(1 - levels / np.append(1.0, levels[:-1]), [self.step_map[i] for i in kept])

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries t of a constant in float32, with axes to broadcast against `like`; copied to each device once."""
        key = (name, like.device)
        if key not in self._tables:
            self._tables[key] = torch.from_numpy(self._constants[name]).to(torch.float32).to(like.device)
        return expand(self._tables[key][t], like)

    def noised(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0): sqrt(alpha_bar) data + sqrt(1 - alpha_bar) noise, t (B,) int64."""
        return self._at("signal", t, data) * data + self._at("sigma", t, data) * noise

    def data_from_noise(self, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The x_0 (B, ...) that a noise prediction implies."""
        return (x_t - self._at("sigma", t, x_t) * noise) / self._at("signal", t, x_t)

    def posterior_mean(self, data: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        return self._at("posterior_mean_data", t, x_t) * data + self._at("posterior_mean_x", t, x_t) * x_t

    def log_variance(self, raw: Tensor | None, t: Tensor, like: Tensor) -> Tensor:
        """The log variance of p(x_{t-1} | x_t) (arXiv 2102.09672, eq. 15).

        Args:
            raw: in [-1, 1], interpolates between the log posterior variance and log beta; None: the former.
        """
        low = self._at("posterior_log_variance", t, like)
        if raw is None:
            return low.expand_as(like)
        fraction = (raw + 1) / 2
        return fraction * self._at("log_beta", t, like) + (1 - fraction) * low

    def losses(
        self, network: Field, data: Tensor, noise: Tensor, t: Tensor, *, learned_variance: bool = True
    ) -> dict[str, Tensor]:
        """Training terms (B,): "mse" of the noise and, with learned variance, "vb", the variational bound in bits.

        The noise prediction is detached in the bound, which thus trains the variance only. The bound is not rescaled.
        """
        x_t = self.noised(data, noise, t)
        output = single(network(x_t, t))
        if not learned_variance:
            return {"mse": (noise - output).square().flatten(1).mean(1)}
        predicted, raw = output.chunk(2, dim=1)
        mse = (noise - predicted).square().flatten(1).mean(1)
        mean = self.posterior_mean(self.data_from_noise(x_t, predicted.detach(), t), x_t, t)
        log_variance = self.log_variance(raw, t, x_t)
        true_mean = self.posterior_mean(data, x_t, t)
        true_log_variance = self.log_variance(None, t, x_t)
        kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
        nll = -discretised_log_likelihood(data, mean, log_variance / 2).flatten(1).mean(1)
        return {"mse": mse, "vb": torch.where(t == 0, nll, kl) / math.log(2.0)}


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Elementwise KL(N1 || N2) in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (-1 - ratio + ratio.exp() + (mean1 - mean2).square() * (-log_variance2).exp())


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Elementwise log-probability (nats) of x in [-1, 1] on 256 levels under a Gaussian (arXiv 2006.11239, eq. 13).

    Bins are +-1/255 wide and open beyond +-0.999; the normal CDF is the tanh approximation; probabilities are
    at least 1e-12.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse = (-log_scale).exp()
    upper = cdf((x - mean + 1 / 255) * inverse)
    lower = cdf((x - mean - 1 / 255) * inverse)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


Trace = Callable[[Tensor], None]


def ancestral(
    f: Field,
    x: Tensor,
    chain: Chain,
    randn: Randn,
    *,
    learned_variance: bool = True,
    temperature: float = 1.0,
    trace: Trace | None = None,
) -> Tensor:
    """DDPM's ancestral sampler: noise x (B, ...) -> sample. No clipping; no noise at the last step.

    Args:
        f: f(x, t) with t (B,) indices in the original chain; returns noise, or noise and variance on axis 1.
        randn: source of the noise, called once a step, also at the last, where the noise is not used.
        temperature: multiplies the noise.
        trace: called with the state after every step.
    """
    for i in reversed(range(len(chain))):
        index = torch.full((x.shape[0],), i, device=x.device)
        output = f(x, torch.full_like(index, chain.step_map[i]))
        noise, raw = output.chunk(2, dim=1) if learned_variance else (output, None)
        mean = chain.posterior_mean(chain.data_from_noise(x, noise, index), x, index)
        step_noise = randn(x)
        if i > 0:
            mean = mean + (chain.log_variance(raw, index, x) / 2).exp() * step_noise * temperature
        x = mean
        if trace is not None:
            trace(x)
    return x


def ddim(
    f: Field,
    x: Tensor,
    chain: Chain,
    randn: Randn | None = None,
    *,
    eta: float = 0.0,
    learned_variance: bool = True,
) -> Tensor:
    """DDIM over a chain (arXiv 2010.02502, eq. 12): deterministic at eta = 0, DDPM-like at eta = 1."""
    for i in reversed(range(len(chain))):
        index = torch.full((x.shape[0],), i, device=x.device)
        output = f(x, torch.full_like(index, chain.step_map[i]))
        noise = output.chunk(2, dim=1)[0] if learned_variance else output
        data = chain.data_from_noise(x, noise, index)
        level, previous = chain.alpha_bar[i], chain.alpha_bar_previous[i]
        std = eta * math.sqrt((1 - previous) / (1 - level) * (1 - level / previous))
        x = math.sqrt(previous) * data + math.sqrt(max(1 - previous - std**2, 0.0)) * noise
        if std > 0 and i > 0:
            assert randn is not None, "DDIM: expected a noise source with eta > 0, got none"
            x = x + std * randn(x)
    return x

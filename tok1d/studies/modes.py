"""Samples that a generator needs by number of modes (MAETok, arXiv 2502.03444, theorem 2.1 and equations 11 to 14).

The tokens are synthetic: a mixture of K Gaussians of equal weight and equal variance, whose means have a given norm. On
the path from noise to tokens the distribution is again a mixture, so its score is known exactly. The error of a trained
SiT is the distance of its score to the exact one, weighted by the variance of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.config.classes import Classes
from tok1d.diffusion.path import Path, expand
from tok1d.errors import InputError
from tok1d.generators.sit import SiT, SiTConfig
from tok1d.pictures import figure_image
from tok1d.studies.learner import HEAD_WIDTH, TokenSet, train_config, train_generator
from tok1d.studies.request import ModeSettings

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 500  # noisy samples of a forward pass
PATH = Path("linear")
Velocity = Callable[[Tensor, Tensor], Tensor]  # x_t (B, K, D), t (B,) -> (B, K, D)


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians over tokens (tokens, dim), with equal weights.

    Args:
        means: (K, tokens, dim) float64.
        std: standard deviation of each mode in every direction.
    """

    means: Tensor
    std: float

    @classmethod
    def random(cls, modes: int, shape: tuple[int, int], bound: float, seed: int) -> Mixture:
        """Means in random directions with the norm `bound` std; numbers have the mean square 1 for any `modes`."""
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(modes, math.prod(shape), generator=generator, dtype=torch.float64)
        std = 1 / math.sqrt(1 + bound**2 / math.prod(shape))
        means = bound * std * directions / directions.norm(dim=1, keepdim=True)
        return cls(means.unflatten(1, shape), std)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Tokens (num, tokens, dim) float64."""
        modes = torch.randint(len(self.means), (num,), generator=generator)
        noise = torch.randn(num, *self.means.shape[1:], generator=generator, dtype=torch.float64)
        return self.means[modes] + self.std * noise

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) (B,) of x (B, tokens, dim) at times t (B,), where 0 is noise and 1 the tokens."""
        alpha, variance = self._at(t)
        numbers = self.means[0].numel()
        return (
            torch.logsumexp(self._logits(x, alpha, variance), 1)
            - 0.5 * numbers * (2 * math.pi * variance).log()
            - math.log(len(self.means))
        )

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x), (B, tokens, dim): sum over the modes of r_k (alpha mean_k - x) / variance.

        r_k is the probability of mode k given x; alpha and the variance are those of the path at t.
        """
        alpha, variance = self._at(t)
        shares = self._logits(x, alpha, variance).softmax(1)
        mean = (shares @ self.means.flatten(1)).view_as(x) * expand(alpha, x)
        return (mean - x) / expand(variance, x)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """E[velocity | x_t = x], (B, tokens, dim), which a flow is trained on; from the score."""
        _, sigma, _, _ = PATH.coefficients(expand(t, x))
        return PATH.to_velocity(-sigma * self.score(x, t), "noise", x, t)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (B,), and the variance (B,) of a mode at times t."""
        alpha, sigma, _, _ = PATH.coefficients(t)
        return alpha, alpha.square() * self.std**2 + sigma.square()

    def _logits(self, x: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """Unnormalised log probabilities (B, K) of the modes."""
        means = alpha[:, None, None] * self.means.flatten(1)
        return -0.5 * (x.flatten(1)[:, None] - means).square().sum(2) / variance[:, None]


@torch.no_grad()
def score_error(mixture: Mixture, velocity: Velocity, num: int, seed: int) -> float:
    """The mean over times, samples and numbers of sigma^2 (score - exact score)^2, at least 0; sigma is of the noise.

    Times are the midpoints of equal parts of (0, 1). A velocity f and x_t determine the score, see `Path.score`. An
    output of 0 for the noise has an error of about 1.
    """
    generator = torch.Generator().manual_seed(seed)
    t = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    x = mixture.sample(num, generator)
    x = PATH.interpolate(x, torch.randn(x.shape, generator=generator, dtype=torch.float64), t)
    total = 0.0
    for part in torch.arange(num).split(BATCH):
        found = PATH.to_noise(velocity(x[part], t[part]), "velocity", x[part], t[part])
        _, sigma, _, _ = PATH.coefficients(expand(t[part], x[part]))
        total += float((found + sigma * mixture.score(x[part], t[part])).square().sum())
    return total / x.numel()


@dataclass(frozen=True)
class ModePoint:
    """The errors of generators trained on `samples` samples of a mixture of `modes` Gaussians.

    Args:
        error: the mean of `errors`.
        errors: of each training, see `score_error`.
    """

    modes: int
    samples: int
    error: float
    errors: list[float]


@dataclass(frozen=True)
class ModeErrors:
    """The errors of all pairs of numbers."""

    points: list[ModePoint]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return one line for each pair."""
        return [f"{each.modes:4d} modes, {each.samples:6d} samples: error {each.error:.4f}" for each in self.points]

    def of(self, modes: int) -> list[ModePoint]:
        """The points of a number of modes."""
        return [each for each in self.points if each.modes == modes]

    def said(self) -> str:
        """What was found, as a clause."""
        numbers = list(dict.fromkeys(each.modes for each in self.points))
        parts = []
        for modes in dict.fromkeys((numbers[0], numbers[-1])):
            first, last = self.of(modes)[0], self.of(modes)[-1]
            span = f"{first.error:.2g} with {first.samples:,} samples"
            if last is not first:
                span += f" and {last.error:.2g} with {last.samples:,}"
            parts.append(f"{modes} mode{'s' * (modes > 1)}: {span}")
        return f"the error of the score is, for {'; for '.join(parts)}"


def mode_error(modes: int, samples: int, how: ModeSettings, seed: int) -> float:
    """The error of a SiT that is trained on samples of a random mixture.

    Raises:
        InputError: a width that heads of 32 channels do not divide.
    """
    if how.dim % HEAD_WIDTH:
        raise InputError(f"--dim: expected a multiple of {HEAD_WIDTH}, got {how.dim}")
    mixture = Mixture.random(modes, (how.tokens, how.token_dim), how.bound, seed)
    tokens = mixture.sample(samples, torch.Generator().manual_seed(seed + 1)).float()
    labels = torch.zeros(samples, dtype=torch.int64)
    config = SiTConfig(
        num_tokens=how.tokens,
        token_dim=how.token_dim,
        num_classes=0,
        dim=how.dim,
        depth=how.depth,
        heads=how.dim // HEAD_WIDTH,
        statistics="none",
        times="uniform",
        sampler="euler",
    )
    training = train_config(how.steps, how.train_batch)
    known = TokenSet(tokens, tokens[:1], labels, labels[:1], Classes(0))
    model, _ = train_generator(config, known, training, seed=seed, curve=False)
    assert isinstance(model, SiT)
    return score_error(mixture, velocity_of(model), how.num, seed + 2)


def velocity_of(model: SiT) -> Velocity:
    """The velocity of an unconditional SiT without normalisation, in float64 on the CPU."""
    null = model.check_cond(None, 1)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        place = (model.device, torch.float32)
        return model.net(x.to(*place), t.to(*place), null.expand(len(x))).double().cpu()

    return velocity


def mode_errors(how: ModeSettings, report: Callable[[str], None] = lambda text: None) -> ModeErrors:
    """Train a SiT for each number of modes and of samples.

    Memory: the samples of one training.

    Args:
        report: called with a line after each point.
    """
    points = []
    for modes in sorted(set(how.modes)):
        for samples in sorted(set(how.samples)):
            errors = [mode_error(modes, samples, how, how.seed + 3 * repeat) for repeat in range(how.repeats)]
            points.append(ModePoint(modes, samples, sum(errors) / len(errors), errors))
            report(ModeErrors(points[-1:]).describe()[0])
    return ModeErrors(points)


def plot_modes(found: ModeErrors) -> Image:
    """Plot the error over the number of samples for each number of modes."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    numbers = list(dict.fromkeys(each.modes for each in found.points))
    for i, modes in enumerate(numbers):
        mine = found.of(modes)
        colour = colormaps["viridis"](0.9 * i / max(len(numbers) - 1, 1))
        label = f"{modes} mode{'s' * (modes > 1)}"
        axes.plot([each.samples for each in mine], [each.error for each in mine], "-o", color=colour, label=label)
        if len(mine[0].errors) > 1:
            for each in mine:
                axes.plot([each.samples] * len(each.errors), each.errors, ".", color=colour, alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({each.samples for each in found.points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("training samples")
    axes.set_ylabel("error of the score, weighted by the noise's variance")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    return figure_image(figure)

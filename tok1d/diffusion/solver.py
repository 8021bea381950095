"""Samplers of continuous flows (ODE and SDE solvers), and sources of random numbers.

x is (B, ...); the velocity f(x, t) gets a time tensor of shape (1,), which broadcasts over the batch: an embedding of
the time is then computed once a step instead of once a row. Times run from 0 (noise) to 1 (data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tok1d.diffusion.path import Path
from tok1d.errors import InputError

Field = Callable[[Tensor, Tensor], Tensor]  # f(x (B, ...), t (1,) or (B,)) -> (B, ...)
NoiseSource = Callable[[Tensor], Tensor]  # random numbers with the shape, dtype and device of the argument
Randn = NoiseSource  # standard normal ones
Generators = torch.Generator | Sequence[torch.Generator]  # one for all rows of a batch, or one a row


def time_grid(steps: int, *, shift: float = 1.0, end: float = 1.0, device: torch.device | None = None) -> Tensor:
    """Times (steps + 1,) from 0 to `end`, float32.

    `shift` > 1 places more of them near the noise: in s = 1 - t, s -> shift s / (1 + (shift - 1) s)
    (Stable Diffusion 3, arXiv 2403.03206, eq. 23).

    Raises:
        InputError: fewer than 1 step.
    """
    if steps < 1:
        raise InputError(f"sampler: expected at least 1 step, got {steps}")
    times = shifted_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    return (times * end).to(dtype=torch.float32, device=device)


def shifted_time(s: Tensor, shift: float) -> Tensor:
    """Times of the grid for s from 1 (noise) to 0 (data), see `time_grid`."""
    # 1 - shift s / (1 + (shift - 1) s), rearranged so that both ends are exact: a first time of -2e-16 would lie
    # outside of a guidance interval.
    return (1 - s) / (1 + (shift - 1) * s)


def randn_from(generator: Generators | None) -> Randn:
    """A source of standard normal numbers, from a generator on any device.

    With a generator for every row of the argument, the numbers of a row do not depend on the other rows.
    """
    return noise_from(generator, torch.randn)


def uniform_from(generator: Generators | None) -> NoiseSource:
    """As `randn_from`, numbers uniform in [0, 1)."""
    return noise_from(generator, torch.rand)


def exponential_from(generator: Generators | None) -> NoiseSource:
    """As `randn_from`, exponential numbers of mean 1."""

    def exponential(
        shape: torch.Size, *, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)

    return noise_from(generator, exponential)


def noise_from(generator: Generators | None, function: Callable[..., Tensor]) -> NoiseSource:
    """A source of function(shape, generator=, device=, dtype=); see `randn_from`.

    Raises:
        InputError: when the source is called with another number of rows than there are generators.
    """

    def like(x: Tensor, source: torch.Generator | None) -> Tensor:
        device = source.device if source is not None else x.device
        return function(x.shape, generator=source, device=device, dtype=x.dtype)

    def source(x: Tensor) -> Tensor:
        if generator is None or isinstance(generator, torch.Generator):
            return like(x, generator).to(x.device)
        if len(generator) != len(x):
            raise InputError(f"expected one generator, or one for each of {len(x)} rows, got {len(generator)}")
        return torch.stack([like(row, each) for row, each in zip(x, generator)]).to(x.device)  # one copy for all rows

    return source


def euler(f: Field, x: Tensor, times: Tensor) -> Tensor:
    """Explicit Euler over the grid `times` (n + 1,): n evaluations of f."""
    for t, dt in zip(times[:-1], times.diff()):
        x = x + dt * f(x, t[None])
    return x


def heun(f: Field, x: Tensor, times: Tensor) -> Tensor:
    """Heun's second-order method; the last step is Euler where it ends at t = 1 (2n - 1 evaluations).

    At t = 1 a data prediction has no finite velocity; an Euler step does not evaluate it there.
    """
    for t, t_next in pairwise(times):
        d = f(x, t[None])
        trial = x + (t_next - t) * d
        x = trial if t_next >= 1 else x + (t_next - t) * (d + f(trial, t_next[None])) / 2
    return x


def euler_maruyama(
    drift: Field,
    x: Tensor,
    times: Tensor,
    randn: Randn,
    diffusion: Callable[[Tensor], Tensor],
    temperature: float = 1.0,
) -> Tensor:
    """Euler-Maruyama for dx = drift dt + sqrt(2 diffusion(t)) dW: n evaluations over `times` (n + 1,).

    Args:
        randn: source of the noise, called once a step.
        diffusion: w(t), scalar tensor to scalar tensor.
        temperature: multiplies the noise.
    """
    for t, dt in zip(times[:-1], times.diff()):
        noise = randn(x)
        x = x + dt * drift(x, t[None]) + (2 * diffusion(t) * dt).sqrt() * temperature * noise
    return x


def sde_times(steps: int, *, last_step: float = 0.04, device: torch.device | None = None) -> Tensor:
    """The times (steps,) at which `interpolant_sde` calls the network: from 0 to 1 - last_step.

    Raises:
        InputError: fewer than 2 steps.
    """
    if steps < 2:
        raise InputError(f"sampler=sde: expected at least 2 steps, got {steps}")
    return torch.linspace(0, 1 - last_step, steps, device=device)


def interpolant_sde(
    velocity: Field,
    x: Tensor,
    steps: int,
    randn: Randn,
    *,
    last_step: float = 0.04,
    temperature: float = 1.0,
    path: Path = Path("linear"),  # noqa: B008 (a frozen dataclass)
) -> Tensor:
    """Sample an interpolant as an SDE with w(t) = 1 - t and a last step without noise.

    The drift is v + (1 - t) score. On the linear path score = (t v - x) / (1 - t), so the drift is (1 + t) v - x: one
    network call a step and no singularity at t = 0 (SiT, arXiv 2401.08740, section 2.4, in closed form).

    Args:
        steps: network calls: steps - 1 stochastic steps up to t = 1 - last_step, then one step of length last_step
            along the drift.
        temperature: multiplies the noise.

    Raises:
        InputError: fewer than 2 steps.
    """
    times = sde_times(steps, last_step=last_step, device=x.device)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, t)
        return (1 + t) * v - x if path.kind == "linear" else v + (1 - t) * path.score(v, x, t)

    x = euler_maruyama(drift, x, times, randn, lambda t: 1 - t, temperature)
    return x + last_step * drift(x, times[-1:])

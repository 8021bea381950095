"""Solvers on fields whose solution is known: a normal target, where the flow maps noise z to mean + std z."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import euler, euler_maruyama, heun, interpolant_sde, randn_from, time_grid

PATHS = [Path("linear"), Path("cosine")]


@settings(deadline=None, max_examples=50)
@given(steps=st.integers(1, 300), shift=st.floats(0.2, 8), end=st.floats(0.1, 1))
def test_time_grid_ends_and_order(steps: int, shift: float, end: float) -> None:
    times = time_grid(steps, shift=shift, end=end)
    assert times.shape == (steps + 1,) and times.dtype == torch.float32
    assert times[0] == 0 and abs(times[-1].item() - end) < 1e-6
    assert (times.diff() > 0).all()


def test_time_grid_is_even_without_a_shift_and_reaches_one_exactly() -> None:
    torch.testing.assert_close(time_grid(8), torch.arange(9) / 8)
    for steps in range(1, 200):
        assert time_grid(steps, shift=3.0)[-1] == 1


def test_shift_moves_points_toward_the_noise() -> None:
    near_noise = [(time_grid(100, shift=shift) < 0.5).sum().item() for shift in (0.5, 1.0, 3.0)]
    assert near_noise[0] < near_noise[1] < near_noise[2]
    s = 0.75  # the point at t = 0.25, by the formula
    torch.testing.assert_close(time_grid(4, shift=3.0)[1], torch.tensor(1 - 3 * s / (1 + 2 * s)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", [euler, heun])
def test_exact_velocity_brings_noise_to_the_target(
    target: Any, moments: Callable[..., tuple[float, float]], path: Path, solver: Callable[..., Tensor]
) -> None:
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    mean, std = moments(lambda x, randn: solver(target.predict("velocity", path), x, times), 0)
    tolerance = 1e-2 if solver is euler else 1e-4
    assert abs(mean - target.mean) < tolerance and abs(std - target.std) < tolerance


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(target: Any, path: Path, solver: Callable[..., Tensor], order: int) -> None:
    z = torch.tensor([[-1.7], [0.4], [2.0]], dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200):
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        end = solver(target.predict("velocity", path), z, times)
        errors.append((end - (target.mean + target.std * z)).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert abs(coarse / fine - 2**order) < 0.3 * 2**order, errors


def test_solvers_agree_with_a_fine_reference_on_a_nonlinear_field() -> None:
    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + torch.cos(5 * t) * x

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    reference, steps = x.clone(), 2000
    for i in range(steps):  # classical Runge-Kutta
        t, h = torch.tensor([i / steps], dtype=torch.float64), 1 / steps
        k1 = field(reference, t)
        k2 = field(reference + h / 2 * k1, t + h / 2)
        k3 = field(reference + h / 2 * k2, t + h / 2)
        k4 = field(reference + h * k3, t + h)
        reference = reference + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    torch.testing.assert_close(heun(field, x, times), reference, atol=1e-4, rtol=0)
    torch.testing.assert_close(euler(field, x, times), reference, atol=2e-2, rtol=0)


def test_evaluations_and_their_times() -> None:
    times_evaluated: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (1,)
        times_evaluated.append(round(t.item(), 6))
        return torch.zeros_like(x)

    x, times = torch.zeros(3, 2), time_grid(4)
    euler(field, x, times)
    assert times_evaluated == [0, 0.25, 0.5, 0.75]
    times_evaluated.clear()
    heun(field, x, times)  # the velocity at t = 1 is never asked for
    assert times_evaluated == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    times_evaluated.clear()
    interpolant_sde(field, x, 5, torch.randn_like)
    assert times_evaluated == [0, 0.24, 0.48, 0.72, 0.96]


def test_heun_takes_two_evaluations_where_the_grid_ends_before_the_data() -> None:
    f = torch.tensor(2.0)
    end = heun(lambda x, t: f * t, torch.zeros(1, 1), time_grid(3, end=0.9))
    torch.testing.assert_close(end, torch.tensor([[0.81]]))  # the trapezoid is exact for x' = 2 t


@pytest.mark.parametrize("path", PATHS)
def test_sde_with_the_exact_velocity_has_the_moments_of_the_target(
    target: Any, moments: Callable[..., tuple[float, float]], path: Path
) -> None:
    velocity = target.predict("velocity", path)
    errors = []
    for steps, last_step in ((50, 0.02), (200, 0.005), (800, 0.00125)):
        mean, std = moments(
            lambda x, randn, n=steps, s=last_step: interpolant_sde(velocity, x, n, randn, last_step=s, path=path),
            steps - 1,
        )
        errors.append(max(abs(mean - target.mean), abs(std - target.std)))
    assert errors[-1] < 2e-3, errors
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2], errors


def test_sde_of_the_release_setting_is_close(target: Any, moments: Callable[..., tuple[float, float]]) -> None:
    velocity = target.predict("velocity", Path("linear"))
    mean, std = moments(lambda x, randn: interpolant_sde(velocity, x, 250, randn), 249)
    assert abs(mean - target.mean) < 0.02 and abs(std - target.std) < 0.02


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sde_equals_the_two_call_reference(temperature: float) -> None:
    path, steps, last_step = Path("linear"), 12, 0.04

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) - 2 * t * x

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return velocity(x, t) + (1 - t) * path.score(velocity(x, t), x, t)

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = interpolant_sde(
        velocity, x, steps, randn_from(torch.Generator().manual_seed(1)), last_step=last_step, temperature=temperature
    )
    source = torch.Generator().manual_seed(1)
    h = (1 - last_step) / (steps - 1)
    for i in range(steps - 1):
        t = torch.tensor([i * h], dtype=torch.float64)
        noise = torch.randn(x.shape, generator=source, dtype=x.dtype)
        x = x + h * drift(x, t) + temperature * (2 * (1 - t) * h).sqrt() * noise
    x = x + last_step * drift(x, torch.tensor([1 - last_step], dtype=torch.float64))
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_euler_maruyama_of_pure_diffusion(moments: Callable[..., tuple[float, float]]) -> None:
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    mean, std = moments(
        lambda x, randn: euler_maruyama(lambda y, t: -y, x, times, randn, lambda t: torch.ones_like(t)), 100
    )
    # Ornstein-Uhlenbeck: the standard normal is stationary for dx = -x dt + sqrt(2) dW
    assert mean == 0 and abs(std - 1) < 0.01


def test_without_noise_euler_maruyama_is_euler() -> None:
    def field(x: Tensor, t: Tensor) -> Tensor:
        return t - x

    x, times = torch.randn(4, 2), time_grid(7)
    quiet = euler_maruyama(field, x, times, torch.randn_like, lambda t: 1 - t, temperature=0.0)
    torch.testing.assert_close(quiet, euler(field, x, times))


def test_randn_from_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    x = torch.zeros(2, 3, dtype=torch.float64)
    samples = [randn_from(torch.Generator().manual_seed(seed))(x) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    assert samples[0].dtype == torch.float64 and samples[0].shape == (2, 3)


def test_too_few_steps() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        time_grid(0)
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        interpolant_sde(lambda x, t: x, torch.zeros(1, 1), 1, torch.randn_like)

"""Average velocities: objectives that are 0 at the exact one, steps of any number, intervals of the grids."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tok1d.config.fields import build_config
from tok1d.diffusion.few_step import (
    LAST,
    FewStepConfig,
    FewStepObjective,
    Intervals,
    Spans,
    guided_velocity,
    mean_flow,
)
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path, Prediction, expand
from tok1d.diffusion.solver import euler, time_grid
from tok1d.errors import ConfigError

RATES = torch.tensor([0.7, -1.3, 0.2], dtype=torch.float64)
OFFSET = torch.tensor([0.4, -0.5, 1.1], dtype=torch.float64)
KINDS: list[Prediction] = ["data", "velocity"]
OBJECTIVES = ["shortcut", "meanflow"]


def linear(x: Tensor, t: Tensor) -> Tensor:
    """The velocity of a linear field: x' = rates x + offset (1 + t)."""
    return RATES * x + OFFSET * (1 + expand(t, x))


def moved(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The solution of x' = rates x + offset (1 + t) from time t at time s, in closed form."""

    def particular(t: Tensor) -> Tensor:
        return -OFFSET * ((1 + expand(t, x)) / RATES + 1 / RATES**2)

    return particular(s) + (RATES * expand(s - t, x)).exp() * (x - particular(t))


def exact(x: Tensor, t: Tensor, d: Tensor) -> Tensor:
    """The average velocity of the linear field over [t, t + d]."""
    whole = (moved(x, t, t + d) - x) / expand(torch.where(d == 0, 1.0, d), x)
    return torch.where(expand(d == 0, x), linear(x, t), whole)


def objective(kind: Prediction = "velocity", how: str = "shortcut", *, shift: float = 1.0, **options: Any) -> Any:
    config = build_config(FewStepConfig, {"objective": how, **options})
    return FewStepObjective(config, FlowObjective(Path("linear"), kind), Times("uniform"), shift)


def batch(num: int = 8) -> tuple[Tensor, Tensor, Spans]:
    source = torch.Generator().manual_seed(3)
    data, noise = torch.randn(2, num, 3, dtype=torch.float64, generator=source)
    start = torch.rand(num, dtype=torch.float64, generator=source) * 0.6
    length = torch.rand(num, dtype=torch.float64, generator=source) * 0.3 + 0.05
    length[num // 2 :] = 0
    return data, noise, Spans(start, start + length, num // 2)


def of_kind(kind: Prediction, average: Any) -> Any:
    """A network whose predictions of that kind imply an average velocity."""

    def network(x: Tensor, t: Tensor, d: Tensor, rows: slice) -> Tensor:
        return Path("linear").from_velocity(average(x, t, d), kind, x, t)

    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", OBJECTIVES)
def test_the_exact_average_velocity_has_no_loss(kind: Prediction, how: str) -> None:
    data, noise, spans = batch()
    loss = objective(kind, how, finest=1024).loss(
        of_kind(kind, exact), data, noise, spans=spans, velocity=lambda x, t, v: linear(x, t)
    )
    torch.testing.assert_close(loss, torch.zeros(8, dtype=torch.float64), atol=1e-20, rtol=0)


@pytest.mark.parametrize("how", OBJECTIVES)
def test_another_average_velocity_has_a_loss_on_intervals_only(how: str) -> None:
    """The Euler step of the velocity, which ignores the interval, is right at d = 0 and wrong elsewhere."""
    data, noise, spans = batch()
    loss = objective("velocity", how).loss(
        of_kind("velocity", lambda x, t, d: linear(x, t)),
        data,
        noise,
        spans=spans,
        velocity=lambda x, t, v: linear(x, t),
    )
    assert (loss[:4] > 1e-5).all() and torch.equal(loss[4:], torch.zeros(4, dtype=torch.float64))


def test_the_derivative_of_mean_flow_agrees_with_differences_and_with_the_closed_form() -> None:
    data, noise, (t, s, num) = batch()
    x, t, s = Path("linear").interpolate(data, noise, t)[:num], t[:num], s[:num]
    v, step = linear(x, t), 1e-6

    def other(x: Tensor, t: Tensor, d: Tensor) -> Tensor:
        return torch.sin(x * expand(t, x)) + expand(d, x).cos() * x

    high, low = (other(x + e * v, t + e, s - t - e) for e in (step, -step))
    slope = (high - low) / (2 * step)
    torch.testing.assert_close(mean_flow(other, x, t, s, v), v + expand(s - t, x) * slope, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(mean_flow(exact, x, t, s, v), exact(x, t, s - t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_two_halves_of_an_exact_step_are_the_step(kind: Prediction, shift: float) -> None:
    data, noise, (t, s, num) = batch()
    x = Path("linear").interpolate(data, noise, t)[:num]
    target = objective(kind, shift=shift, finest=1024).average(of_kind(kind, exact), x, t[:num], s[:num], x)
    torch.testing.assert_close(target, exact(x, t[:num], (s - t)[:num]))


def test_the_finest_grid_is_learned_from_the_velocity() -> None:
    lengths: list[Tensor] = []

    def network(x: Tensor, t: Tensor, d: Tensor, rows: slice) -> Tensor:
        lengths.append(d)
        return linear(x, t)

    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    s = t + torch.tensor([0.25, 0.5], dtype=torch.float64)
    objective(finest=8).average(network, torch.ones(2, 3, dtype=torch.float64), t, s, torch.ones(2, 3))
    assert [each.tolist() for each in lengths] == [[0.0, 0.25]] * 2, "halves of 1/8 are called with d = 0"


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_an_exact_flow_map_arrives_at_the_same_place_in_any_number_of_steps(steps: int, shift: float) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = time_grid(steps, shift=shift).double()
    intervals = Intervals(times)
    end = euler(lambda x, t: exact(x, t, intervals(t)), x, times)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(end, moved(x, 0 * one, one))


def test_intervals_are_the_steps_of_the_grid() -> None:
    times = time_grid(5, shift=2)
    assert torch.equal(Intervals(times)(times[:-1]), times.diff())
    assert torch.equal(Intervals(times)(times[2:3]), times.diff()[2:3])


def test_without_intervals_the_loss_is_that_of_the_velocity() -> None:
    data, noise, spans = batch()
    none = Spans(spans.start, spans.start, 0)
    flow = FlowObjective(Path("linear"), "data", weight_power=1.0)
    few = FewStepObjective(FewStepConfig(), flow, Times())
    loss = few.loss(lambda x, t, d, rows: x.sin() + expand(t, x), data, noise, spans=none)
    torch.testing.assert_close(loss, flow.loss(lambda x, t: x.sin() + expand(t, x), data, noise, spans.start))


def test_mean_flow_divides_every_row_by_its_error() -> None:
    data, noise, spans = batch()
    none = Spans(spans.start, spans.start, 0)
    plain, weighted = (
        objective("velocity", how).loss(lambda x, t, d, rows: 0 * x, data, noise, spans=none) for how in OBJECTIVES
    )
    torch.testing.assert_close(weighted, plain / (plain + 1e-3))


@pytest.mark.parametrize("how", OBJECTIVES)
def test_gradients_pass_the_prediction_only(how: str) -> None:
    data, noise, spans = batch()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    calls: list[bool] = []

    def network(x: Tensor, t: Tensor, d: Tensor, rows: slice) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return scale * linear(x, t)

    objective("velocity", how).loss(network, data, noise, spans=spans).sum().backward()
    assert scale.grad is not None and scale.grad != 0
    assert calls[0] and not any(calls[1:]) and len(calls) > 1, "the first call is the one with gradients"


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_shortcut_intervals_are_steps_of_the_grids_of_the_sampler(shift: float) -> None:
    torch.manual_seed(0)
    start, end, num = objective(shift=shift, finest=16, share=0.5).spans(400)
    assert num == 200 and torch.equal(start[num:], end[num:])
    grids = [time_grid(n, shift=shift) for n in (1, 2, 4, 8)]
    found = set()
    for t, s in zip(start[:num], end[:num]):
        steps = [
            (len(grid) - 1, i)
            for grid in grids
            for i in range(len(grid) - 1)
            if torch.allclose(grid[i : i + 2], torch.stack([t, s]), atol=1e-6)
        ]
        assert len(steps) == 1
        found.add(steps[0])
    assert len(found) == 1 + 2 + 4 + 8, "every step of every grid"


def test_mean_flow_intervals_lie_in_the_unit_interval() -> None:
    torch.manual_seed(0)
    start, end, num = objective("data", "meanflow").spans(4000)
    assert num == 1000 and (start[:num] <= end[:num]).all() and start.max() <= LAST and end.max() <= 1
    assert abs(start[:num].mean() - 1 / 3) < 0.03 and abs(end[:num].mean() - 2 / 3) < 0.03


def test_guidance_of_the_data_by_the_models_own_prediction_keeps_the_null_condition() -> None:
    x, t = torch.ones(2, 3), torch.zeros(2)
    velocity = guided_velocity(lambda x, t: 0.5 * x, 3.0)
    torch.testing.assert_close(velocity(x, t, 2 * x), 0.5 * x + 3 * (2 * x - 0.5 * x))
    torch.testing.assert_close(velocity(x, t, 0.5 * x), 0.5 * x)


def test_a_grid_that_cannot_be_halved_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^finest: expected a power of 2, got 12$"):
        build_config(FewStepConfig, {"finest": 12})

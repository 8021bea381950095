"""Training times, targets and weights of the continuous objectives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tok1d.diffusion.objective import FlowObjective, Times, direction_loss
from tok1d.diffusion.path import Path, Prediction
from tok1d.diffusion.solver import euler, heun

KINDS: list[Prediction] = ["data", "noise", "velocity"]
PATHS = [Path("linear"), Path("cosine")]


def test_uniform_times() -> None:
    t = Times("uniform").sample(20000, generator=torch.Generator().manual_seed(0))
    assert t.shape == (20000,) and t.min() >= 0 and t.max() < 1
    quantiles = torch.quantile(t, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.02, rtol=0)


def test_logit_normal_times() -> None:
    t = Times("logit_normal", -1.0, 0.5).sample(20000, generator=torch.Generator().manual_seed(0))
    logits = t.logit()
    assert abs(logits.mean().item() + 1) < 0.03 and abs(logits.std().item() - 0.5) < 0.03
    assert t.median() < 0.5, "a negative mean favours noise"


def test_times_come_from_the_generator() -> None:
    for times in (Times("uniform"), Times("logit_normal")):
        samples = [times.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_with_the_exact_answer_has_no_loss(path: Path, kind: Prediction) -> None:
    torch.manual_seed(0)
    data, noise = torch.randn(2, 4, 3, 2, 2)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    objective = FlowObjective(path, kind, weight_power=1.0)
    answer = {"data": data, "noise": noise, "velocity": path.velocity(data, noise, t)}[kind]
    assert torch.equal(objective.loss(lambda x, s: answer, data, noise, t), torch.zeros(4))
    weight = 1 / path.coefficients(t)[1]
    torch.testing.assert_close(objective.loss(lambda x, s: answer + 2, data, noise, t), 4 * weight)


def test_the_network_receives_the_noised_input_and_the_time() -> None:
    data, noise, t = torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.25, 0.75])
    received: list[Tensor] = []

    def network(x: Tensor, s: Tensor) -> Tensor:
        received.extend([x, s])
        return x

    FlowObjective(Path("linear")).loss(network, data, noise, t)
    torch.testing.assert_close(received[0], t[:, None].expand(2, 3))
    assert torch.equal(received[1], t)


def test_squared_weight_on_data_is_the_velocity_loss() -> None:
    torch.manual_seed(0)
    path = Path("linear")
    data, noise = torch.randn(2, 6, 5, dtype=torch.float64)
    t = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)  # sigma stays above its floor of 0.05
    guess = torch.randn(6, 5, dtype=torch.float64)
    as_data = FlowObjective(path, "data", 2.0).loss(lambda x, s: guess, data, noise, t)
    as_velocity = FlowObjective(path, "velocity").loss(
        lambda x, s: path.to_velocity(guess, "data", x, s), data, noise, t
    )
    torch.testing.assert_close(as_data, as_velocity)


def test_the_weight_is_bounded_near_the_data() -> None:
    objective = FlowObjective(Path("linear"), "data", 1.0)
    loss = objective.loss(lambda x, s: torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1))
    torch.testing.assert_close(loss, torch.tensor([20.0]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", [euler, heun])
def test_all_predictions_of_one_field_walk_the_same_way(target: Any, path: Path, solver: Callable[..., Tensor]) -> None:
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0.05, 1, 9, dtype=torch.float64)  # a noise prediction has no velocity at t = 0
    ends = [solver(FlowObjective(path, kind).velocity_field(target.predict(kind, path)), x, times) for kind in KINDS]
    torch.testing.assert_close(ends[0], ends[2])
    torch.testing.assert_close(ends[1], ends[2])


def test_times_whose_ratio_is_lognormal_on_the_cosine_path() -> None:
    normals = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for kind, path in (("logit_normal", Path("linear")), ("atan_normal", Path("cosine"))):
        alpha, sigma, _, _ = path.coefficients(Times(kind, 0.5, 2.0).from_normal(normals))
        torch.testing.assert_close((alpha / sigma).log(), 2 * normals + 0.5)


def test_the_direction_loss_ignores_length_and_is_largest_for_opposites() -> None:
    target = torch.randn(2, 5, 3)
    torch.testing.assert_close(direction_loss(3 * target, target), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(direction_loss(-target, target), torch.full((2,), 2.0))
    across = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    torch.testing.assert_close(direction_loss(across.flip(-1), across), torch.ones(1))

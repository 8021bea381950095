import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tok1d.config.recipe import OptimConfig
from tok1d.train.optim import build_optimizer, learning_rate


def config(**keys) -> OptimConfig:
    return OptimConfig(**{"steps": 100, "batch_size": 1, "lr": 0.5, "lr_min": 0.1, "warmup": 10, **keys})


def test_warm_up_is_linear_and_ends_at_the_highest_rate() -> None:
    rates = [learning_rate(step, config()) for step in range(11)]
    assert rates == pytest.approx([0.5 * (step + 1) / 11 for step in range(11)])
    assert rates[10] == 0.5


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_last_step_has_the_lowest_rate_and_the_middle_one_the_mean(schedule: str, warmup: int) -> None:
    settings = config(schedule=schedule, warmup=warmup, steps=101)
    assert learning_rate(100, settings) == pytest.approx(0.1)
    assert learning_rate((warmup + 100) // 2, settings) == pytest.approx(0.3)
    rates = [learning_rate(step, settings) for step in range(warmup, 101)]
    assert all(a > b for a, b in pairwise(rates))


def test_cosine_in_closed_form() -> None:
    settings = config(warmup=0, steps=9, lr=1.0, lr_min=0.0)
    expected = [math.cos(math.pi * step / 16) ** 2 for step in range(9)]  # (1 + cos 2a) / 2 = cos^2 a
    assert [learning_rate(step, settings) for step in range(9)] == pytest.approx(expected)


def test_constant_stays() -> None:
    rates = {learning_rate(step, config(schedule="constant")) for step in range(10, 100)}
    assert rates == {0.5}


def test_the_release_starts_at_zero_and_stops_early_on_its_cosine() -> None:
    """Warm-up over 100 of 400 epochs, then a half period of 400: the end is at three quarters, 14.6 % of the peak."""
    settings = config(steps=400, warmup=100, warmup_init=0.0, decay_steps=400, lr=1.0, lr_min=0.0)
    assert [learning_rate(step, settings) for step in (0, 25, 100)] == [0.0, 0.25, 1.0]
    assert learning_rate(400, settings) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert [learning_rate(step, settings) for step in (500, 600)] == [0.0, 0.0]


def test_a_decay_of_its_own_length_ends_there_and_stays() -> None:
    settings = config(schedule="linear", warmup=10, decay_steps=20, warmup_init=0.3)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == 0.3 and rates[5] == pytest.approx(0.4) and rates[10] == 0.5
    assert rates[20] == pytest.approx(0.3)
    assert set(rates[30:]) == {0.1}


def test_the_warm_up_comes_before_every_schedule() -> None:
    schedules = [config(schedule=name, warmup_init=0.0) for name in ("cosine", "linear", "constant")]
    assert {tuple(learning_rate(step, one) for step in range(11)) for one in schedules} == {
        tuple(0.5 * step / 10 for step in range(11))
    }


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_run_of_one_step_has_a_rate(warmup: int) -> None:
    assert 0 < learning_rate(0, config(steps=1, warmup=warmup)) <= 0.5


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = build_optimizer(model, config(weight_decay=0.3, beta2=0.7))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert [id(p) for p in groups[0.3]] == [id(model[0].weight)]
    assert {id(p) for p in groups[0.0]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert all(group["betas"] == (0.9, 0.7) for group in optimizer.param_groups)


def test_tables_and_embeddings_decay_only_on_request() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 4), "linear": nn.utils.spectral_norm(nn.Linear(4, 2))})
    model.register_parameter("positions", nn.Parameter(torch.ones(1, 3, 4)))
    names = {id(p): name for name, p in model.named_parameters()}

    def decaying(**keys) -> set[str]:
        groups = build_optimizer(model, config(weight_decay=0.3, **keys)).param_groups
        return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}

    assert decaying() == {"linear.weight_orig"}
    assert decaying(decay="tables_too") == {"linear.weight_orig", "embedding.weight", "positions"}


def test_decay_shrinks_what_has_no_gradient_by_lr_times_decay() -> None:
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, config(weight_decay=0.25))
    model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before["weight"] * (1 - 0.5 * 0.25))
    torch.testing.assert_close(model.bias.data, before["bias"])

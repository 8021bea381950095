import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tok1d.config import OptimConfig
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


def test_decay_shrinks_what_has_no_gradient_by_lr_times_decay() -> None:
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, config(weight_decay=0.25))
    model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before["weight"] * (1 - 0.5 * 0.25))
    torch.testing.assert_close(model.bias.data, before["bias"])

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tok1d.config.load import load_recipe
from tok1d.train import run
from tok1d.train.ema import EMA
from tok1d.train.tasks import build_task


def walk(ema: EMA, model: nn.Linear, values: list[float]) -> None:
    for step, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        ema.update(step)


def linear(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_without_ramp_it_is_the_geometric_sum() -> None:
    model, decay = linear(3.0), 0.9
    ema = EMA(model, decay, ramp=False)
    values = [1.0, -2.0, 5.0, 0.5]
    walk(ema, model, values)
    expected = 3.0 * decay**4 + (1 - decay) * sum(v * decay ** (3 - i) for i, v in enumerate(values))
    torch.testing.assert_close(ema.averages["weight"], torch.full((1, 2), expected))


def test_the_ramp_holds_the_decay_of_update_n_below_its_bound() -> None:
    model = linear(0.0)
    ema = EMA(model, 0.15)
    walk(ema, model, [1.0])
    torch.testing.assert_close(ema.averages["weight"], torch.full((1, 2), 0.9))  # decay (1 + 0) / (10 + 0)
    walk(ema, model, [1.0] * 2)  # now 0.1 and then 2 / 11 > 0.15
    torch.testing.assert_close(ema.averages["weight"], torch.full((1, 2), 1 - 0.1 * 0.1 * 0.15))


def test_swapping_twice_is_the_identity_and_once_exchanges() -> None:
    model = nn.Linear(3, 3)
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model.weight.normal_()
    ema.update(0)
    weight, average = model.weight.detach().clone(), ema.averages["weight"].clone()
    ema.swap()
    assert torch.equal(model.weight, average) and torch.equal(ema.averages["weight"], weight)
    ema.swap()
    assert torch.equal(model.weight, weight) and torch.equal(ema.averages["weight"], average)


def test_it_starts_at_the_weights_and_leaves_frozen_ones_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    ema = EMA(model, 0.5)
    assert set(ema.averages) == {"0.weight", "0.bias"}
    assert all(torch.equal(ema.averages[name], model.state_dict()[name]) for name in ema.averages)


def test_its_state_round_trips_by_value() -> None:
    model = nn.Linear(3, 2)
    ema, other = EMA(model, 0.5), EMA(nn.Linear(3, 2), 0.5)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(other.averages[name], ema.averages[name]) for name in ema.averages)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update(5)
    assert not torch.equal(other.averages["weight"], ema.averages["weight"])


def test_a_recipe_without_ramp_averages_with_a_constant_decay(
    tmp_path: Path, tiny: Callable[..., str], fashion: None
) -> None:
    """Closed form from the weights after every step: the initial ones count decay^n, those of step i the rest."""
    changes = [f"out={tmp_path}", "train.ema=0.9", "train.ema_ramp=false", "train.keep_every=1"]
    recipe = load_recipe(tiny("classifier"), changes)
    expected = {name: 0.9**6 * value for name, value in build_task(recipe).model.named_parameters()}
    run.train(recipe, quiet=True)
    states = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "checkpoints").iterdir())]
    for i, state in enumerate(states):
        expected = {name: value + 0.1 * 0.9 ** (5 - i) * state["model"][name] for name, value in expected.items()}
    assert len(states) == 6
    for name, value in expected.items():
        torch.testing.assert_close(states[-1]["ema"][name], value.detach(), rtol=1e-5, atol=1e-7)

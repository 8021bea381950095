import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tok1d.config.optim import MuonConfig, OptimConfig
from tok1d.errors import ConfigError
from tok1d.nn.matrices import block_matrices
from tok1d.train import muon
from tok1d.train.muon import GatedMuon, orthogonalised
from tok1d.train.optim import Optimizers, learning_rate


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
    (optimizer,) = Optimizers(model, config(weight_decay=0.3, beta2=0.7))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert [id(p) for p in groups[0.3]] == [id(model[0].weight)]
    assert {id(p) for p in groups[0.0]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert all(group["betas"] == (0.9, 0.7) for group in optimizer.param_groups)


def test_tables_and_embeddings_decay_only_on_request() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 4), "linear": nn.utils.spectral_norm(nn.Linear(4, 2))})
    model.register_parameter("positions", nn.Parameter(torch.ones(1, 3, 4)))
    names = {id(p): name for name, p in model.named_parameters()}

    def decaying(**keys) -> set[str]:
        (optimizer,) = Optimizers(model, config(weight_decay=0.3, **keys))
        groups = optimizer.param_groups
        return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}

    assert decaying() == {"linear.weight_orig"}
    assert decaying(decay="tables_too") == {"linear.weight_orig", "embedding.weight", "positions"}


def test_decay_shrinks_what_has_no_gradient_by_lr_times_decay() -> None:
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (optimizer,) = Optimizers(model, config(weight_decay=0.25))
    model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before["weight"] * (1 - 0.5 * 0.25))
    torch.testing.assert_close(model.bias.data, before["bias"])


# --- Muon ---------------------------------------------------------------------------------------------------------


class Stack(nn.Module):
    """Two blocks with a matrix, a frozen matrix and a vector each, between two matrices that are in no block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.table = nn.Parameter(torch.randn(1, 4, 6))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 6), nn.Linear(6, 6)) for _ in range(2)
        )
        for block in self.blocks:
            block[3].requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.table.sum(1)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def stack(seed: int = 0) -> Stack:
    torch.manual_seed(seed)
    return Stack()


def gradients(model: Stack, seed: int) -> None:
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()


def test_muon_has_the_matrices_of_blocks_and_adamw_has_the_rest() -> None:
    model = stack()
    assert list(block_matrices(model)) == [f"blocks.{i}.{j}.weight" for i in (0, 1) for j in (0, 2)]
    optimizers = Optimizers(model, config(optimizer="muon", weight_decay=0.3))
    held = {name: [p for g in each.param_groups for p in g["params"]] for name, each in optimizers.members.items()}
    assert {id(p) for p in held["muon"]} == {id(p) for p in block_matrices(model).values()}
    both = [id(p) for each in held.values() for p in each]
    assert len(both) == len(set(both)) and set(both) == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_module_without_blocks_has_adamw_alone() -> None:
    assert list(Optimizers(nn.Linear(2, 2), config(optimizer="muon")).members) == ["adamw"]


def test_both_rates_follow_one_schedule() -> None:
    optimizers = Optimizers(stack(), config(optimizer="muon", muon=MuonConfig(lr=0.05)))
    for step in (0, 7, 40, 99):
        optimizers.step(step, torch.tensor(False))
        rates = {name: each.param_groups[0]["lr"] for name, each in optimizers.members.items()}
        assert rates == pytest.approx(
            {"adamw": learning_rate(step, config()), "muon": learning_rate(step, config()) / 10}
        )


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (4, 5), (6, 40)])
def test_the_iteration_is_its_polynomial_on_singular_values(shape: tuple[int, int]) -> None:
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalised(matrix, (a, b, c), 5, 1e-7), left @ values.diag() @ right)
    assert values.min() > 0.6 and values.max() < 1.3


def test_both_forms_of_the_iteration_agree_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of very different sizes, as gradients have; a wide matrix is multiplied once, others in every step."""
    sizes = torch.logspace(0, -5, 96)
    matrix = torch.randn(24, 96, generator=torch.Generator().manual_seed(2)) * sizes
    found = []
    for wide in (1.5, float("inf")):
        monkeypatch.setattr(muon, "WIDE", wide)
        found.append(orthogonalised(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert not torch.equal(*found), "two ways to compute it"


def test_muon_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch iterates in bfloat16; with the same dtype both are equal up to the rounding of the last sums."""
    monkeypatch.setattr(muon, "iteration_dtype", lambda device: torch.bfloat16)
    one, two = stack(), stack()
    keys = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    theirs = torch.optim.Muon(block_matrices(one).values(), adjust_lr_fn="match_rms_adamw", **keys)
    ours = GatedMuon(block_matrices(two).values(), **keys)
    start = {name: p.clone() for name, p in block_matrices(one).items()}
    for step in range(4):
        for model, optimizer in ((one, theirs), (two, ours)):
            optimizer.zero_grad()
            gradients(model, step)
            optimizer.step()
        pairs = zip(block_matrices(one).items(), block_matrices(two).values())
        for (name, a), b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
            b.data.copy_(a)  # so that a difference in the last bit does not become one of bfloat16
            assert not torch.allclose(a, start[name], atol=1e-2)


def test_an_update_has_the_root_mean_square_of_adamws() -> None:
    weight = nn.Parameter(torch.zeros(20, 40))
    weight.grad = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    GatedMuon([weight], lr=1.0, weight_decay=0.0).step()
    assert float(weight.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def snapshot(model: Stack, optimizers: Optimizers) -> list[torch.Tensor]:
    state = optimizers.state_dict(main=True)
    moments = [v for own in state.values() for values in own["state"].values() for v in values.values()]
    return [each.clone() for each in (*model.parameters(), *moments)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_halted_changes_no_weight_no_mean_and_no_count(value: float) -> None:
    model = stack()
    optimizers = Optimizers(
        model, config(optimizer="muon", warmup=0, lr=0.01, weight_decay=0.1, muon=MuonConfig(decay=0.1))
    )
    gradients(model, 0)
    optimizers.step(0, torch.tensor(False))
    before = snapshot(model, optimizers)
    assert len(before) > len(list(model.parameters()))
    gradients(model, 1)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.flatten()[0] = value
    optimizers.step(1, torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, optimizers)))
    gradients(model, 1)
    optimizers.step(1, torch.tensor(False))
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    moved = [not torch.equal(a, p) for a, p in zip(before, model.parameters()) if id(p) not in frozen]
    assert all(moved)


def test_the_very_first_step_may_be_halted_too() -> None:
    model, same = stack(), stack()
    optimizers = Optimizers(model, config(optimizer="muon"))
    gradients(model, 0)
    for p in block_matrices(model).values():
        p.grad.fill_(float("nan"))
    optimizers.step(0, torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
    (state,) = [optimizers.state_dict(main=True)["muon"]["state"]]
    assert all(not values["momentum_buffer"].any() for values in state.values())


def test_a_restored_pair_of_optimizers_goes_on_bit_for_bit() -> None:
    settings = config(optimizer="muon", lr=0.01, weight_decay=0.1)
    whole, first = stack(), stack()
    pair = [Optimizers(model, settings) for model in (whole, first)]
    for step in range(3):
        for model, optimizers in zip((whole, first), pair):
            gradients(model, step)
            optimizers.step(step, torch.tensor(False))
    second = stack(7)
    second.load_state_dict(first.state_dict())
    resumed = Optimizers(second, settings)
    resumed.load_state_dict(pair[1].state_dict(main=True))
    for step in range(3, 6):
        for model, optimizers in ((whole, pair[0]), (second, resumed)):
            gradients(model, step)
            optimizers.step(step, torch.tensor(False))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))


def test_the_state_of_another_optimizer_is_refused() -> None:
    model = stack()
    adamw, both = Optimizers(model, config()), Optimizers(model, config(optimizer="muon"))
    for one, other in ((adamw, both), (both, adamw)):
        with pytest.raises((ValueError, LookupError)):
            one.load_state_dict(other.state_dict(main=True))


def test_an_older_pytorch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"train.optimizer: muon needs PyTorch 2\.9 or newer, found .*adamw"):
        Optimizers(stack(), config(optimizer="muon"))

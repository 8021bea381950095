"""Training in fp16: near fp32, exact resumption, and overflowing steps skipped until the loss scale is exhausted."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.config.recipe import Recipe, TrainConfig
from tok1d.errors import ConfigError
from tok1d.evaluate.networks import CNNConfig
from tok1d.losses.adversarial import adaptive_weight
from tok1d.train import precision
from tok1d.train.log import read_log
from tok1d.train.loop import fit
from tok1d.train.nonfinite import NonFiniteError, read_dump
from tok1d.train.players import Player
from tok1d.train.task import Task

DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))
OVERFLOW, NAN = 1.0, 2.0  # flags of a batch
FIRST = 2.0**12  # at which these small losses do not overflow


@pytest.fixture(autouse=True)
def half_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "ON_CPU", True)
    monkeypatch.setattr(precision, "FIRST_SCALE", FIRST)


class Net(nn.Module):
    """Two layers and a running mean, on batches (x (B, 3), flags (B,)); `size` is that of the loss."""

    def __init__(self, size: float = 1.0, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.size = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)), size
        self.register_buffer("mean", torch.zeros(()))

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        x, flags = batch
        y = self.net(x)
        assert y.dtype == (torch.float16 if torch.is_autocast_enabled("cpu") else torch.float32)
        self.mean.lerp_(y.detach().float().mean(), 0.5)
        loss = self.size * (y.float() - x.sum(1, keepdim=True)).square().mean()
        if (flags == OVERFLOW).any():  # 0, of slope 60000: with any scale above 1, no number of fp16
            loss = loss + 60000 * (y - y.detach()).sum()
        return {"loss": loss * (torch.nan if (flags == NAN).any() else 1)}


def task(model: Any, flags: dict[int, float], **more: Any) -> Task:
    def batch(micro_step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(micro_step * 8, (micro_step + 1) * 8) % len(DATA)
        return DATA[rows].clone(), torch.full((8,), flags.get(micro_step, 0.0))

    return Task(model, batch, **more)


def recipe(**train: Any) -> Recipe:
    settings = {"steps": 8, "batch_size": 8, "lr": 0.01, "schedule": "constant", "ema": 0.5, "log_every": 1}
    return Recipe(kind="classifier", model=CNNConfig(), train=TrainConfig(**{**settings, "precision": "fp16", **train}))


def run(out: Path, *, flags: dict[int, float] | None = None, seconds: Any = None, **train: Any) -> Net:
    model = Net()
    out.mkdir(exist_ok=True)
    fit(recipe(save_every=1, keep_last=100, **train), task(model, flags or {}), out, quiet=True, seconds=seconds)
    return model


def saved(out: Path, step: int) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)


def test_it_is_near_fp32_and_not_it(tmp_path: Path) -> None:
    run(tmp_path / "half")
    run(tmp_path / "full", precision="fp32")
    half, full = (read_log(tmp_path / name / "log.jsonl") for name in ("half", "full"))
    assert [e["loss"] for e in half] == pytest.approx([e["loss"] for e in full], rel=5e-3)
    assert [e["grad_norm"] for e in half] == pytest.approx([e["grad_norm"] for e in full], rel=2e-2)
    assert [e["loss"] for e in half] != [e["loss"] for e in full]
    assert {e["scale"] for e in half} == {FIRST} and {e["skipped"] for e in half} == {0}
    assert not {"scale", "skipped"} & full[0].keys()


def test_a_step_that_overflows_changes_nothing_but_the_scale(tmp_path: Path) -> None:
    run(tmp_path, flags={3: OVERFLOW})
    before, after, later = (saved(tmp_path, step) for step in (3, 4, 5))
    assert (before["scale"]["scale"], after["scale"]["scale"], later["scale"]["scale"]) == (FIRST, FIRST / 2, FIRST / 2)
    for name, value in before["model"].items():  # the running mean, too
        assert torch.equal(after["model"][name], value) and not torch.equal(later["model"][name], value)
    for i, values in before["optimizer"]["state"].items():
        assert all(torch.equal(after["optimizer"]["state"][i][name], value) for name, value in values.items())
    assert (after["scale"]["in_a_row"], later["scale"]["in_a_row"]) == (1, 0)
    log = read_log(tmp_path / "log.jsonl")
    assert [e["skipped"] for e in log] == [0, 0, 0, 1, 0, 0, 0, 0] and all(e["loss"] < 100 for e in log)


def test_the_log_s_gradient_is_that_of_the_steps_taken(tmp_path: Path) -> None:
    run(tmp_path / "each", flags={1: OVERFLOW}, steps=4)
    run(tmp_path / "all", flags={1: OVERFLOW}, steps=4, log_every=4)
    norms = [e["grad_norm"] for e in read_log(tmp_path / "each" / "log.jsonl")]
    (entry,) = read_log(tmp_path / "all" / "log.jsonl")
    assert norms[1] == 0 and entry["skipped"] == 0.25
    assert entry["grad_norm"] == pytest.approx(sum(norms) / 3, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    monkeypatch.setattr(precision, "GROWTH_STEPS", 2)
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**20)  # real overflows at first, then growth
    run(tmp_path / "whole", accumulate=accumulate, steps=40)
    for _ in range(40):
        model = run(tmp_path / "cut", accumulate=accumulate, steps=40, seconds=0.0)
    whole, cut = (saved(tmp_path / name, 40) for name in ("whole", "cut"))
    scales = [e["scale"] for e in read_log(tmp_path / "whole" / "log.jsonl")]
    assert {b / a for a, b in pairwise(scales)} == {0.5, 1, 2}
    assert whole["scale"] == cut["scale"]
    for key in ("model", "ema"):
        assert all(torch.equal(cut[key][name], value) for name, value in whole[key].items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in whole["ema"].items())


def test_gradients_too_small_for_fp16_need_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for name, first, form in (("scaled", 2.0**16, "fp16"), ("not", 1.0, "fp16"), ("full", 1.0, "fp32")):
        monkeypatch.setattr(precision, "FIRST_SCALE", first)
        (tmp_path / name).mkdir()
        model = Net(1e-7)
        start = model.net[0].weight.detach().clone()
        fit(recipe(steps=1, ema=0.0, precision=form, clip=0.0), task(model, {}), tmp_path / name, quiet=True)
        weights.append(model.net[0].weight.detach() - start)
    scaled, unscaled, full = weights
    assert (unscaled == 0).float().mean() > 0.5
    torch.testing.assert_close(scaled, full, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("limit", ["steps", "scale"])
def test_it_stops_when_leaving_out_steps_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    if limit == "steps":
        monkeypatch.setattr(precision, "MOST_SKIPPED", 3)
    else:
        monkeypatch.setattr(precision, "FIRST_SCALE", 4.0)
    flags = {0: OVERFLOW, 1: OVERFLOW, **dict.fromkeys(range(3, 30), OVERFLOW)}
    with pytest.raises(NonFiniteError) as stopped:
        run(tmp_path, flags=flags, steps=30)
    step, scale = (5, FIRST / 16) if limit == "steps" else (3, 1.0)
    (dump,) = tmp_path.glob("nonfinite-*.pt")
    state, last = read_dump(dump), saved(tmp_path, step)
    assert str(stopped.value).startswith(f"step {step}: loss or gradient is not finite")
    if limit == "steps":
        assert "not finite in 3 steps in a row, now with loss scale 256;" in str(stopped.value)
        assert "train.precision=fp16: the same step is finite in fp32" in str(stopped.value)
    assert state["scale"] == scale
    assert all(torch.equal(state["model"][name], value) for name, value in last["model"].items())


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"^step 2: loss or gradient is not finite; the run stopped"):
        run(tmp_path, flags={2: NAN})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == "step-00000002.pt"


def test_players_leave_a_step_out_together(tmp_path: Path) -> None:
    first, second = Net(seed=1), Net(seed=2)

    def careless(batch: Any, progress: Any, earlier: Any) -> Any:  # the second player receives no flag
        return second.losses((batch[0], torch.zeros(8)), progress.fraction), {}

    players = [Player(first, lambda b, p, e: (first.losses(b, p.fraction), {}))]
    players.append(Player(second, careless, None, "b", "b_"))
    fit(recipe(save_every=1, keep_last=9, steps=4), task(first, {1: OVERFLOW}, players=players), tmp_path, quiet=True)
    one, two, three = (saved(tmp_path, step)["players"]["b"]["model"] for step in (1, 2, 3))
    for name, value in one.items():
        assert torch.equal(two[name], value) and not torch.equal(three[name], value)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(precision, "ON_CPU", False)
    with pytest.raises(ConfigError, match=rf"^train\.precision: {name} is for GPUs"):
        precision.precision_of(name, torch.device("cpu"))
    assert precision.precision_of("fp32", torch.device("cpu"))().__enter__() is None


def test_the_adaptive_weight_uses_gradients_that_fp16_would_lose() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 16), torch.randn(4, 16)

    def weight(half: bool, scale: float) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            y = layer(x)
        loss = y.float().square().mean() * 1e-6
        return adaptive_weight(loss, loss * 0.5, layer.weight, scale=scale)

    exact = weight(False, 1.0)
    assert torch.equal(weight(False, 2.0**20), exact)  # a power of 2 changes no bit
    torch.testing.assert_close(weight(True, 2.0**20), exact, rtol=2e-3, atol=0)
    assert (weight(True, 1.0) - exact).abs() > 0.02 * exact
    assert weight(True, 2.0**50) == 0  # an overflow removes the adversarial loss from the step


def test_a_whole_run_of_a_tokenizer(tiny: Any, tmp_path: Path, fashion: None) -> None:
    for form in ("fp16", "fp32"):
        assert cli.run(["train", tiny("tokenizer"), f"out={tmp_path / form}", f"train.precision={form}"]) == 0
    half, full = (read_log(tmp_path / form / "log.jsonl") for form in ("fp16", "fp32"))
    assert [e["loss_flow"] for e in half] == pytest.approx([e["loss_flow"] for e in full], rel=1e-2)
    assert sum(e["skipped"] for e in half) == 0

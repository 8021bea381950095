"""The loop on stub models: what a step depends on, what stops a run, and that a resumed run equals an unbroken one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe, TrainConfig
from tok1d.errors import ConfigError, WeightsError
from tok1d.evaluate.networks import CNNConfig
from tok1d.train import checkpoint, stop
from tok1d.train.log import read_log
from tok1d.train.loop import fit
from tok1d.train.nonfinite import NonFiniteError, replay
from tok1d.train.rng import seed_of
from tok1d.train.task import Task
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

TIMED = ("seconds", "images_per_second", "loader_wait", "tflops")
DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))


class Line(nn.Module):
    """Least squares on a batch (x (B, 3), flags (B,)); a flag of 1 makes the gradient infinite at a finite loss."""

    def __init__(self, *, noisy: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.noisy = nn.Linear(3, 1), noisy
        self.before_step: Callable[[], None] = lambda: None

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        self.before_step()
        x, flags = batch
        target = x.sum(1, keepdim=True) + (torch.randn(len(x), 1) if self.noisy else 0)
        loss = (self.layer(x) - target).square().mean()
        if flags.any():
            still = self.layer.weight - self.layer.weight.detach()
            loss = loss + still.sqrt().sum()  # sqrt(0) = 0, of infinite slope
        return {"loss": loss, "spread": x.std()}


def task(model: nn.Module, size: int = 4, *, bad: int = -1, kind: str = "loss") -> Task:
    """Batches of DATA in order; micro-step `bad` has a NaN image or a flag for an infinite gradient."""

    def batch(micro_step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(micro_step * size, (micro_step + 1) * size) % len(DATA)
        x, flags = DATA[rows].clone(), torch.zeros(size)
        if micro_step == bad and kind == "loss":
            x[0, 0] = float("nan")
        elif micro_step == bad:
            flags += 1
        return x, flags

    return Task(model, batch)


def recipe(seed: int = 0, **train: Any) -> Recipe:
    settings = {"steps": 6, "batch_size": 4, "lr": 0.1, "schedule": "constant", "ema": 0.0, "log_every": 2, **train}
    return Recipe(kind="classifier", seed=seed, model=CNNConfig(), train=TrainConfig(**settings))


def interrupt_at(model: Any, step: int, number: int = signal.SIGINT) -> None:
    """Ctrl-C while optimizer step `step` (0-based) of this sitting is computed."""
    calls, losses = [0], model.losses

    def wrapped(batch: Any, progress: float) -> Any:
        if calls[0] == step:
            signal.raise_signal(number)
        calls[0] += 1
        return losses(batch, progress)

    model.losses = wrapped


def checkpoints(out: Path) -> list[str]:
    return sorted(os.listdir(out / "checkpoints"))


def read_checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / checkpoints(out)[-1], weights_only=True)


def log_without_time(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in TIMED} for entry in read_log(out / "log.jsonl")]


def flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict | list | tuple):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, item in items for k, v in flat(item, f"{key}.{name}").items()}


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, tensors included."""
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for key in a:
        same = torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key]
        assert same, key


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    return tmp_path / "unbroken", tmp_path / "broken"


def assert_resumes(make: Callable[[], tuple[Recipe, Task]], runs: tuple[Path, Path], stop: int) -> None:
    """Six steps at once, and six with Ctrl-C at micro-step `stop`, end with the same bits everywhere."""
    unbroken, broken = runs
    settings, whole = make()
    assert fit(settings, whole, unbroken, quiet=True).finished
    _, first = make()
    interrupt_at(first.model, stop)
    with pytest.raises(KeyboardInterrupt):
        fit(settings, first, broken, quiet=True)
    assert len(checkpoints(broken)) == 1 and read_checkpoint(broken)["step"] < 6
    _, second = make()
    result = fit(settings, second, broken, quiet=True)
    assert result.finished and result.steps == 6
    assert_same(second.model.state_dict(), whole.model.state_dict())
    without_time = [{**read_checkpoint(out), "seconds": 0} for out in runs]
    assert_same(*without_time)
    assert log_without_time(broken) == log_without_time(unbroken)


@pytest.mark.parametrize("stop", [0, 5, 8])
def test_a_resumed_stub_equals_an_unbroken_one(runs: tuple[Path, Path], stop: int) -> None:
    # Two forward passes a step, noise, a schedule, EMA, and a log whose lines span the interruption.
    def make() -> tuple[Recipe, Task]:
        settings = recipe(accumulate=2, ema=0.9, schedule="cosine", warmup=2, log_every=4, weight_decay=0.1)
        return settings, task(Line(noisy=True))

    assert_resumes(make, runs, stop)


def test_a_resumed_tokenizer_equals_an_unbroken_one(runs: tuple[Path, Path], fashion: None, tiny: Any) -> None:
    settings = load_recipe(tiny("tokenizer", data={"flip": True}), ["train.accumulate=2"])
    assert_resumes(lambda: (settings, build_task(settings)), runs, 5)


def test_a_resumed_generator_equals_an_unbroken_one(
    runs: tuple[Path, Path], tmp_path: Path, fashion: None, tiny: Any
) -> None:
    torch.manual_seed(0)
    store.save_model(store.build_model(load_recipe(tiny("tokenizer")).model), tmp_path / "model", Card())
    settings = load_recipe(tiny("generator", tokenizer=tmp_path / "model", cache=tmp_path / "cache"))
    assert_resumes(lambda: (settings, build_task(settings)), runs, 3)


def test_time_is_up_after_the_first_step_and_the_run_goes_on(tmp_path: Path) -> None:
    result = fit(recipe(), task(Line()), tmp_path, seconds=0.0, quiet=True)
    assert (result.steps, result.finished) == (1, False) and checkpoints(tmp_path) == ["step-00000001.pt"]
    result = fit(recipe(), task(Line()), tmp_path, quiet=True)
    assert (result.steps, result.finished) == (6, True) and result.seconds > 0
    assert fit(recipe(), task(Line()), tmp_path, quiet=True).steps == 6  # nothing left to do


def test_checkpoints_are_written_every_so_many_steps(tmp_path: Path) -> None:
    fit(recipe(save_every=2, steps=5), task(Line()), tmp_path, quiet=True)
    assert checkpoints(tmp_path) == ["step-00000004.pt", "step-00000005.pt"]


def test_the_log_holds_means_over_the_steps_since_the_line_before(tmp_path: Path) -> None:
    for name, every in (("each", 1), ("pairs", 2)):
        (tmp_path / name).mkdir()
        fit(recipe(log_every=every, steps=5), task(Line()), tmp_path / name, quiet=True)
    each, pairs = read_log(tmp_path / "each" / "log.jsonl"), read_log(tmp_path / "pairs" / "log.jsonl")
    assert [entry["step"] for entry in pairs] == [2, 4, 5]
    for name in ("loss", "spread", "grad_norm"):
        values = [entry[name] for entry in each]
        means = [(values[0] + values[1]) / 2, (values[2] + values[3]) / 2, values[4]]
        assert [entry[name] for entry in pairs] == pytest.approx(means, abs=2e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_at_hand_and_gives_the_handlers_back(tmp_path: Path, number: int) -> None:
    model, before = Line(), signal.getsignal(number)
    interrupt_at(model, 2, number)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(), task(model), tmp_path, quiet=True)
    assert checkpoints(tmp_path) == ["step-00000003.pt"] and signal.getsignal(number) is before


def test_a_later_ctrl_c_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "SECOND_CTRL_C", -1.0)
    model = Line()
    interrupt_at(model, 2)
    interrupt_at(model, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(), task(model), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("more", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_that_come_together_do_not_lose_the_step(tmp_path: Path, number: int, more: int) -> None:
    model = Line()
    for each in (number, more, more):
        interrupt_at(model, 2, each)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(), task(model), tmp_path, quiet=True)
    assert checkpoints(tmp_path) == ["step-00000003.pt"]


def test_two_half_batches_make_the_step_of_a_whole_one(tmp_path: Path) -> None:
    ends, norms = [], []
    for size, accumulate in ((8, 1), (4, 2), (2, 4)):
        (tmp_path / str(size)).mkdir()
        model = Line()
        fit(recipe(batch_size=size, accumulate=accumulate), task(model, size), tmp_path / str(size), quiet=True)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        # AdamW forgets the gradient's scale, the log does not.
        norms.append([entry["grad_norm"] for entry in read_log(tmp_path / str(size) / "log.jsonl")])
    assert (ends[0] - torch.cat([p.detach().flatten() for p in Line().parameters()])).abs().min() > 0.1
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4) and norms[2] == pytest.approx(norms[0], rel=1e-4)


def test_clipping_bounds_the_gradient_but_not_what_is_logged(tmp_path: Path) -> None:
    model = Line()
    seen: list[Tensor] = []
    step = torch.optim.AdamW.step

    def spy(self: Any, *args: Any) -> Any:
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        fit(recipe(clip=0.01, log_every=1, steps=2), task(model), tmp_path, quiet=True)
    assert torch.stack(seen).tolist() == pytest.approx([0.01] * 2, rel=1e-3)
    assert all(entry["grad_norm"] > 0.1 for entry in read_log(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("bad_step", [0, 3])
def test_a_step_that_is_not_finite_is_never_taken(runs: tuple[Path, Path], kind: str, bad_step: int) -> None:
    out, good_out = runs
    settings, accumulate = recipe(accumulate=2, log_every=100, save_every=2), 2
    model, good = Line(noisy=True), Line(noisy=True)
    spoiled = task(model, bad=bad_step * accumulate + 1, kind=kind)
    with pytest.raises(NonFiniteError, match=rf"^step {bad_step}: .*nonfinite-step-0000000{bad_step}\.pt") as caught:
        fit(settings, spoiled, out, quiet=True)
    assert "\n" not in str(caught.value)
    if bad_step:
        fit(recipe(accumulate=2, steps=bad_step), task(good), good_out, quiet=True)
    assert_same(model.state_dict(), good.state_dict())  # the weights of the last good step
    assert not (out / "checkpoints").exists() or read_checkpoint(out)["step"] <= bad_step

    dump = out / f"nonfinite-step-{bad_step:08d}.pt"
    assert_same(torch.load(dump, weights_only=True)["model"], good.state_dict())
    again = Line(noisy=True)
    terms = replay(settings, Task(again, spoiled.batch), dump)
    gradients = torch.cat([p.grad.flatten() for p in again.parameters() if p.grad is not None])
    assert not torch.isfinite(gradients).all()
    assert torch.isfinite(torch.tensor(terms["loss"])) == (kind == "gradient")


def test_replaying_repeats_the_noise_of_the_step(tmp_path: Path) -> None:
    settings, model = recipe(log_every=1), Line(noisy=True)
    fit(settings, task(model), tmp_path, seconds=0.0, quiet=True)
    state = torch.load(tmp_path / "checkpoints" / "step-00000001.pt", weights_only=True)
    torch.save(state, tmp_path / "dump.pt")
    replayed = replay(settings, task(Line(noisy=True)), tmp_path / "dump.pt")["loss"]
    fit(settings, task(model), tmp_path, quiet=True)
    assert replayed == pytest.approx(read_log(tmp_path / "log.jsonl")[1]["loss"], abs=1e-6)


def test_a_dump_that_does_not_fit_on_the_disk_does_not_hide_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(NonFiniteError, match=r"step 1: loss or gradient is not finite.*No space left"):
        fit(recipe(), task(Line(), bad=1), tmp_path, quiet=True)
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_seeds_steps_and_processes_give_other_numbers_on_every_device() -> None:
    # torch's CPU generator reads 32 bits of a seed.
    seeds = {
        seed_of(seed, step, rank) & 0xFFFFFFFF for seed in (0, 1, 2**32 - 1) for step in range(50) for rank in range(2)
    }
    assert len(seeds) == 300
    assert len({seed_of(0, 1), seed_of(0, 1, 0, "d_"), seed_of(0, 1, 0, "e_")}) == 3  # and so do the players
    assert seed_of(7, 3, 1) == seed_of(7, 3, 1)


@pytest.mark.parametrize("other", [1, 65536, 2**32 - 1])
def test_the_recipe_s_seed_decides_the_noise(tmp_path: Path, other: int) -> None:
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", other)):
        (tmp_path / name).mkdir()
        fit(recipe(seed=seed, steps=1), task(Line(noisy=True)), tmp_path / name, quiet=True)
        losses.append(read_log(tmp_path / name / "log.jsonl")[0]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_the_model_ends_with_its_averages_in_eval_mode(tmp_path: Path) -> None:
    model = Line()
    fit(recipe(ema=0.5), task(model), tmp_path, quiet=True)
    state = read_checkpoint(tmp_path)
    assert not model.training
    assert_same(dict(model.state_dict()), state["ema"])
    assert not torch.equal(state["ema"]["layer.weight"], state["model"]["layer.weight"])


def test_a_preview_interrupted_by_a_kill_is_made_when_the_run_resumes(tmp_path: Path) -> None:
    """Its step is already in the checkpoint, so no later step would make it."""
    previews: list[tuple[str, Any]] = []

    def preview(model: nn.Module, path: Path) -> None:
        if not previews:
            previews.append(("cut off", None))
            raise KeyboardInterrupt
        previews.append((path.name, model.layer.weight.detach().clone()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def run() -> None:
        line = task(Line())
        line.preview = preview
        fit(recipe(ema=0.5, preview_every=2, save_every=2, steps=6), line, tmp_path, quiet=True)

    with pytest.raises(KeyboardInterrupt):
        run()
    average = torch.load(tmp_path / "checkpoints" / "step-00000002.pt", weights_only=True)["ema"]["layer.weight"]
    for _ in range(2):  # the second time nothing is left to do
        run()
        assert [name for name, _ in previews] == ["cut off", "step-00000002.png", "step-00000004.png"]
    assert torch.equal(previews[1][1], average)


def test_previews_use_the_averages_and_leave_training_unchanged(runs: tuple[Path, Path]) -> None:
    seen, (out, plain_out) = [], runs

    def preview(model: nn.Module, path: Path) -> None:
        torch.rand(3)  # its random numbers do not count
        seen.append((path.name, model.training, model.layer.weight.detach().clone()))

    previewed, plain = task(Line(noisy=True)), task(Line(noisy=True))
    previewed.preview = preview
    fit(recipe(ema=0.5, preview_every=2, save_every=2, steps=4), previewed, out, quiet=True)
    fit(recipe(ema=0.5, save_every=2, steps=4), plain, plain_out, quiet=True)
    average = torch.load(out / "checkpoints" / "step-00000002.pt", weights_only=True)["ema"]["layer.weight"]
    assert [entry[:2] for entry in seen] == [("step-00000002.png", False)] and torch.equal(seen[0][2], average)
    own = {"seconds": 0, "recipe": ""}
    assert_same({**read_checkpoint(out), **own}, {**read_checkpoint(plain_out), **own})


def test_bf16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("bf16 is refused only without a GPU; runs on such a machine")
    with pytest.raises(ConfigError, match=r"^train\.precision: bf16"):
        fit(recipe(precision="bf16"), task(Line()), tmp_path, quiet=True)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    fit(recipe(), task(Line()), tmp_path, seconds=0.0, quiet=True)
    other = Line()
    other.layer = nn.Linear(3, 2)
    with pytest.raises(WeightsError, match=r"checkpoints: 2 weights of another shape .*layer\.bias"):
        fit(recipe(), task(other), tmp_path, quiet=True)


def spoiled(state: dict[str, Any], what: str) -> dict[str, Any]:
    """A checkpoint of `Line` with something else in one place."""
    moments, weights = state["optimizer"]["state"], state["model"]
    return (
        state
        | {
            "optimizer": {"optimizer": {}},
            "no group": {"optimizer": {**state["optimizer"], "param_groups": []}},
            "moments": {
                "optimizer": {**state["optimizer"], "state": {0: {**moments[0], "exp_avg": torch.zeros(2, 2)}}}
            },
            "moments of nothing": {"optimizer": {**state["optimizer"], "state": {7: moments[0]}}},
            "averages": {"ema": {}},
            "shape of an average": {"ema": {name: value.new_zeros(1) for name, value in weights.items()}},
            "weights": {"model": [1]},
            "text": {"model": {**weights, "layer.bias": "x"}},
            "step": {"step": "x"},
            "step before all": {"step": -5},
            "step after all": {"step": 99},
            "seconds": {"seconds": None},
            "players": {"players": None},
            "sums": {"sums": 3},
        }[what]
    )


@pytest.mark.parametrize(
    "what",
    [
        *(
            "optimizer",
            "no group",
            "moments",
            "moments of nothing",
            "averages",
            "shape of an average",
            "weights",
            "text",
        ),
        *("step", "step before all", "step after all", "seconds", "players", "sums"),
    ],
)
def test_a_checkpoint_that_holds_something_else_is_refused_in_a_line(tmp_path: Path, what: str) -> None:
    settings = recipe(ema=0.9, save_every=4)
    fit(settings, task(Line()), tmp_path, seconds=0.0, quiet=True)
    path = tmp_path / "checkpoints" / checkpoints(tmp_path)[-1]
    state = checkpoint.load_latest(path.parent, torch.device("cpu"))
    assert state is not None
    checkpoint.write(path, spoiled(state, what))
    with pytest.raises(WeightsError, match=r"checkpoints: .*(delete it|start over)") as refused:
        fit(settings, task(Line()), tmp_path, quiet=True)
    assert "\n" not in str(refused.value)
    checkpoint.write(path, state)
    assert fit(settings, task(Line()), tmp_path, quiet=True).finished


def test_a_training_on_other_images_is_reported(tmp_path: Path, capsys: Any) -> None:
    for num in (7, 7, 6):
        work = task(Line())
        work.images = range(num)
        fit(recipe(), work, tmp_path, seconds=0.0, quiet=True)
        warning = capsys.readouterr().err
        assert ("written by a training on 7 images, resuming with 6" in warning) == (num == 6)


@pytest.mark.parametrize(
    ("seconds", "expected_steps"), [(0.01, [4, 14]), (0.24, [4, 8, 12]), (3.0, list(range(4, 15)))]
)
def test_several_processes_ask_each_other_about_once_a_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected_steps: list[int]
) -> None:
    asked, now = [], [0.0]
    monkeypatch.setattr(stop.time, "perf_counter", lambda: now[0])

    class Two:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, votes: Tensor, how: str) -> Tensor:
            asked.append(votes.tolist())
            return 2 * votes + torch.tensor([1.0, 0.0])  # the other is as slow, and wants to stop

    agreement, answers = stop.Agreement(Two(), 3), []
    for step in range(4, 15):
        now[0] += seconds
        answers.append(agreement.stop(False, step))
    assert [step for step, yes in zip(range(4, 15), answers) if yes] == expected_steps
    assert [wish for wish, _ in asked] == [0.0] * len(expected_steps) and asked[-1][1] == pytest.approx(seconds)

"""Two players in one loop: the usual order of their steps, and everything that holds for a single model."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.recipe import Recipe, TrainConfig
from tok1d.errors import WeightsError
from tok1d.evaluate.networks import CNNConfig
from tok1d.losses.adversarial import AdversarialConfig, AdversarialLoss
from tok1d.losses.discriminator import PatchDiscriminator
from tok1d.train.ema import EMA
from tok1d.train.log import read_log
from tok1d.train.loop import fit
from tok1d.train.nonfinite import NonFiniteError, replay
from tok1d.train.optim import learning_rate
from tok1d.train.players import Player, Progress
from tok1d.train.rng import seed_of
from tok1d.train.task import Task

TIMED = ("seconds", "images_per_second", "loader_wait", "tflops")
DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))
Batch = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """A linear map with a buffer: the discriminator's running mean of its logits of fakes."""

    def __init__(self, out: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, out)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def frozen_logits(discriminator: Linear, x: Tensor) -> Tensor:
    return F.linear(x, discriminator.layer.weight.detach(), discriminator.layer.bias.detach())


def generator_losses(
    generator: Linear, discriminator: Linear, batch: Batch, noise: bool
) -> tuple[dict[str, Tensor], Tensor]:
    fake = generator(batch[0] + (0.1 * torch.randn_like(batch[0]) if noise else 0))
    terms = {
        "loss_reconstruction": (fake - batch[0]).square().mean(),
        "loss_fool": -frozen_logits(discriminator, fake).mean(),
    }
    return terms, fake


def losses_of_discriminator(discriminator: Linear, batch: Batch, fake: Tensor, noise: bool) -> dict[str, Tensor]:
    """Hinge; a flag of 1 in the batch makes the loss NaN, one of 2 the gradient infinite at a finite loss."""
    x, flags = batch
    spoil = float("nan") if (flags == 1).any() else 1.0
    logits = spoil * discriminator(fake + (0.1 * torch.randn_like(fake) if noise else 0))
    with torch.no_grad():
        discriminator.mean.lerp_(logits.mean(), 0.1)
    loss = (F.relu(1 - discriminator(x)).mean() + F.relu(1 + logits).mean()) / 2
    if (flags == 2).any():
        loss = loss + (discriminator.layer.weight - discriminator.layer.weight.detach()).sqrt().sum()
    return {"loss": loss, "logits": logits.mean()}


def batches(size: int, bad: int = -1, flag: float = 1) -> Callable[[int, int, int], Batch]:
    def batch(micro_step: int, rank: int, world: int) -> Batch:
        share = size // world
        rows = micro_step * size + rank * share + torch.arange(share)
        return DATA[rows % len(DATA)].clone(), torch.full((share,), flag * (micro_step == bad))

    return batch


def pair(settings: Recipe, *, noise: bool = False, bad: int = -1, flag: float = 1, **optim: Any) -> Task:
    generator, discriminator = Linear(3, 3), Linear(1, 4)

    def first(batch: Batch, progress: Progress, earlier: dict[str, Tensor]) -> Any:
        assert not earlier
        terms, fake = generator_losses(generator, discriminator, batch, noise)
        return terms, {"fake": fake}

    def second(batch: Batch, progress: Progress, earlier: dict[str, Tensor]) -> Any:
        assert not earlier["fake"].requires_grad
        return losses_of_discriminator(discriminator, batch, earlier["fake"], noise), {}

    theirs = replace(settings.train, **{"ema": 0.0, **optim})
    players = [Player(generator, first), Player(discriminator, second, theirs, "discriminator", "d_")]
    return Task(generator, batches(settings.train.batch_size, bad, flag), players=players)


def recipe(**train: Any) -> Recipe:
    settings = {"steps": 6, "batch_size": 4, "lr": 0.1, "schedule": "constant", "ema": 0.0, "log_every": 2, **train}
    return Recipe(kind="classifier", model=CNNConfig(), train=TrainConfig(**settings))


def modules(task: Task) -> dict[str, Any]:
    return {player.name: dict(player.module.state_dict()) for player in task.players}


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
        assert torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key], key


def newest(out: Path) -> dict[str, Any]:
    return torch.load(sorted((out / "checkpoints").iterdir())[-1], weights_only=True)


def log_without_time(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in TIMED} for entry in read_log(out / "log.jsonl")]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return tmp_path / "a", tmp_path / "b"


def adamw(module: nn.Module, config: Any) -> torch.optim.AdamW:
    groups = [
        {"params": [module.layer.weight], "weight_decay": config.weight_decay},
        {"params": [module.layer.bias], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def stepped(optimizer: torch.optim.AdamW, loss: Tensor, step: int, config: Any) -> None:
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, config.clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.step()
    optimizer.zero_grad()


def test_players_step_as_in_the_classical_loop_generator_average_discriminator(tmp_path: Path) -> None:
    settings = recipe(ema=0.9, schedule="cosine", warmup=2, weight_decay=0.1)
    task = pair(settings, noise=True, lr=0.05, beta1=0.5, beta2=0.99, clip=0.3)
    fit(settings, task, tmp_path, quiet=True)

    generator, discriminator, config = Linear(3, 3), Linear(1, 4), settings.train
    theirs = replace(config, lr=0.05, beta1=0.5, beta2=0.99, clip=0.3)
    ours, others, ema = adamw(generator, config), adamw(discriminator, theirs), EMA(generator, 0.9)
    for step in range(config.steps):
        batch = batches(4)(step, 0, 1)
        torch.manual_seed(seed_of(0, step))
        terms, fake = generator_losses(generator, discriminator, batch, noise=True)
        stepped(ours, sum(terms.values()), step, config)
        ema.update(step)
        torch.manual_seed(seed_of(0, step, 0, "d_"))
        stepped(others, losses_of_discriminator(discriminator, batch, fake.detach(), noise=True)["loss"], step, theirs)
    assert_same(newest(tmp_path)["model"], dict(generator.state_dict()))
    ema.swap()
    assert_same(
        modules(task), {"model": dict(generator.state_dict()), "discriminator": dict(discriminator.state_dict())}
    )
    assert not torch.equal(discriminator.layer.weight, Linear(1, 4).layer.weight)


def test_a_model_alone_is_a_plain_loop(tmp_path: Path) -> None:
    class Alone(Linear):
        def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
            return {"loss": (1 + progress) * (self(batch[0]) + torch.randn(4, 1) - 1).square().mean()}

    settings = recipe(ema=0.5, schedule="linear", warmup=1, weight_decay=0.1)
    model, plain = Alone(1, 3), Alone(1, 3)
    fit(settings, Task(model, batches(4)), tmp_path, quiet=True)
    optimizer, ema = adamw(plain, settings.train), EMA(plain, 0.5)
    for step in range(6):
        torch.manual_seed(seed_of(0, step))
        stepped(optimizer, plain.losses(batches(4)(step, 0, 1), step / 5)["loss"], step, settings.train)
        ema.update(step)
    assert_same(newest(tmp_path)["model"], dict(plain.state_dict()))
    assert_same(dict(model.layer.named_parameters()), {k.split(".")[1]: v for k, v in ema.averages.items()})


def adversarial_task(settings: Recipe) -> Task:
    """A convolution against a patch discriminator with batch statistics, LeCAM and augmentation, from step 3 on."""
    torch.manual_seed(1)
    generator = nn.Conv2d(1, 1, 3, padding=1)
    config = AdversarialConfig(weight=0.4, start=3, warmup=2, diff_aug=True, consistency=1.0)
    loss = AdversarialLoss(config, PatchDiscriminator(1, width=4, layers=1))

    def first(batch: Batch, progress: Progress, earlier: dict[str, Tensor]) -> Any:
        fake = generator(batch[0])
        terms = {"loss_reconstruction": F.mse_loss(fake, batch[0])}
        terms |= loss.generator_terms(batch[0], fake, progress.step + 1, generator.weight, terms)
        return terms, {"fake": fake}

    def second(batch: Batch, progress: Progress, earlier: dict[str, Tensor]) -> Any:
        return loss.discriminator_losses(batch[0], earlier["fake"], progress.step + 1), {}

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(micro_step)), torch.zeros(2)

    players = [Player(generator, first), Player(loss, second, replace(settings.train, ema=0.0), "discriminator", "d_")]
    return Task(generator, batch, players=players)


@pytest.mark.parametrize("make", [pair, adversarial_task])
@pytest.mark.parametrize("stop", [1, 6])
def test_resumed_players_equal_unbroken_ones(two: tuple[Path, Path], make: Callable[..., Task], stop: int) -> None:
    settings = recipe(accumulate=2, ema=0.9, schedule="cosine", warmup=2, log_every=4, weight_decay=0.1)
    more = {"noise": True, "ema": 0.8} if make is pair else {}
    whole, first, second = (make(settings, **more) for _ in range(3))
    fit(settings, whole, two[0], quiet=True)
    calls, losses = [0], first.players[1].losses

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            signal.raise_signal(signal.SIGINT)
        return losses(*args)

    first.players[1].losses = interrupted
    with pytest.raises(KeyboardInterrupt):
        fit(settings, first, two[1], quiet=True)
    assert newest(two[1])["step"] == (stop + 1) // 2
    assert fit(settings, second, two[1], quiet=True).finished
    assert_same(modules(second), modules(whole))
    ends = [{**newest(out), "seconds": 0} for out in two]
    assert_same(*ends)
    assert log_without_time(two[0]) == log_without_time(two[1])
    left = ends[0]["players"]["discriminator"]
    assert left["optimizer"]["state"] and bool(left["ema"]) == (make is pair)
    moved = left["model"]["mean" if make is pair else "lecam.mean_fake"]
    assert moved != 0 and "mean" not in ends[0]["ema"]


def test_a_discriminator_that_never_learns_is_a_fixed_one(two: tuple[Path, Path]) -> None:
    settings = recipe(ema=0.9)
    still = pair(settings, noise=True, lr=0.0)
    fit(settings, still, two[0], quiet=True)
    generator, discriminator = Linear(3, 3), Linear(1, 4)

    def losses(batch: Batch, progress: Progress, earlier: dict[str, Tensor]) -> Any:
        return generator_losses(generator, discriminator, batch, noise=True)[0], {}

    fit(settings, Task(generator, batches(4), players=[Player(generator, losses)]), two[1], quiet=True)
    assert_same(modules(still)["model"], dict(generator.state_dict()))
    a, b = ({k: v for k, v in newest(out).items() if k not in ("seconds", "players", "sums")} for out in two)
    assert_same(a, b)
    assert torch.equal(still.players[1].module.layer.weight, discriminator.layer.weight)
    assert not torch.equal(generator.layer.weight, Linear(3, 3).layer.weight)


def test_two_half_batches_make_the_step_of_a_whole_one(tmp_path: Path) -> None:
    ends, logs = [], []
    for size, accumulate in ((8, 1), (4, 2)):
        (tmp_path / str(size)).mkdir()
        settings = recipe(batch_size=size, accumulate=accumulate, steps=4, log_every=1)
        task = pair(settings)
        fit(settings, task, tmp_path / str(size), quiet=True)
        ends.append({k: v for k, v in flat(modules(task)).items() if not k.endswith(".mean")})
        logs.append(read_log(tmp_path / str(size) / "log.jsonl"))
    torch.testing.assert_close(ends[1], ends[0])
    for a, b in zip(*logs):
        names = [name for name in a if name not in (*TIMED, "step")]
        assert [a[name] for name in names] == pytest.approx([b[name] for name in names], rel=1e-3, abs=3e-6)
        assert {"loss_reconstruction", "grad_norm", "lr", "d_loss", "d_logits", "d_grad_norm", "d_lr"} <= set(names)


@pytest.mark.parametrize("flag", [1, 2])
@pytest.mark.parametrize("bad_step", [0, 3])
def test_a_discriminator_that_is_not_finite_stops_both(two: tuple[Path, Path], flag: int, bad_step: int) -> None:
    settings = recipe(accumulate=2, log_every=100)
    spoiled = pair(settings, noise=True, bad=2 * bad_step + 1, flag=flag)
    with pytest.raises(NonFiniteError, match=rf"^step {bad_step}: discriminator: loss or gradient") as caught:
        fit(settings, spoiled, two[0], quiet=True)
    assert "\n" not in str(caught.value)
    good = pair(settings, noise=True)
    if bad_step:
        settings_good = recipe(accumulate=2, steps=bad_step)
        good = pair(settings_good, noise=True)
        fit(settings_good, good, two[1], quiet=True)
    assert_same(modules(spoiled), modules(good))  # buffers too, although the run continued to its next check

    dump = two[0] / f"nonfinite-step-{bad_step:08d}.pt"
    again = pair(settings, noise=True, bad=2 * bad_step + 1, flag=flag)
    terms = replay(settings, again, dump)
    generator, discriminator = ([p.grad for p in player.module.parameters()] for player in again.players)
    assert all(torch.isfinite(gradient).all() for gradient in generator)
    assert not all(torch.isfinite(gradient).all() for gradient in discriminator)
    assert torch.isfinite(torch.tensor(terms["d_loss"])) == (flag == 2)
    assert torch.isfinite(torch.tensor(terms["loss_reconstruction"]))


def test_the_first_player_that_is_not_finite_is_named_and_replaying_repeats_the_step(tmp_path: Path) -> None:
    settings = recipe(log_every=1)
    task = pair(settings, noise=True)
    fit(settings, task, tmp_path, seconds=0.0, quiet=True)
    replayed = replay(settings, pair(settings, noise=True), tmp_path / "checkpoints" / "step-00000001.pt")
    read = task.batch

    def spoiled(micro_step: int, rank: int, world: int) -> Batch:
        x, flags = read(micro_step, rank, world)
        return x * (float("nan") if micro_step == 2 else 1), flags

    task.batch = spoiled
    with pytest.raises(NonFiniteError, match=r"^step 2: model: loss or gradient"):
        fit(settings, task, tmp_path, quiet=True)
    entry = read_log(tmp_path / "log.jsonl")[1]
    assert replayed == pytest.approx({name: entry[name] for name in replayed}, abs=1e-6)


def test_checkpoints_from_before_players_existed_load_and_those_of_others_are_refused(tmp_path: Path) -> None:
    settings = recipe()

    def single() -> Task:
        generator = Linear(3, 3)
        return Task(
            generator, batches(4), players=[Player(generator, lambda b, m, s: ({"loss": generator(b[0]).mean()}, {}))]
        )

    fit(settings, single(), tmp_path, seconds=0.0, quiet=True)
    path = tmp_path / "checkpoints" / "step-00000001.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("players") == {}
    torch.save(state, path)
    with pytest.raises(WeightsError, match="expected a checkpoint with model, discriminator, got one with model;"):
        fit(settings, pair(settings), tmp_path, quiet=True)
    assert fit(settings, single(), tmp_path, quiet=True).finished

    (tmp_path / "pair").mkdir()
    fit(settings, pair(settings), tmp_path / "pair", seconds=0.0, quiet=True)
    with pytest.raises(
        WeightsError, match="expected a checkpoint with model, got one with model, discriminator;"
    ) as error:
        fit(settings, single(), tmp_path / "pair", quiet=True)
    assert "\n" not in str(error.value)


def test_frozen_weights_are_in_no_optimizer_and_no_average_and_end_as_they_began(tmp_path: Path) -> None:
    settings = recipe(ema=0.9, weight_decay=0.5)
    task = pair(settings, ema=0.9)
    for player in task.players:
        player.module.layer.bias.requires_grad_(False)
    fit(settings, task, tmp_path, quiet=True)
    state = newest(tmp_path)
    for own, player, fresh in (
        (state, *task.players[:1], Linear(3, 3)),
        (state["players"]["discriminator"], *task.players[1:], Linear(1, 4)),
    ):
        assert set(own["ema"]) == {"layer.weight"} and len(own["optimizer"]["state"]) == 1
        assert torch.equal(player.module.layer.bias, fresh.layer.bias)
        assert_same(own["ema"]["layer.weight"], player.module.layer.weight)
        assert not torch.equal(player.module.layer.weight, fresh.layer.weight)


def test_players_learn_at_which_step_of_how_many_they_are(tmp_path: Path) -> None:
    settings, received = recipe(accumulate=2, steps=3), []
    task = pair(settings)
    for player in task.players:
        losses = player.losses
        player.losses = lambda b, p, e, losses=losses: (received.append(p), losses(b, p, e))[1]
    fit(settings, task, tmp_path, quiet=True)
    assert received == [Progress(step, 3) for step in range(3) for _ in range(4)]
    assert [progress.fraction for progress in received[::4]] == [0, 1 / 2, 1]


def test_gradients_that_reach_another_player_are_noticed(tmp_path: Path) -> None:
    settings = recipe()
    task = pair(settings)
    generator, discriminator = (player.module for player in task.players)
    task.players[0].losses = lambda b, m, s: (
        {"loss": discriminator(generator(b[0])).mean()},
        {"fake": generator(b[0])},
    )
    with pytest.raises(AssertionError, match="reached the gradients of discriminator"):
        fit(settings, task, tmp_path, quiet=True)


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(two: tuple[Path, Path]) -> None:
    for out, world in zip(two, (1, 2)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        running = [
            subprocess.Popen(
                [sys.executable, __file__, str(out)],
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            )
            for rank in range(world)
        ]
        assert [process.wait() for process in running] == [0] * world
    one, both = (newest(out) for out in two)
    for a, b in ((one, both), (one["players"]["discriminator"], both["players"]["discriminator"])):
        assert not torch.equal(a["model"]["layer.weight"], Linear(len(a["model"]["layer.bias"]), 3).layer.weight)
        a["model"].pop("mean"), b["model"].pop("mean")  # of the first process's part
        torch.testing.assert_close(flat(a["model"]), flat(b["model"]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flat(a["optimizer"]["state"]), flat(b["optimizer"]["state"]), rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    wanted = recipe(steps=4, accumulate=2, ema=0.9)
    fit(wanted, pair(wanted), Path(sys.argv[1]), quiet=True)

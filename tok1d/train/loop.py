"""The one training loop: tokenizers, generators and the judge alike, and players that train against each other.

A step is a pure function of (weights, optimizer state, seed, step): the batch comes from the step number and the
random numbers are seeded from it. So a resumed run equals an unbroken one, and a failed step can be replayed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config import Recipe
from tok1d.data.images import prefetch
from tok1d.errors import ConfigError, Tok1dError, WeightsError
from tok1d.train import checkpoint
from tok1d.train.log import JsonLog
from tok1d.train.optim import learning_rate
from tok1d.train.players import Batch, Moment, Player, Side, Tensors, alone, total_loss
from tok1d.zoo.store import load_state

AGREE_EVERY = 10  # after so many steps several processes ask each other whether one of them has to stop


class NonFiniteError(Tok1dError):
    """A loss or gradient was not finite; the weights are those before the step."""


@dataclass(frozen=True)
class Measure:
    """What is measured on the model every so many steps, on its averaged weights in eval mode.

    Args:
        run: model -> numbers for a line of the log of their own; may draw from torch's global random numbers, whose
            state is restored, and must leave the model as it is.
    """

    every: int
    run: Callable[[nn.Module], dict[str, Any]]


@dataclass
class Task:
    """What a recipe trains: the model and where its batches come from.

    Args:
        model: what is saved, shown and measured in the end.
        batch: (micro_step, rank, world) -> the batch; a pure function.
        preview: writes a picture of what the model does now.
        players: who trains, in turn, the model first; empty is the model alone, by its own losses.
        measures: what is measured meanwhile, before the checkpoint of the same step.
    """

    model: nn.Module
    batch: Callable[[int, int, int], Batch]
    preview: Callable[[nn.Module, Path], None] | None = None
    players: list[Player] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.players = self.players or [alone(self.model)]
        assert self.players[0].module is self.model and not self.players[0].prefix, "the model plays first"
        for key in ("name", "prefix"):
            assert len({getattr(player, key) for player in self.players}) == len(self.players), f"{key}s that repeat"


@dataclass
class Result:
    """How far a run is: optimizer steps, seconds spent training (over all sittings), and where."""

    steps: int
    seconds: float
    device: str
    finished: bool


class _StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step at hand; a second one interrupts."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _StopSignal:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:
            pass  # not in the main thread: signals are somebody else's
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


def _gloo() -> bool:
    """Several processes without a GPU; accelerate takes them for strangers unless it is told."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def processes() -> Any:
    """accelerate's `PartialState`: which of how many processes (torchrun) this is, and its device."""
    from accelerate import PartialState

    return PartialState(cpu=_gloo())


def fit(recipe: Recipe, task: Task, out: Path, *, seconds: float | None = None, quiet: bool = False) -> Result:
    """Train `task` as `recipe.train` says, from the newest checkpoint in `out` if there is one.

    Every step, each of the task's players computes its gradients in turn; then all of them are stepped. On return the
    model holds the averaged weights (EMA), unless `train.ema` is 0.

    Args:
        seconds: stop with a checkpoint after this much training time of this sitting.
        quiet: no progress bar.

    Raises:
        NonFiniteError: before the optimizer step that would have used a non-finite loss or gradient; a dump for
            replay lies in `out`.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is done and the checkpoint written.
    """
    from accelerate import Accelerator

    config = recipe.train
    # Asked before Accelerator, which keeps its precision for the life of the process.
    if config.precision == "bf16" and processes().device.type == "cpu":
        raise ConfigError("train.precision: bf16 is for GPUs (on a CPU it is slower than fp32), expected fp32")
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=_gloo())
    world = accelerator.num_processes
    if config.batch_size % world:
        raise ConfigError(f"train.batch_size: expected a multiple of {world} processes, received {config.batch_size}")
    sides = [Side(player, config, accelerator.device) for player in task.players]
    run = _Run(recipe, task, out, accelerator, sides)
    state = checkpoint.load_latest(out / "checkpoints", accelerator.device)
    if state is not None:
        run.load(state)
    for side in sides:
        side.prepare(accelerator)
    with _StopSignal() as stop:
        run.loop(stop, seconds, quiet=quiet or not accelerator.is_main_process)
    if stop.received is not None and run.step < config.steps:
        raise KeyboardInterrupt
    for side in sides:
        if side.ema is not None:
            side.ema.swap()
        side.player.module.eval()
    return Result(run.step, run.spent, str(accelerator.device), run.step >= config.steps)


def seed_of(seed: int, micro_step: int, rank: int = 0, prefix: str = "") -> int:
    """The seed of one forward pass's random numbers, of the player that logs with this prefix.

    Hashed, because torch's CPU generator takes only the low 32 bits of a seed: all of these must reach them.
    """
    digest = hashlib.sha256(f"{seed} {micro_step} {rank}{prefix and ' '}{prefix}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def replay(recipe: Recipe, task: Task, dump: Path, *, rank: int = 0, world: int = 1) -> dict[str, float]:
    """The losses of a step that was not finite, from its dump: same weights, batch and random numbers (on its device).

    The modules of `task.players` are left with the dump's weights and the step's gradients, to look into.
    """
    state, accumulate = torch.load(dump, map_location="cpu", weights_only=True), recipe.train.accumulate
    for player, own in zip(task.players, checkpoint.by_player(state, [p.name for p in task.players], str(dump))):
        load_state(player.module, own["model"], str(dump))
        player.module.train().zero_grad()
    device, moment = next(task.model.parameters()).device, Moment(state["step"], recipe.train.steps)
    losses: dict[str, float] = {}
    for micro_step in range(state["step"] * accumulate, (state["step"] + 1) * accumulate):
        batch, seen = tuple(part.to(device) for part in task.batch(micro_step, rank, world)), Tensors()
        for player in task.players:
            torch.manual_seed(seed_of(recipe.seed, micro_step, rank, player.prefix))
            terms, made = player.losses(batch, moment, seen)
            (total_loss(terms) / accumulate).backward()
            seen |= {name: value.detach() for name, value in made.items()}
            for name, value in terms.items():
                key = player.prefix + name
                losses[key] = losses.get(key, 0.0) + float(value.detach()) / accumulate
    return losses


@dataclass
class _Run:
    """State of a run between steps."""

    recipe: Recipe
    task: Task
    out: Path
    accelerator: Any
    sides: list[Side]
    step: int = 0
    spent: float = 0.0
    sums: Tensors = field(default_factory=dict)  # of what is logged, over the steps after `since`
    since: int = 0

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        source = str(self.out / "checkpoints")
        names = [side.player.name for side in self.sides]
        for side, own in zip(self.sides, checkpoint.by_player(state, names, source)):
            side.load_state_dict(own, source)
        self.step, self.spent = state["step"], state["seconds"]
        self.sums, self.since = state.get("sums", {}), state.get("since", self.step)

    def loop(self, stop: _StopSignal, seconds: float | None, *, quiet: bool) -> None:
        from tqdm import tqdm

        config, device = self.recipe.train, self.accelerator.device
        main = self.accelerator.is_main_process
        log = JsonLog(self.out / "log.jsonl", self.step) if main else None
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.culprits = torch.zeros(len(self.sides), dtype=torch.bool, device=device)
        before, mark = self.spent, time.perf_counter()
        ahead = closing(prefetch(self._batches()))
        bar = tqdm(total=config.steps, initial=self.step, disable=quiet, unit="step", smoothing=0.05)
        with ahead as steps, bar:  # whatever happens, the bar ends its line and the reading thread its work
            for batches in steps:
                for name, value in self.train_step(batches).items():
                    self.sums[name] = self.sums.get(name, 0) + value
                self.step += 1
                bar.update()
                self.spent = before + time.perf_counter() - mark
                done = self.step >= config.steps
                wanted = stop.received is not None or (seconds is not None and self.spent - before >= seconds)
                ending = done or self._agreed(wanted)
                if done or self.step % config.log_every == 0:
                    self._check_finite()
                    entry = self._log_entry()
                    bar.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in entry.items() if k.startswith("loss")))
                    if log is not None:
                        log.write(entry)
                    self.sums, self.since = {}, self.step
                self.measure(log)
                if ending or (config.save_every and self.step % config.save_every == 0):
                    self.save()
                if config.preview_every and self.step % config.preview_every == 0 and not done:
                    self.preview()
                if ending:
                    break

    def _agreed(self, wanted: bool) -> bool:
        """Whether to stop here. Several processes stop at the same step or wait for each other forever; as asking
        waits for the device, they ask only now and then."""
        if self.accelerator.num_processes == 1:
            return wanted
        if self.step % AGREE_EVERY:
            return False
        votes = torch.tensor(float(wanted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, "sum") > 0)

    def _batches(self) -> Iterator[list[Batch]]:
        """The batches of one optimizer step after the other, read ahead in a thread."""
        config = self.recipe.train
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for step in range(self.step, config.steps):
            first = step * config.accumulate
            yield [self.task.batch(first + i, rank, world) for i in range(config.accumulate)]

    def train_step(self, batches: list[Batch]) -> Tensors:
        """One optimizer step of every player; returns detached means on the device, without waiting for it."""
        logged: Tensors = {}
        totals = [torch.zeros((), device=self.accelerator.device) for _ in self.sides]
        for i, batch in enumerate(batches):
            for name, value in self._gradients(batch, i, len(batches), totals).items():
                logged[name] = logged.get(name, 0) + value.detach() / len(batches)
        norms = [side.clip() for side in self.sides]
        halted = self._halted(totals, norms)
        for side, norm in zip(self.sides, norms):
            side.step(self.step, halted)
            logged[f"{side.player.prefix}grad_norm"] = norm.detach()
        return logged

    def _gradients(self, batch: Batch, i: int, num: int, totals: list[Tensor]) -> Tensors:
        """Forward and backward pass of the players in turn on batch `i` of a step of `num`; returns what to log."""
        accelerator, moment = self.accelerator, Moment(self.step, self.recipe.train.steps)
        moved = tuple(part.to(accelerator.device, non_blocking=True) for part in batch)
        seen, logged = Tensors(), Tensors()
        for n, side in enumerate(self.sides):
            player = side.player
            assert i or not n or all(p.grad is None for p in player.module.parameters()), (
                f"the losses of a player before it reached the gradients of {player.name}"
            )
            micro_step = self.step * num + i
            torch.manual_seed(seed_of(self.recipe.seed, micro_step, accelerator.process_index, player.prefix))
            with nullcontext() if i == num - 1 else accelerator.no_sync(side.forward):
                terms, made = side.forward(moved, moment, seen)
                loss = total_loss(terms) / num
                accelerator.backward(loss)
            totals[n] += loss.detach()
            seen |= {name: value.detach() for name, value in made.items()}
            logged |= {player.prefix + name: value for name, value in terms.items()}
        return logged

    def _halted(self, totals: list[Tensor], norms: list[Tensor]) -> Tensor:
        """Whether this step, or one before it, was not finite, on the device."""
        bad = torch.stack([~(torch.isfinite(total) & torch.isfinite(norm)) for total, norm in zip(totals, norms)])
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0
        # The fused optimizer skips its update on the device where found_inf is 1; it stays 1 from the first bad
        # step on, so nothing has to wait for the device to keep the weights as they were before that step.
        first = bad.any() & (self.first_bad < 0)
        self.first_bad = torch.where(first, self.step, self.first_bad)
        self.culprits = torch.where(first, bad, self.culprits)
        return self.first_bad >= 0

    def _check_finite(self) -> None:
        """Stop the run if a step since the last look was not finite, leaving a dump to replay it."""
        bad = int(self.first_bad)
        if bad < 0:
            return
        path = self.out / f"nonfinite-step-{bad:08d}.pt"
        left = f"left {path} (weights before the step; tok1d.train.loop.replay repeats it)"
        if self.accelerator.is_main_process:
            first, *others = self.sides
            players = {side.player.name: side.state() for side in others}
            try:
                checkpoint.write(path, {"step": bad, **first.state(), "players": players})
            except WeightsError as error:
                left = str(error)
        # The first of them: what it made spoils those after it.
        player = self.sides[self.culprits.tolist().index(True)].player
        whose = f"{player.name}: " if len(self.sides) > 1 else ""
        raise NonFiniteError(
            f"step {bad}: {whose}loss or gradient is not finite; the run stopped before using it and {left}. "
            "Try a lower train.lr, train.clip, or train.precision=fp32"
        )

    def _log_entry(self) -> dict[str, Any]:
        count = max(self.step - self.since, 1)
        values = {name: float(value) / count for name, value in self.sums.items()}
        rates = {f"{side.player.prefix}lr": learning_rate(self.step - 1, side.config) for side in self.sides}
        return {
            "step": self.step,
            **{name: round(value, 6) for name, value in values.items()},
            **{name: round(rate, 9) for name, rate in rates.items()},
            "seconds": round(self.spent, 2),
        }

    def save(self) -> None:
        """Write a checkpoint (main process)."""
        self._check_finite()
        if self.accelerator.is_main_process:
            first, *others = self.sides
            state = {
                **first.state_dict(),
                "players": {side.player.name: side.state_dict() for side in others},
                "seconds": self.spent,
                "sums": self.sums,
                "since": self.since,
            }
            checkpoint.save(self.out / "checkpoints", self.step, state)

    def measure(self, log: JsonLog | None) -> None:
        """Log what is due at this step, leaving weights, modes and random numbers as they are (main process)."""
        due = [each for each in self.task.measures if self.step % each.every == 0]
        if due:
            self._check_finite()  # on every process: where it stops one, it stops all
        if not due or log is None:
            return
        device = self.accelerator.device
        with self._averaged(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            for each in due:
                log.write({"step": self.step, **each.run(self.task.model)})

    def preview(self) -> None:
        """Write a picture with the averaged weights."""
        if self.task.preview is None or not self.accelerator.is_main_process:
            return
        with self._averaged(), torch.no_grad():
            self.task.preview(self.task.model, self.out / "samples" / f"step-{self.step:08d}.png")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model in eval mode with its averaged weights; afterwards every part as it was."""
        ema, modes = self.sides[0].ema, [(part, part.training) for part in self.task.model.modules()]
        if ema is not None:
            ema.swap()
        self.task.model.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
            if ema is not None:
                ema.swap()

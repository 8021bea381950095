"""The one training loop: tokenizers, generators and the judge alike.

A step is a pure function of (weights, optimizer state, seed, step): the batch comes from the step number and the
random numbers are seeded from it. So a resumed run equals an unbroken one, and a failed step can be replayed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
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
from tok1d.train.ema import EMA
from tok1d.train.log import JsonLog
from tok1d.train.optim import build_optimizer, learning_rate
from tok1d.zoo.store import load_state

Batch = tuple[Tensor, Tensor]
AGREE_EVERY = 10  # after so many steps several processes ask each other whether one of them has to stop


class NonFiniteError(Tok1dError):
    """A loss or gradient was not finite; the weights are those before the step."""


@dataclass
class Task:
    """What a recipe trains: the model and where its batches come from.

    Args:
        batch: (micro_step, rank, world) -> the batch; a pure function.
        preview: writes a picture of what the model does now.
    """

    model: nn.Module
    batch: Callable[[int, int, int], Batch]
    preview: Callable[[nn.Module, Path], None] | None = None


@dataclass
class Result:
    """How far a run is: optimizer steps, seconds spent training (over all sittings), and where."""

    steps: int
    seconds: float
    device: str
    finished: bool


class _Losses(nn.Module):
    """`model.losses` as a forward pass, so that distributed wrappers see it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        return self.model.losses(batch, progress)  # type: ignore[operator]


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

    On return the model holds the averaged weights (EMA), unless `train.ema` is 0.

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
    task.model.train().to(accelerator.device)
    optimizer = build_optimizer(task.model, config)
    ema = EMA(task.model, config.ema) if config.ema > 0 else None
    state = checkpoint.load_latest(out / "checkpoints", accelerator.device)
    step, spent = 0, 0.0
    if state is not None:
        load_state(task.model, state["model"], str(out / "checkpoints"))
        optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        step, spent = state["step"], state["seconds"]
    losses, prepared = accelerator.prepare(_Losses(task.model), optimizer)
    run = _Run(recipe, task, out, accelerator, losses, prepared, optimizer, ema, step, spent)
    if state is not None:
        run.sums, run.since = state.get("sums", {}), state.get("since", step)
    with _StopSignal() as stop:
        run.loop(stop, seconds, quiet=quiet or not accelerator.is_main_process)
    if stop.received is not None and run.step < config.steps:
        raise KeyboardInterrupt
    if ema is not None:
        ema.swap()
    task.model.eval()
    return Result(run.step, run.spent, str(accelerator.device), run.step >= config.steps)


def seed_of(seed: int, micro_step: int, rank: int = 0) -> int:
    """The seed of one forward pass's random numbers.

    Hashed, because torch's CPU generator takes only the low 32 bits of a seed: all three must reach them.
    """
    digest = hashlib.sha256(f"{seed} {micro_step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def replay(recipe: Recipe, task: Task, dump: Path, *, rank: int = 0, world: int = 1) -> dict[str, float]:
    """The losses of a step that was not finite, from its dump: same weights, batch and random numbers (on its device).

    `task.model` is left with the dump's weights and the step's gradients, to look into.
    """
    state = torch.load(dump, map_location="cpu", weights_only=True)
    load_state(task.model, state["model"], str(dump))
    task.model.train().zero_grad()
    device = next(task.model.parameters()).device
    losses: dict[str, float] = {}
    for micro_step in range(state["step"] * recipe.train.accumulate, (state["step"] + 1) * recipe.train.accumulate):
        torch.manual_seed(seed_of(recipe.seed, micro_step, rank))
        batch = tuple(part.to(device) for part in task.batch(micro_step, rank, world))
        terms = task.model.losses(batch, state["step"] / recipe.train.steps)  # type: ignore[operator]
        torch.stack([v for k, v in terms.items() if k.startswith("loss")]).sum().backward()
        for name, value in terms.items():
            losses[name] = losses.get(name, 0.0) + float(value.detach()) / recipe.train.accumulate
    return losses


@dataclass
class _Run:
    """State of a run between steps."""

    recipe: Recipe
    task: Task
    out: Path
    accelerator: Any
    losses: nn.Module
    prepared: Any
    optimizer: torch.optim.AdamW
    ema: EMA | None
    step: int
    spent: float
    sums: dict[str, Tensor] = field(default_factory=dict)  # of what is logged, over the steps after `since`
    since: int = 0

    def loop(self, stop: _StopSignal, seconds: float | None, *, quiet: bool) -> None:
        from tqdm import tqdm

        config, device = self.recipe.train, self.accelerator.device
        main = self.accelerator.is_main_process
        log = JsonLog(self.out / "log.jsonl", self.step) if main else None
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
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

    def train_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step; returns detached means on the device, without waiting for it."""
        config, device = self.recipe.train, self.accelerator.device
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        logged: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        for i, batch in enumerate(batches):
            micro_step = self.step * config.accumulate + i
            torch.manual_seed(seed_of(self.recipe.seed, micro_step, self.accelerator.process_index))
            moved = tuple(part.to(device, non_blocking=True) for part in batch)
            last = i == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.losses):
                terms = self.losses(moved, self.step / config.steps)
                loss = torch.stack([v for k, v in terms.items() if k.startswith("loss")]).sum() / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
            for name, value in terms.items():
                logged[name] = logged.get(name, 0) + value.detach() / len(batches)
        limit = config.clip if config.clip > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), limit)
        bad = ~(torch.isfinite(total) & torch.isfinite(norm))
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0
        # The fused optimizer skips its update on the device where found_inf is 1; it stays 1 from the first bad
        # step on, so nothing has to wait for the device to keep the weights as they were before that step.
        self.first_bad = torch.where(bad & (self.first_bad < 0), self.step, self.first_bad)
        self.optimizer.found_inf = (self.first_bad >= 0).float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        return {**logged, "grad_norm": norm.detach()}

    def _check_finite(self) -> None:
        """Stop the run if a step since the last look was not finite, leaving a dump to replay it."""
        bad = int(self.first_bad)
        if bad < 0:
            return
        path = self.out / f"nonfinite-step-{bad:08d}.pt"
        left = f"left {path} (weights before the step; tok1d.train.loop.replay repeats it)"
        if self.accelerator.is_main_process:
            state = {"step": bad, "model": self.task.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            try:
                checkpoint.write(path, state)
            except WeightsError as error:
                left = str(error)
        raise NonFiniteError(
            f"step {bad}: loss or gradient is not finite; the run stopped before using it and {left}. "
            "Try a lower train.lr, train.clip, or train.precision=fp32"
        )

    def _log_entry(self) -> dict[str, Any]:
        count = max(self.step - self.since, 1)
        values = {name: float(value) / count for name, value in self.sums.items()}
        return {
            "step": self.step,
            **{name: round(value, 6) for name, value in values.items()},
            "lr": round(learning_rate(self.step - 1, self.recipe.train), 9),
            "seconds": round(self.spent, 2),
        }

    def save(self) -> None:
        """Write a checkpoint (main process)."""
        self._check_finite()
        if self.accelerator.is_main_process:
            state = {
                "model": self.task.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else {},
                "seconds": self.spent,
                "sums": self.sums,
                "since": self.since,
            }
            checkpoint.save(self.out / "checkpoints", self.step, state)

    def preview(self) -> None:
        """Write a picture with the averaged weights."""
        if self.task.preview is None or not self.accelerator.is_main_process:
            return
        if self.ema is not None:
            self.ema.swap()
        self.task.model.eval()
        with torch.no_grad():
            self.task.preview(self.task.model, self.out / "samples" / f"step-{self.step:08d}.png")
        self.task.model.train()
        if self.ema is not None:
            self.ema.swap()

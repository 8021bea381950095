"""The one training loop: tokenizers, generators and the judge alike, and players that train against each other.

A step is a pure function of (weights, optimizer state, seed, step): the batch comes from the step number and the
random numbers are seeded from it. So a resumed run equals an unbroken one, and a failed step can be replayed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.config.recipe import Recipe
from tok1d.cost.peaks import peak_of
from tok1d.data.images import prefetch
from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.total import Batch, Tensors, total_loss
from tok1d.train import checkpoint
from tok1d.train.log import JsonLog
from tok1d.train.nonfinite import Evidence, NonFiniteError, repeat, suspects, write_dump
from tok1d.train.optim import learning_rate
from tok1d.train.options import apply_options
from tok1d.train.players import Moment, Side
from tok1d.train.precision import LossScale, precision_of
from tok1d.train.rng import copies_of, seeded
from tok1d.train.speed import Meter
from tok1d.train.stop import Agreement, StopSignal
from tok1d.train.task import Task
from tok1d.train.trackers import Track, tracker_options, tracking, untracked
from tok1d.train.watch import Watch

# How long processes wait for one of them, which encodes a cache or evaluates alone; torch's own 10 minutes are too few.
PATIENCE = timedelta(hours=24)
SCALE, SKIPPED = "scale", "skipped"  # in the log of fp16: the mean loss scale, and the share of skipped steps


@dataclass
class Result:
    """How far a run is: optimizer steps, seconds spent training (over all sittings), and where."""

    steps: int
    seconds: float
    device: str
    finished: bool


def _gloo() -> bool:
    """Several processes without a GPU; accelerate takes them for strangers unless it is told."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def processes() -> Any:
    """accelerate's `PartialState`: which of how many processes (torchrun) this is, and its device."""
    from accelerate import PartialState

    return PartialState(cpu=_gloo(), timeout=PATIENCE)


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
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR1, once the step is done and the checkpoint written.
    """
    run = begin(recipe, task, out)
    accelerator, main = run.accelerator, run.accelerator.is_main_process
    # What no device is to hold in full must not go through it.
    place = torch.device("cpu") if run.shard else accelerator.device
    state = checkpoint.load_latest(out / "checkpoints", place, quiet=not main)
    if state is not None:
        run.load(state)
    run.prepare()
    with StopSignal() as stop, tracking(recipe, accelerator, out, run.step) as run.track:
        run.loop(stop, seconds, quiet=quiet or not main)
    if stop.received is not None and run.step < recipe.train.steps:
        raise KeyboardInterrupt
    for side in run.sides:
        if side.ema is not None:
            side.ema.swap()
        side.player.module.eval()
    return Result(run.step, run.spent, str(accelerator.device), run.step >= recipe.train.steps)


def begin(recipe: Recipe, task: Task, out: Path) -> Run:
    """A run before its first step, on this process's device; nothing is read or written.

    Raises:
        ConfigError: a precision, a batch size or a compiler that this device or these processes do not allow.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    config = recipe.train
    precision = precision_of(config.precision, processes().device)
    # Its own precision would be that of the process's first run.
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of all gradients
    accelerator = Accelerator(
        mixed_precision="no", cpu=_gloo(), kwargs_handlers=[views], **tracker_options(recipe, out)
    )
    world, main = accelerator.num_processes, accelerator.is_main_process
    if config.batch_size % world:
        raise ConfigError(f"train.batch_size: expected a multiple of {world} processes, got {config.batch_size}")
    for player in task.players:
        apply_options(player.module, checkpoint_activations=config.checkpoint_activations, compile=config.compile)
    shard = config.shard == "optimizer" and world > 1
    if config.shard != "none" and not shard:
        print(f"train.shard={config.shard}: there is one process, which holds everything", file=sys.stderr)
    sides = [Side(player, config, accelerator.device, precision=precision, shard=shard) for player in task.players]
    scale = LossScale(accelerator.device) if config.precision == "fp16" else None
    return Run(recipe, task, out, accelerator, sides, Watch(quiet=not main), scale, shard)


@dataclass
class Run:
    """State of a run between steps."""

    recipe: Recipe
    task: Task
    out: Path
    accelerator: Any
    sides: list[Side]
    watch: Watch
    scale: LossScale | None = None  # of fp16
    shard: bool = False  # each process holds its part of the optimizers' state
    step: int = 0
    spent: float = 0.0
    sums: Tensors = field(default_factory=dict)  # of what is logged, over the steps after `since`
    since: int = 0
    track: Track = untracked

    def __post_init__(self) -> None:
        device = self.accelerator.device
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.culprits = torch.zeros(len(self.sides), dtype=torch.bool, device=device)
        self.bad_scale = torch.ones((), device=device)
        self.bad_in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def prepare(self) -> None:
        """The players' forward passes over all processes, once their weights are there."""
        for side in self.sides:
            side.prepare(self.accelerator)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; a preview that was due just after it and is not there is drawn now.

        Raises:
            WeightsError: it is of another training, or holds something else than `save` writes.
        """
        source = str(self.out / "checkpoints")
        try:
            self._load(state, source)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise WeightsError(
                f"{source}: the checkpoint of step {state.get('step')} does not fit this training ({why}); delete it "
                "to go on from the one before, or start anew with --overwrite"
            ) from error
        every = self.recipe.train.preview_every
        if every and 0 < self.step < self.recipe.train.steps and self.step % every == 0 and not self._picture.exists():
            self.preview()

    @property
    def _picture(self) -> Path:
        """The file of this step's preview."""
        return self.out / "samples" / f"step-{self.step:08d}.png"

    def _load(self, state: dict[str, Any], source: str) -> None:
        names, steps = [side.player.name for side in self.sides], self.recipe.train.steps
        if not (isinstance(state["step"], int) and 0 <= state["step"] <= steps):
            raise ValueError(f"expected a step from 0 to {steps}, got {state['step']!r}")
        for side, own in zip(self.sides, checkpoint.by_player(state, names, source)):
            side.load_state_dict(own, source)
        self.step, self.spent = state["step"], float(state["seconds"])
        self.sums, self.since = dict(state.get("sums", {})), int(state.get("since", self.step))
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])
        before, now = state.get("processes", self.accelerator.num_processes), self.accelerator.num_processes
        if before != now and self.accelerator.is_main_process:
            print(
                f"step {self.step}: written by {before} process{'es' * (before > 1)}, going on with {now}; the result "
                f"equals that of {before} up to rounding, not to the last bit",
                file=sys.stderr,
            )
        before, now = state.get("images"), self._num_images()
        if None not in (before, now) and before != now and self.accelerator.is_main_process:
            print(
                f"step {self.step}: written by a training on {before} images, going on with {now}; from here on "
                "batches are others than those of an unbroken run",
                file=sys.stderr,
            )

    def _num_images(self) -> int | None:
        """How many images there are to train on, where that is known: their order follows from it."""
        return len(self.task.images) if hasattr(self.task.images, "__len__") else None

    def loop(self, stop: StopSignal, seconds: float | None, *, quiet: bool) -> None:
        from tqdm import tqdm

        config, main = self.recipe.train, self.accelerator.is_main_process
        log = JsonLog(self.out / "log.jsonl", self.step) if main else None
        before, mark = self.spent, time.perf_counter()
        agreement = Agreement(self.accelerator, self.step)
        meter, ahead = self._meter(), closing(prefetch(self.batches(range(self.step, config.steps))))
        bar = tqdm(total=config.steps, initial=self.step, disable=quiet, unit="step", smoothing=0.05)
        with ahead as steps, bar:  # whatever happens, the bar ends its line and the reading thread its work
            for batches in meter.timed(steps):
                for name, value in self.train_step(batches).items():
                    self.sums[name] = self.sums.get(name, 0) + value
                self.step += 1
                bar.update()
                self.spent = before + time.perf_counter() - mark
                done = self.step >= config.steps
                wanted = stop.received is not None or (seconds is not None and self.spent - before >= seconds)
                ending = done or agreement.stop(wanted, self.step)
                if done or self.step % config.log_every == 0:
                    self._check_finite()
                    entry = {**self._log_entry(), **meter.entry()}
                    bar.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in entry.items() if k.startswith("loss")))
                    self._tell(log, entry)
                    self.watch.look(entry)
                    self.sums, self.since = {}, self.step
                self.measure(log)
                if ending or any(every and self.step % every == 0 for every in (config.save_every, config.keep_every)):
                    self.save()
                if config.preview_every and self.step % config.preview_every == 0 and not done:
                    self.preview()
                if ending:
                    break

    def _meter(self) -> Meter:
        config = self.recipe.train
        peak = peak_of(self.accelerator.device, config.precision, config.peak_tflops)
        peaks = None if peak is None else peak * self.accelerator.num_processes
        return Meter(config.batch_size * config.accumulate, self.task.flops, peaks, self.step)

    def _tell(self, log: JsonLog | None, entry: dict[str, Any]) -> None:
        """A line for the log and the tracker (main process)."""
        if log is not None:
            log.write(entry)
            self.track(entry)

    def batches(self, steps: Iterable[int]) -> Iterator[list[Batch]]:
        """This process's batches of one optimizer step after the other."""
        num = self.recipe.train.accumulate
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for step in steps:
            yield [self.task.batch(step * num + i, rank, world) for i in range(num)]

    def train_step(self, batches: list[Batch]) -> Tensors:
        """One optimizer step of every player; returns detached means on the device, without waiting for it."""
        logged: Tensors = {}
        totals = [torch.zeros((), device=self.accelerator.device) for _ in self.sides]
        for i, batch in enumerate(batches):
            for name, value in self._gradients(batch, i, len(batches), totals).items():
                logged[name] = logged.get(name, 0) + value.detach() / len(batches)
        if self.scale is not None:
            for side in self.sides:
                self.scale.unscale(side.optimizer)
        norms = [side.clip() for side in self.sides]
        halted = self._halted(totals, norms)
        for side, norm in zip(self.sides, norms):
            side.step(self.step, halted)
            logged[f"{side.player.prefix}grad_norm"] = norm.detach()
        return logged if self.scale is None else self._with_scale(logged, self.scale)

    def _with_scale(self, logged: Tensors, scale: LossScale) -> Tensors:
        """What to log with the loss scale, and whether the step was skipped: then its gradients count for nothing."""
        skipped = scale.in_a_row > 0
        for name in [name for name in logged if name.endswith("grad_norm")]:
            logged[name] = torch.where(skipped, 0.0, logged[name])
        return logged | {SCALE: scale.used, SKIPPED: skipped.float()}

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
            with nullcontext() if i == num - 1 else accelerator.no_sync(side.forward):
                with self._seeded(self.step * num + i, side, moved):
                    terms, made = side.forward(moved, moment, seen)
                loss = total_loss(terms) / num
                accelerator.backward(loss if self.scale is None else self.scale.scale(loss))
            totals[n] += loss.detach()
            seen |= {name: value.detach() for name, value in made.items()}
            logged |= {player.prefix + name: value for name, value in terms.items()}
        return logged

    def _seeded(self, micro_step: int, side: Side, batch: Batch) -> Any:
        """The random numbers of a player's forward pass."""
        accelerator, module = self.accelerator, side.player.module
        rank, world = accelerator.process_index, accelerator.num_processes
        return seeded(self.recipe.seed, micro_step, rank, world, side.player.prefix, batch, copies=copies_of(module))

    def _halted(self, totals: list[Tensor], norms: list[Tensor]) -> Tensor:
        """Whether no weight is to change, on the device: this step, or one before it, is to stop the run.

        In fp16, too, where this step is only skipped: losses are finite, gradients overflowed.
        """
        bad = torch.stack([~torch.isfinite(torch.stack(each)) for each in (totals, norms)])
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0
        stops = whose = bad.any(0)
        if self.scale is not None:
            gives_up = self.scale.update(whose.any())
            stops = torch.where(bad[0].any(), bad[0], whose & gives_up)
        # The fused optimizer skips its update on the device where found_inf is 1; it stays 1 from the first bad
        # step on, so nothing has to wait for the device to keep the weights as they were before that step.
        first = stops.any() & (self.first_bad < 0)
        self.first_bad = torch.where(first, self.step, self.first_bad)
        self.culprits = torch.where(first, stops, self.culprits)
        if self.scale is None:
            return self.first_bad >= 0
        self.bad_scale = torch.where(first, self.scale.used, self.bad_scale)
        self.bad_in_a_row = torch.where(first & gives_up, self.scale.in_a_row, self.bad_in_a_row)
        return (self.first_bad >= 0) | whose.any()

    def _check_finite(self) -> None:
        """Stop the run if a step since the last look was not finite, leaving a dump to replay it."""
        bad = int(self.first_bad)
        if bad < 0:
            return
        # The first of them: what it made spoils those after it.
        player = self.sides[self.culprits.tolist().index(True)].player
        whose = f"{player.name}: " if len(self.sides) > 1 else ""
        scale, skipped = float(self.bad_scale), int(self.bad_in_a_row)
        gave_up = f" in {skipped} steps in a row, now with loss scale {scale:g}" if skipped else ""
        evidence, fp32 = self._look_again(bad, scale)
        blamed = suspects(self.recipe, evidence, rose=self.watch.rose(), fp32=fp32)
        advice = (
            f"suspects: {'; '.join(blamed)}" if blamed else "no suspect stands out: try a lower train.lr or train.clip"
        )
        raise NonFiniteError(
            f"step {bad}: {whose}loss or gradient is not finite{gave_up}; the run stopped before using it; {advice}; "
            + self._dump(bad, evidence, scale)
        )

    def _look_again(self, bad: int, scale: float) -> tuple[list[Evidence], Evidence | None]:
        """The step once more, as every process saw it, and in fp32 where the run is in half precision."""
        from accelerate.utils import gather_object

        accelerator, found = self.accelerator, []
        rank, world = accelerator.process_index, accelerator.num_processes
        names = [self.recipe.train.precision]
        names += ["fp32"] if names != ["fp32"] else []
        for name in names:
            how: dict[str, Any] = {"precision": precision_of(name, accelerator.device), "one_by_one": world == 1}
            found.append(repeat(self.recipe, self.task, bad, rank=rank, world=world, scale=scale, **how))
            for side in self.sides:
                side.optimizer.zero_grad(set_to_none=True)
                side.buffers.settle(torch.ones((), dtype=torch.bool, device=accelerator.device))
        return gather_object([found[0]]), found[1] if len(found) > 1 else None

    def _dump(self, bad: int, evidence: list[Evidence], scale: float) -> str:
        """Leave what repeats the step; says where, or why not."""
        path, main = self.out / f"nonfinite-step-{bad:08d}.pt", self.accelerator.is_main_process
        players = {side.player.name: side.state(main=main) for side in self.sides}
        if main:
            try:
                write_dump(path, self.recipe, bad, self.accelerator.num_processes, players, evidence, scale=scale)
            except WeightsError as error:
                return str(error)
        return f"tok1d replay {path} shows it again"

    def _log_entry(self) -> dict[str, Any]:
        count = max(self.step - self.since, 1)
        self._average_sums()
        values = {name: float(value) / count for name, value in self.sums.items()}
        taken = 1 - values.get(SKIPPED, 0.0)
        for name in [name for name in values if taken and name.endswith("grad_norm")]:
            values[name] /= taken  # the mean over the steps that were not skipped
        rates = {f"{side.player.prefix}lr": learning_rate(self.step - 1, side.config) for side in self.sides}
        return {
            "step": self.step,
            **{name: round(value, 6) for name, value in values.items()},
            **{name: round(rate, 9) for name, rate in rates.items()},
            "seconds": round(self.spent, 2),
            **({"broken_images": len(broken)} if (broken := getattr(self.task.images, "broken", [])) else {}),
        }

    def save(self) -> None:
        """Write a checkpoint (main process)."""
        self._check_finite()
        self._average_sums()
        main = self.accelerator.is_main_process
        first, *others = [side.state_dict(main=main) for side in self.sides]
        if main:
            state = {
                **first,
                "players": {side.player.name: state for side, state in zip(self.sides[1:], others)},
                "seconds": self.spent,
                "sums": self.sums,
                "since": self.since,
                "processes": self.accelerator.num_processes,
                "images": self._num_images(),
                **({} if self.scale is None else {"scale": self.scale.state_dict()}),
            }
            keep = {"keep_last": self.recipe.train.keep_last, "keep_every": self.recipe.train.keep_every}
            checkpoint.save(self.out / "checkpoints", self.step, state, **keep)

    def _average_sums(self) -> None:
        """What is logged, as means over the processes: each of them saw its part of the batches."""
        if self.accelerator.num_processes > 1 and self.sums:
            stacked = torch.stack(
                [
                    torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
                    for value in self.sums.values()
                ]
            )
            means = self.accelerator.reduce(stacked, "mean")
            self.sums = dict(zip(self.sums, means.unbind()))

    def measure(self, log: JsonLog | None) -> None:
        """Log what is due at this step, leaving weights, modes and random numbers as they are (main process)."""
        due = [each for each in self.task.measures if self.step % each.every == 0]
        if due:
            self._check_finite()  # on every process: where it stops one, it stops all
        if not due or log is None:
            return
        device = self.accelerator.device
        for each in due:
            devices = [device] if device.type == "cuda" else []
            with self._shown(averaged=each.averaged), torch.random.fork_rng(devices):
                self._tell(log, {"step": self.step, **each.run(self.task.model)})

    def preview(self) -> None:
        """Write a picture with the averaged weights."""
        if self.task.preview is None or not self.accelerator.is_main_process:
            return
        if self.sides[0].ema is not None:
            self.watch.preview(self.sides[0].ema, self.step)
        with self._shown(), torch.no_grad():
            self.task.preview(self.task.model, self._picture)

    @contextmanager
    def _shown(self, *, averaged: bool = True) -> Iterator[None]:
        """The model in eval mode, with its averaged weights if it has any; afterwards every part as it was."""
        ema, modes = self.sides[0].ema, [(part, part.training) for part in self.task.model.modules()]
        ema = ema if averaged else None
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

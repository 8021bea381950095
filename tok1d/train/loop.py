"""The training loop of all recipes: tokenizers, generators, classifiers, and a tokenizer with a discriminator."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from tok1d.config.classes import class_names
from tok1d.config.condition import text_condition
from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.cost.peaks import peak_of
from tok1d.data.images import prefetch
from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.losses.total import Tensors
from tok1d.progress import Bar
from tok1d.train import checkpoint
from tok1d.train.checkpoint import Checkpoint, RunContent
from tok1d.train.diagnose import check_finite
from tok1d.train.folder import check_checkpoint
from tok1d.train.images import data_print
from tok1d.train.log import JsonLog, LogEntry
from tok1d.train.monitor import Monitor
from tok1d.train.optim import learning_rate
from tok1d.train.options import apply_options
from tok1d.train.players import PlayerState
from tok1d.train.precision import LossScale, precision_of
from tok1d.train.processes import on_gloo, processes
from tok1d.train.speed import Meter
from tok1d.train.step import SKIPPED, Stepper
from tok1d.train.stop import Agreement, StopSignal
from tok1d.train.task import Task
from tok1d.train.trackers import Track, tracker_options, tracking, untracked


@dataclass
class Result:
    """How far a run is: optimizer steps done, seconds of training over all calls, device, and whether it has ended."""

    steps: int
    seconds: float
    device: str
    finished: bool


def fit(
    recipe: Recipe,
    task: Task,
    out: Path,
    *,
    seconds: float | None = None,
    quiet: bool = False,
    begin_folder: Callable[[], None] = lambda: None,
) -> Result:
    """Train `task` as `recipe.train` says, from the newest checkpoint in `out` if there is one.

    Afterwards the model holds the averaged weights (EMA), unless `train.ema` is 0, and is in eval mode.

    Args:
        seconds: save a checkpoint and stop after this much training time in this call.
        quiet: no progress bar.
        begin_folder: called before the first file is written, when everything is built and checked.

    Raises:
        NonFiniteError: a loss or gradient is not finite. The weights are those before that step, and a dump to
            recompute it is written to `out`.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR1, when the step is done and the checkpoint written.
    """
    run = begin(recipe, task, out)
    accelerator, main = run.accelerator, run.accelerator.is_main_process
    # With a sharded optimizer no device has the memory for the whole state.
    place = torch.device("cpu") if run.shard else accelerator.device
    state = checkpoint.load_latest(out / "checkpoints", place, quiet=not main)
    if state is not None:
        run.load(state)
        if main:
            print(f"resuming at step {run.step:,} of {recipe.train.steps:,}")
    run.prepare()
    begin_folder()
    run.preview_left()
    with StopSignal() as stop, tracking(recipe, accelerator, out, run.step) as run.track:
        run.loop(stop, seconds, quiet=quiet or not main)
    if stop.received is not None and run.step < recipe.train.steps:
        raise KeyboardInterrupt
    for player in run.players:
        if player.ema is not None:
            player.ema.swap()
        player.player.module.eval()
    return Result(run.step, run.seconds, str(accelerator.device), run.step >= recipe.train.steps)


def begin(recipe: Recipe, task: Task, out: Path) -> Run:
    """Create a run before its first step, on this process's device; reads and writes no files.

    Raises:
        ConfigError: a precision, batch size or compiler that this device or the number of processes does not allow.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    config = recipe.train
    precision = precision_of(config.precision, processes().device)
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of all gradients
    # mixed_precision stays "no": accelerate keeps the precision of a process's first run for all its runs.
    accelerator = Accelerator(
        mixed_precision="no", cpu=on_gloo(), kwargs_handlers=[views], **tracker_options(recipe, out)
    )
    world, main = accelerator.num_processes, accelerator.is_main_process
    if config.batch_size % world:
        raise ConfigError(f"train.batch_size: expected a multiple of {world} processes, got {config.batch_size}")
    for player in task.players:
        apply_options(player.module, checkpoint_activations=config.checkpoint_activations, compile=config.compile)
    shard = config.shard == "optimizer" and world > 1
    if config.shard != "none" and not shard:
        print(f"train.shard={config.shard}: no effect with a single process", file=sys.stderr)
    players = [
        PlayerState(player, config, accelerator.device, precision=precision, shard=shard) for player in task.players
    ]
    scale = LossScale(accelerator.device) if config.precision == "fp16" else None
    monitor = Monitor([phase * config.steps for phase in task.phases], quiet=not main)
    return Run(recipe, task, accelerator, players, scale, out=out, monitor=monitor, shard=shard)


@dataclass(kw_only=True)
class Run(Stepper):
    """A run between two steps, with its files.

    Args:
        out: run folder.
        shard: each process holds its part of the optimizer state.
        seconds: training time so far, over all calls.
        sums: values to log, summed over the steps after step `since`.
        track: passes log lines to the tracker.
    """

    out: Path
    monitor: Monitor
    shard: bool = False
    seconds: float = 0.0
    sums: Tensors = field(default_factory=dict)
    since: int = 0
    track: Track = untracked

    def load(self, state: Checkpoint) -> None:
        """Resume from a checkpoint.

        Raises:
            WeightsError: it belongs to another run, or its content is not what `save` writes.
        """
        source = str(self.out / "checkpoints")
        made, now = state.get("tokenizer"), self.task.tokenizer
        if None not in (made, now) and made != now:
            raise WeightsError(
                f"{source}: step {state.get('step')} was written by a training on tokens of another tokenizer "
                f"({made}) than {self.recipe.tokenizer} ({now}); put that one back, or start over with --overwrite"
            )
        check_checkpoint(state.get("recipe"), self.recipe, f"{source}: step {state.get('step')}")
        try:
            self._load(state, source)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise WeightsError(
                f"{source}: the checkpoint of step {state.get('step')} does not fit this training "
                f"({type(error).__name__}: {reason_of(error)}); delete it to resume from the one before, or start over "
                "with --overwrite"
            ) from error

    def preview_left(self) -> None:
        """Make a preview that was due after the checkpoint from which the run resumes, if it is missing."""
        every = self.recipe.train.preview_every
        if (
            every
            and 0 < self.step < self.recipe.train.steps
            and self.step % every == 0
            and not self._preview_path.exists()
        ):
            self.preview()

    def _load(self, state: Checkpoint, source: str) -> None:
        names, steps = [player.player.name for player in self.players], self.recipe.train.steps
        if not (isinstance(state["step"], int) and 0 <= state["step"] <= steps):
            raise ValueError(f"expected a step from 0 to {steps}, got {state['step']!r}")
        if state.get("vocabulary", []) != self._vocabulary:
            before, now = len(state.get("vocabulary", [])), len(self._vocabulary)
            raise WeightsError(
                f"{source}: written with a vocabulary of {before} words, the training captions now make another one of "
                f"{now}; restore the captions, or start over with --overwrite"
            )
        contents = checkpoint.by_player(state, state.get("players", {}), names, source)
        for player, content in zip(self.players, contents):
            player.load_state_dict(content, source)
        self.step, self.seconds = state["step"], float(state["seconds"])
        self.sums, self.since = dict(state.get("sums", {})), int(state.get("since", self.step))
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])
        self._report_changes(state)

    def _report_changes(self, state: Checkpoint) -> None:
        """Report on stderr (main process) why the rest of the run may differ from an uninterrupted one."""
        if not self.accelerator.is_main_process:
            return
        before, now = state.get("processes", self.accelerator.num_processes), self.accelerator.num_processes
        if before != now:
            print(
                f"step {self.step}: written by {before} process{'es' * (before > 1)}, resuming with {now}; the result "
                f"equals that of {before} only up to rounding",
                file=sys.stderr,
            )
        found = self._other_images(state)
        if found:
            print(
                f"step {self.step}: {found}; from here on the batches differ from those of an uninterrupted run; "
                "--overwrite starts over",
                file=sys.stderr,
            )

    def _other_images(self, state: Checkpoint) -> str:
        """How the training images differ from those of a checkpoint; "" if they do not, or it is unknown."""
        before, now = state.get("images"), self._num_images()
        if None not in (before, now) and before != now:
            return f"written by a training on {before} images, resuming with {now}"
        stored = state.get("data")
        if stored is None or data_print(self.recipe, self.task.images, stored) in (None, stored):
            return ""
        return f"written by a training on other images than the {now} that it resumes with"

    @property
    def _vocabulary(self) -> list[str]:
        """The words of the model's captions; empty for other conditions."""
        text = text_condition(getattr(self.task.model, "config", None))
        return [] if text is None else text.vocabulary

    @cached_property
    def _data_print(self) -> str | None:
        """The fingerprint of the training images, computed before the first step of this sitting (main process)."""
        return data_print(self.recipe, self.task.images)

    def _num_images(self) -> int | None:
        """Number of training images, which determines their order; None if it is unknown."""
        images = self.task.images
        return None if images is None else len(images)

    def loop(self, stop: StopSignal, seconds: float | None, *, quiet: bool) -> None:
        """Train until the last step, a signal, or `seconds` of training time."""
        config = self.recipe.train
        if self.accelerator.is_main_process:
            self._data_print  # noqa: B018  # before the first step, so that it is of the images that are read
        log = JsonLog(self.out / "log.jsonl", self.step) if self.accelerator.is_main_process else None
        before, mark = self.seconds, time.perf_counter()
        agreement, meter = Agreement(self.accelerator, self.step), self._meter()
        ahead = closing(prefetch(self.batches(range(self.step, config.steps))))
        bar = Bar(config.steps, done=self.step, unit="step", quiet=quiet)
        # Close the progress bar and stop the reading thread even after an error.
        with ahead as steps, bar:
            for batches in meter.timed(steps):
                for name, value in self.train_step(batches).items():
                    self.sums[name] = self.sums.get(name, 0) + value
                self.step += 1
                bar.update()
                self.seconds = before + time.perf_counter() - mark
                done = self.step >= config.steps
                wanted = stop.received is not None or (seconds is not None and self.seconds - before >= seconds)
                ending = done or agreement.stop(wanted, self.step)
                if done or self.step % config.log_every == 0:
                    entry = self._log(log, meter)
                    losses = {k: v for k, v in entry.items() if k.startswith("loss")}
                    bar.note(" ".join(f"{name} {value:.4g}" for name, value in losses.items()))
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
        total = None if peak is None else peak * self.accelerator.num_processes
        return Meter(config.batch_size * config.accumulate, self.task.flops, total, self.step)

    def check_finite(self) -> None:
        """Raise NonFiniteError if a step since the last call was not finite (all processes have to call this)."""
        check_finite(self, self.out, self.monitor.loss_rise())

    def _log(self, log: JsonLog | None, meter: Meter) -> LogEntry:
        """Write a log line with the means since the previous one, and print warnings about it."""
        self.check_finite()
        entry: LogEntry = {**self._entry(), **meter.entry()}
        self._write(log, entry)
        self.monitor.check(entry)
        self.sums, self.since = {}, self.step
        return entry

    def _write(self, log: JsonLog | None, entry: LogEntry) -> None:
        """A line for the log and the tracker (main process)."""
        if log is not None:
            log.write(entry)
            self.track(entry)

    def _entry(self) -> LogEntry:
        count = max(self.step - self.since, 1)
        self._average_sums()
        values = {name: float(value) / count for name, value in self.sums.items()}
        taken = 1 - values.get(SKIPPED, 0.0)
        for name in [name for name in values if taken and name.endswith("grad_norm")]:
            values[name] /= taken  # skipped steps added 0, so this is the mean over the others
        rates = {f"{state.player.prefix}lr": learning_rate(self.step - 1, state.config) for state in self.players}
        return {
            "step": self.step,
            **{name: round(value, 6) for name, value in values.items()},
            **{name: round(rate, 9) for name, rate in rates.items()},
            "seconds": round(self.seconds, 2),
            **({"broken_images": len(broken)} if (broken := getattr(self.task.images, "broken", [])) else {}),
        }

    def save(self) -> None:
        """Write a checkpoint in the main process; every process has to call this."""
        self.check_finite()
        self._average_sums()
        main = self.accelerator.is_main_process
        first, *others = [state.state_dict(main=main) for state in self.players]
        if main:
            content: RunContent = {
                **first,
                "players": {state.player.name: own for state, own in zip(self.players[1:], others)},
                "seconds": self.seconds,
                "sums": self.sums,
                "since": self.since,
                "processes": self.accelerator.num_processes,
                "images": self._num_images(),
                "classes": list(class_names(self.task.model)),
                "recipe": to_yaml(self.recipe),
                "data": self._data_print,
                "tokenizer": self.task.tokenizer,
            }
            if words := self._vocabulary:
                content["vocabulary"] = words
            if self.scale is not None:
                content["scale"] = self.scale.state_dict()
            config = self.recipe.train
            folder = self.out / "checkpoints"
            checkpoint.save(folder, self.step, content, keep_last=config.keep_last, keep_every=config.keep_every)

    def _average_sums(self) -> None:
        """Replace the values to log by their means over the processes."""
        if self.accelerator.num_processes > 1 and self.sums:
            device = self.accelerator.device
            values = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in self.sums.values()]
            means = self.accelerator.reduce(torch.stack(values), "mean")
            self.sums = dict(zip(self.sums, means.unbind()))

    def measure(self, log: JsonLog | None) -> None:
        """Log the measurements that are due (main process); weights, modes and random numbers stay as they are."""
        due = [each for each in self.task.measures if self.step % each.every == 0]
        if due:
            self.check_finite()  # in every process, so that all of them stop
        if not due or log is None:
            return
        device = self.accelerator.device
        for each in due:
            devices = [device] if device.type == "cuda" else []
            with self._evaluated(averaged=each.averaged), torch.random.fork_rng(devices):
                self._write(log, {"step": self.step, **each.run(self.task.model)})

    @property
    def _preview_path(self) -> Path:
        """Path of the preview of the current step."""
        return self.out / "samples" / f"step-{self.step:08d}.png"

    def preview(self) -> None:
        """Write a preview with the averaged weights (main process)."""
        if self.task.preview is None or not self.accelerator.is_main_process:
            return
        if self.players[0].ema is not None:
            self.monitor.check_preview(self.players[0].ema, self.step)
        with self._evaluated(), torch.no_grad():
            self.task.preview(self.task.model, self._preview_path)

    @contextmanager
    def _evaluated(self, *, averaged: bool = True) -> Iterator[None]:
        """The model in eval mode, with its averaged weights if it has any; restored afterwards."""
        ema, modes = self.players[0].ema, [(part, part.training) for part in self.task.model.modules()]
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

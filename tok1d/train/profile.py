"""Estimating the duration of a run on this device by timing a few real training steps. Nothing is written."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.cost.flops import StepFlops, step_flops_or_none
from tok1d.cost.forecast import Row, decimal, grid_of
from tok1d.cost.peaks import peak_of
from tok1d.data.images import prefetch
from tok1d.data.tokens import INDEX
from tok1d.errors import ConfigError
from tok1d.train.loop import Run, begin
from tok1d.train.processes import processes
from tok1d.train.profile_task import Batches, profile_task
from tok1d.train.speed import Clock, utilisation

if TYPE_CHECKING:
    from rich.table import Table

WARMUP = 3  # first steps, not timed: kernels are selected, blocks compiled, memory is allocated


@dataclass(frozen=True)
class Phase:
    """Steps `first`, ..., `first + steps - 1` of a run, counted from 0, which have the same cost."""

    name: str
    first: int
    steps: int

    def at(self, i: int) -> int:
        """The i-th step to time, counted from the middle of the phase and wrapping around at its end."""
        return self.first + (self.steps // 2 + i) % self.steps


@dataclass(frozen=True)
class PhaseTime:
    """Times of some steps of a phase.

    Args:
        seconds: of each timed step, including the time spent waiting for its data.
        waited: fraction of that time spent waiting for data.
        flops: FLOPs of a step; None is unknown.
    """

    phase: Phase
    seconds: list[float]
    waited: float
    flops: int | None

    @property
    def hours(self) -> float:
        """Expected hours of the whole phase: the median step times the number of steps."""
        return median(self.seconds) * self.phase.steps / 3600


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Args:
        times: of each phase.
        images: images of a step, over all processes.
        device: the device's name.
        processes: number of processes.
        peak: peak of all their devices together in TFLOP/s; None is unknown.
        memory: (peak bytes of this process, what is counted); None is unknown.
        batches: where the batches came from.
        uncounted: networks whose FLOPs are not counted.
        omitted: parts of the run that `hours` does not include.
        finite: whether the losses and gradients of all steps were finite.
    """

    times: list[PhaseTime]
    images: int
    device: str
    processes: int
    peak: float | None
    memory: tuple[int, str] | None
    batches: Batches
    uncounted: tuple[str, ...]
    omitted: list[str]
    finite: bool

    @property
    def hours(self) -> float:
        """Expected hours of all steps."""
        return sum(each.hours for each in self.times)


def phases(recipe: Recipe) -> list[Phase]:
    """The parts of a run that differ in cost: before and after the start of its discriminator."""
    steps, adversarial = recipe.train.steps, recipe.adversarial
    before = min(max(adversarial.start - 1, 0), steps) if adversarial.weight > 0 else steps
    found = [
        Phase("before the discriminator starts" if adversarial.weight > 0 else "", 0, before),
        Phase("with the discriminator", before, steps - before),
    ]
    return [phase for phase in found if phase.steps]


def profile_steps(recipe: Recipe, steps: int = 10, clock: Clock = time.perf_counter) -> Profile:
    """Time `steps` optimizer steps of each phase on this device, after WARMUP steps that are not timed.

    The networks have their full size and random weights; images or cached tokens are the recipe's where they are
    present, else random. All processes of torchrun take part. Nothing is written and nothing is downloaded.

    Raises:
        Tok1dError: for the same reasons as training before its first step.
        ConfigError: the device has too little memory.
    """
    device = processes().device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        flops = step_flops_or_none(recipe)
        try:
            return _profile(recipe, steps, clock, flops)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate memory", str(error)):
                raise
            raise ConfigError(
                f"train.batch_size: {recipe.train.batch_size} images at a time do not fit into this device's memory; "
                "lower it (and raise train.accumulate), or set train.checkpoint_activations=true"
            ) from None


def _profile(recipe: Recipe, steps: int, clock: Clock, flops: StepFlops | None) -> Profile:
    if processes().device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ready = profile_task(recipe)
    run = begin(recipe, ready.task, Path(recipe.out))
    run.prepare()
    times = [_time(run, phase, steps, clock, flops) for phase in phases(recipe)]
    device, num = run.accelerator.device, run.accelerator.num_processes
    peak = peak_of(device, recipe.train.precision, recipe.train.peak_tflops)
    return Profile(
        times=times,
        images=recipe.train.batch_size * recipe.train.accumulate,
        device=_name(device),
        processes=num,
        peak=None if peak is None else peak * num,
        memory=_memory(device),
        batches=ready.batches,
        uncounted=flops.uncounted if flops is not None else (),
        omitted=_omitted(recipe),
        finite=int(run.first_bad) < 0,
    )


def _time(run: Run, phase: Phase, num: int, clock: Clock, flops: StepFlops | None) -> PhaseTime:
    steps, device = [phase.at(i) for i in range(WARMUP + num)], run.accelerator.device
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds, waited = [], []
    with closing(prefetch(run.batches(steps))) as ahead:
        for step in steps:
            begun = clock()
            batches = next(ahead)
            got = clock()
            run.step = step
            run.train_step(batches)
            wait()
            seconds.append(clock() - begun)
            waited.append(got - begun)
    share = sum(waited[WARMUP:]) / max(sum(seconds[WARMUP:]), 1e-9)
    return PhaseTime(phase, seconds[WARMUP:], share, None if flops is None else flops.at(phase.first + 1))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num = torch.get_num_threads()
    return f"CPU, {num} thread{'s' * (num > 1)}"


def _memory(device: torch.device) -> tuple[int, str] | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "PyTorch's allocations on the GPU"
    with suppress(ImportError):  # Windows has no module resource
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "the whole process, Python included"
    return None


def _omitted(recipe: Recipe) -> list[str]:
    """The parts of a run that take time in addition to its steps, with their number."""
    config, found = recipe.train, ["the evaluation at the end"]
    for every, one, many in (
        (config.evaluate_every, "evaluation", "evaluations"),
        (config.proxies_every, "proxy measurement", "proxy measurements"),
        (config.preview_every, "preview", "previews"),
        (config.save_every, "checkpoint", "checkpoints"),
    ):
        if num := config.steps // every if every else 0:
            found.append(f"{num:,} {one if num == 1 else many}")
    if recipe.kind == "generator" and recipe.cache != NO_CACHE and not (Path(str(recipe.cache)) / INDEX).exists():
        found.append("making the token cache")
    return found


def table(result: Profile) -> Table:
    """The measurements as a table with the same columns as the forecast."""
    return grid_of(rows(result))


def rows(result: Profile) -> list[Row]:
    """The rows of the table: (group, number, description)."""
    on = f"on {result.device}" if result.processes == 1 else f"on {result.processes} processes, each {result.device}"
    found = [("measured", "", f"{on}, {result.batches.source}")]
    for each in result.times:
        found += _phase_rows(result, each)
    for each in result.times if len(result.times) > 1 else ():
        found.append(("", duration(each.hours), f"for {each.phase.steps:,} steps {each.phase.name}"))
    steps = sum(each.phase.steps for each in result.times)
    found.append(("time", duration(result.hours), f"expected for {steps:,} steps, without {', '.join(result.omitted)}"))
    if result.memory is not None:
        found.append(("memory", f"{result.memory[0] / 2**30:,.2f} GiB", f"at the peak: {result.memory[1]}"))
    if not result.finite:
        found.append(("", "", "a loss or gradient was not finite, as random weights may cause; the times are valid"))
    return found


def duration(hours: float) -> str:
    """A time in seconds, minutes, hours or days, with two or three digits: 14 min."""
    for unit, size in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:,.3g} {unit}" if unit != "min" else f"{hours / size:,.0f} min"
    return f"{hours * 3600:,.0f} s"


def _phase_rows(result: Profile, each: PhaseTime) -> list[Row]:
    middle, where = median(each.seconds), f" {each.phase.name}" if each.phase.name else ""
    count = f"median of {len(each.seconds)}, {min(each.seconds):.4g} to {max(each.seconds):.4g}"
    found = [
        ("", f"{middle:.4g} s", f"per step{where} ({count})"),
        ("", f"{result.images / middle:,.4g}", "images per second"),
    ]
    if result.batches.real:
        found.append(("", f"{each.waited:.1%}", "of the time waiting for data"))
    if each.flops is None:
        return [*found, ("", "?", "FLOPs per step: unknown")]
    share = utilisation(each.flops, middle, result.peak).get("mfu")
    without = f", without {', '.join(result.uncounted)}" if result.uncounted else ""
    found.append(("", decimal(each.flops / middle, "FLOP/s"), f"at {decimal(each.flops, 'FLOP')} per step{without}"))
    if share is not None:
        found.append(("", f"{share:.1%}", f"model-FLOPs utilisation, of {result.peak:,.4g} TFLOP/s"))
    else:
        found.append(("", "?", "model-FLOPs utilisation: unknown peak, set train.peak_tflops"))
    return found

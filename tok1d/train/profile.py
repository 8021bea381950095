"""How long a run will take on this device: some of its real steps, timed, with nothing read back or written."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.cost.flops import StepFlops, step_flops_or_none
from tok1d.cost.forecast import decimal
from tok1d.cost.peaks import peak_of
from tok1d.data.images import prefetch
from tok1d.data.tokens import INDEX
from tok1d.errors import ConfigError
from tok1d.train.loop import Run, begin, processes
from tok1d.train.profile_task import rehearsal
from tok1d.train.speed import Clock, utilisation

WARMUP = 3  # steps at first that are not timed: kernels are chosen, blocks compiled, memory is taken


@dataclass(frozen=True)
class Phase:
    """Steps `first`, ..., `first + steps - 1` of a run, counted from 0, which cost alike."""

    name: str
    first: int
    steps: int

    def at(self, i: int) -> int:
        """The step to measure as the i-th: from the middle on, and again from the first where there are no more."""
        return self.first + (self.steps // 2 + i) % self.steps


@dataclass(frozen=True)
class Timed:
    """What steps of a phase took.

    Args:
        seconds: of each of them, waiting for its data included.
        waited: share of the time that went by waiting for data.
        flops: of a step; None is not known.
    """

    phase: Phase
    seconds: list[float]
    waited: float
    flops: int | None

    @property
    def hours(self) -> float:
        """Of the whole phase: the median step times their number."""
        return median(self.seconds) * self.phase.steps / 3600


@dataclass(frozen=True)
class Rehearsed:
    """What was measured.

    Args:
        images: of a step, over all processes.
        device: in words.
        processes: that shared each step.
        peak: what all their devices can do in TFLOP/s; None is not known.
        memory: bytes at the peak, of this process, and whose; None is not known.
        source: where batches came from; `loads` says whether waiting for them means something.
        uncounted: networks whose FLOPs are not in the count.
        omitted: what takes time in the run and is not in the hours.
        finite: whether all steps were.
    """

    timed: list[Timed]
    images: int
    device: str
    processes: int
    peak: float | None
    memory: tuple[int, str] | None
    source: str
    loads: bool
    uncounted: tuple[str, ...]
    omitted: list[str]
    finite: bool

    @property
    def hours(self) -> float:
        """Of all steps."""
        return sum(each.hours for each in self.timed)


def phases(recipe: Recipe) -> list[Phase]:
    """The parts of a run that cost differently: before and after its discriminator begins to play."""
    steps, game = recipe.train.steps, recipe.adversarial
    before = min(max(game.start - 1, 0), steps) if game.weight > 0 else steps
    named = game.weight > 0
    found = [
        Phase("before the discriminator plays" if named else "", 0, before),
        Phase("with the discriminator", before, steps - before),
    ]
    return [phase for phase in found if phase.steps]


def rehearse(recipe: Recipe, steps: int = 10, clock: Clock = time.perf_counter) -> Rehearsed:
    """Time `steps` optimizer steps of each phase, after WARMUP that do not count, on the device at hand.

    The networks are real and their weights random; images or cached tokens are the recipe's where they are here, else
    random. Every process of torchrun takes its part. Nothing is written, nothing is fetched.

    Raises:
        Tok1dError: as the training would before its first step; ConfigError where it does not fit into memory.
    """
    device = processes().device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        flops = step_flops_or_none(recipe)
        try:
            return _rehearse(recipe, steps, clock, flops)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate memory", str(error)):
                raise
            raise ConfigError(
                f"train.batch_size: {recipe.train.batch_size} images at a time do not fit into this device's memory; "
                "lower it (and raise train.accumulate), or set train.checkpoint_activations=true"
            ) from None


def _rehearse(recipe: Recipe, steps: int, clock: Clock, flops: StepFlops | None) -> Rehearsed:
    if processes().device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ready = rehearsal(recipe)
    run = begin(recipe, ready.task, Path(recipe.out))
    run.prepare()
    timed = [_time(run, phase, steps, clock, flops) for phase in phases(recipe)]
    device, num = run.accelerator.device, run.accelerator.num_processes
    peak = peak_of(device, recipe.train.precision, recipe.train.peak_tflops)
    return Rehearsed(
        timed,
        recipe.train.batch_size * recipe.train.accumulate,
        _name(device),
        num,
        None if peak is None else peak * num,
        _memory(device),
        ready.source,
        ready.loads,
        flops.left_out if flops is not None else (),
        _omitted(recipe),
        int(run.first_bad) < 0,
    )


def _time(run: Run, phase: Phase, num: int, clock: Clock, flops: StepFlops | None) -> Timed:
    places, device = [phase.at(i) for i in range(WARMUP + num)], run.accelerator.device
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds, waited = [], []
    with closing(prefetch(run.batches(places))) as ahead:
        for place in places:
            begun = clock()
            batches = next(ahead)
            got = clock()
            run.step = place
            run.train_step(batches)
            wait()
            seconds.append(clock() - begun)
            waited.append(got - begun)
    share = sum(waited[WARMUP:]) / max(sum(seconds[WARMUP:]), 1e-9)
    return Timed(phase, seconds[WARMUP:], share, None if flops is None else flops.at(phase.first + 1))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num = torch.get_num_threads()
    return f"CPU, {num} thread{'s' * (num > 1)}"


def _memory(device: torch.device) -> tuple[int, str] | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "PyTorch's allocations on the GPU"
    with suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "the whole process, Python included"
    return None


def _omitted(recipe: Recipe) -> list[str]:
    config = recipe.train
    each = (("evaluate_every", "evaluation"), ("proxies_every", "proxy"), ("preview_every", "preview"))
    found = ["the evaluation at the end"]
    for key, what in (*each, ("save_every", "checkpoint")):
        every = getattr(config, key)
        if num := config.steps // every if every else 0:
            found.append(f"{num:,} {what if num == 1 else what.removesuffix('y') + 'ie' * what.endswith('y') + 's'}")
    if recipe.kind == "generator" and recipe.cache != NO_CACHE and not (Path(str(recipe.cache)) / INDEX).exists():
        found.append("making the token cache")
    return found


def table(result: Rehearsed) -> Any:
    """What was measured as a short table (rich), in the columns of the forecast's."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    for cells in rows(result):
        grid.add_row(*cells)
    return grid


def rows(result: Rehearsed) -> list[tuple[str, str, str]]:
    """The cells of the table."""
    on = f"on {result.device}" if result.processes == 1 else f"on {result.processes} processes, each {result.device}"
    found = [("measured", "", f"{on}, {result.source}")]
    for each in result.timed:
        found += _phase_rows(result, each)
    for each in result.timed if len(result.timed) > 1 else ():
        found.append(("", f"{each.hours:,.4g}", f"hours of {each.phase.steps:,} steps {each.phase.name}"))
    steps = sum(each.phase.steps for each in result.timed)
    found.append(("hours", f"{result.hours:,.4g}", f"expected of {steps:,} steps, without {', '.join(result.omitted)}"))
    if result.memory is not None:
        found.append(("memory", f"{result.memory[0] / 2**30:,.2f} GiB", f"at the peak: {result.memory[1]}"))
    if not result.finite:
        found.append(("", "", "a loss was not finite, from random weights: times hold, the recipe may not"))
    return found


def _phase_rows(result: Rehearsed, each: Timed) -> list[tuple[str, str, str]]:
    middle, where = median(each.seconds), f" {each.phase.name}" if each.phase.name else ""
    count = f"median of {len(each.seconds)}, {min(each.seconds):.4g} to {max(each.seconds):.4g}"
    found = [
        ("", f"{middle:.4g} s", f"a step{where} ({count})"),
        ("", f"{result.images / middle:,.4g}", "images a second"),
    ]
    if result.loads:
        found.append(("", f"{each.waited:.1%}", "of the time waiting for data"))
    if each.flops is None:
        return found
    share = utilisation(each.flops, middle, result.peak).get("mfu")
    without = f", without {', '.join(result.uncounted)}" if result.uncounted else ""
    found.append(("", decimal(each.flops / middle, "FLOP/s"), f"of {decimal(each.flops, 'FLOP')} a step{without}"))
    if share is not None:
        found.append(("", f"{share:.1%}", f"model-FLOPs utilisation, of {result.peak:,.4g} TFLOP/s"))
    else:
        found.append(("", "?", "model-FLOPs utilisation: peak not known, set train.peak_tflops"))
    return found

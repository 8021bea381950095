"""Paired timings: two implementations of the same computation, interleaved in one process."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Arm:
    """One implementation.

    Args:
        run: runs it once; may return a tensor, which is compared with that of the other arm.
        scale: reported work divided by the work of `run` (25 if 250 steps are extrapolated from 10).
    """

    name: str
    run: Callable[[], Tensor | None]
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """One line of the table: the library, and what it is compared with.

    Args:
        unit: what is counted ("image", "token", ...); one run has `units` of them.
        slow: None if only the absolute speed is measured.
        same: whether both arms return the same numbers up to rounding.
        release: seconds per unit of the released code, as reported for another machine; not measured here.
        max_repeats: limit for rows with a long slow arm.
    """

    name: str
    unit: str
    units: float
    fast: Arm
    slow: Arm | None = None
    same: bool = False
    release: float | None = None
    max_repeats: int | None = None


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], number: int, device: torch.device) -> float:
    """Seconds per call of `run`, over `number` successive calls."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(number):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / number


def matmul_limit(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 10) -> float:
    """GFLOP/s of the fastest of `repeats` products of two square matrices, after two warm-up products."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    out = torch.empty_like(a)
    times = [seconds_of(lambda: torch.mm(a, b, out=out), 1, device) for _ in range(repeats + 2)]
    return 2 * size**3 / min(times[2:]) / 1e9


def measure(row: Row, repeats: int, min_seconds: float, device: torch.device, limit: float) -> dict[str, Any]:
    """Measure one row.

    Args:
        repeats: timed pairs; the order alternates (fast slow, slow fast, ...), so that drift cancels.
        min_seconds: short runs are repeated within one timing until it lasts this long.
        limit: matmul GFLOP/s of the machine.

    Returns:
        Per arm seconds per unit (median), GFLOP per unit and fraction of the limit; "ratio": slow over fast seconds of
        each pair, as median, min and max; "difference": between the two results, relative to the largest entry.
    """
    arms = [row.fast] if row.slow is None else [row.fast, row.slow]
    flops, outputs, numbers = [], [], []
    for arm in arms:
        with FlopCounterMode(display=False) as counter:
            start = time.perf_counter()
            outputs.append(arm.run())
            warm = time.perf_counter() - start
        flops.append(counter.get_total_flops() * arm.scale / row.units)
        if warm < 10:  # the FLOP counter slows small operations down; a long run needs no second warm-up
            warm = seconds_of(arm.run, 1, device)
        numbers.append(max(1, math.ceil(min_seconds / max(warm, 1e-9))))
    repeats = min(repeats, row.max_repeats or repeats)
    times: list[list[float]] = [[] for _ in arms]
    for i in range(repeats):
        for j in range(len(arms))[:: 1 if i % 2 == 0 else -1]:
            seconds = seconds_of(arms[j].run, numbers[j], device)
            times[j].append(seconds * arms[j].scale / row.units)
    medians = [statistics.median(column) for column in times]
    record: dict[str, Any] = {"row": row.name, "unit": row.unit, "repeats": repeats, "matmul_gflops": round(limit, 1)}
    for key, arm, seconds, count, number in zip(("fast", "slow"), arms, medians, flops, numbers):
        record[key] = {
            "what": arm.name,
            "seconds": seconds,
            "gflop": count / 1e9,
            "share": count / seconds / 1e9 / limit,
            "calls_a_timing": number,
            "scaled_by": arm.scale,
        }
    if row.slow is not None:
        ratios = [slow / fast for fast, slow in zip(*times)]
        record["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        record["same"] = row.same
        record["difference"] = difference(outputs[0], outputs[1]) if row.same else None
    record["release"] = row.release
    return record


def difference(a: Tensor | None, b: Tensor | None) -> float:
    """max |a - b| / max |a|."""
    assert a is not None and b is not None
    return float((a - b).abs().max() / a.abs().max())

"""Throughput of a run: images and FLOPs per second, and the time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tok1d.cost.flops import StepFlops

T = TypeVar("T")
Clock = Callable[[], float]  # returns seconds, as time.perf_counter does


class Meter:
    """Measures the throughput between two lines of the log.

    Args:
        images: images of one optimizer step, over all processes.
        flops: FLOPs of a step; None is unknown.
        peak: peak of the devices of all processes together, in TFLOP/s; None is unknown.
        step: optimizer steps done before.
    """

    def __init__(
        self,
        images: int,
        flops: StepFlops | None = None,
        peak: float | None = None,
        step: int = 0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.images, self.flops, self.peak, self.clock = images, flops, peak, clock
        self.first, self.steps, self.waited = step, 0, 0.0
        self.mark = clock()

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the same items, one per step; the time spent getting each counts as waiting for data."""
        while True:
            before = self.clock()
            try:
                item = next(items)
            except StopIteration:
                return
            self.waited += self.clock() - before
            self.steps += 1
            yield item

    def entry(self) -> dict[str, float]:
        """Images per second and the fraction of the time spent waiting for data, since the last call.

        Where known, also TFLOP/s ("tflops") and their fraction of the peak ("mfu", model-FLOPs utilisation).
        """
        now = self.clock()
        seconds = max(now - self.mark, 1e-9)
        found = {
            "images_per_second": round(self.images * self.steps / seconds, 2),
            "loader_wait": round(self.waited / seconds, 4),
        }
        last = self.first + self.steps
        if self.flops is not None and self.steps:
            found |= utilisation(self.flops.total(self.first + 1, last), seconds, self.peak)
        self.mark, self.first, self.steps, self.waited = now, last, 0, 0.0
        return found


def utilisation(flops: float, seconds: float, peak: float | None) -> dict[str, float]:
    """TFLOP/s ("tflops", 4 digits), and with `peak` in TFLOP/s their fraction of it ("mfu")."""
    rate = flops / seconds / 1e12
    return {"tflops": float(f"{rate:.4g}"), **({"mfu": round(rate / peak, 4)} if peak else {})}

"""How fast a run is: images and FLOPs a second, and how long it waits for its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tok1d.cost.flops import StepFlops

T = TypeVar("T")
Clock = Callable[[], float]


class Meter:
    """Counts between two lines of the log.

    Args:
        images: of one optimizer step, over all processes.
        flops: of a step; None is not known.
        peak: what the devices of all processes can do together, in TFLOP/s; None is not known.
        step: steps that were made before.
        clock: seconds.
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
        """The same items, one a step, with the time that getting each took counted as waiting."""
        while True:
            before = self.clock()
            try:
                item = next(items)
            except StopIteration:
                return
            self.waited += self.clock() - before
            self.steps += 1
            yield item

    def entry(self) -> dict[str, Any]:
        """Images a second and the share of the time spent waiting for data since the last call.

        Where they are known also TFLOP/s ("tflops") and their share of the peak ("mfu", model-FLOPs utilisation).
        """
        now = self.clock()
        seconds = max(now - self.mark, 1e-9)
        told = {
            "images_per_second": round(self.images * self.steps / seconds, 2),
            "loader_wait": round(self.waited / seconds, 4),
        }
        last = self.first + self.steps
        if self.flops is not None and self.steps:
            told |= utilisation(self.flops.total(self.first + 1, last), seconds, self.peak)
        self.mark, self.first, self.steps, self.waited = now, last, 0, 0.0
        return told


def utilisation(flops: float, seconds: float, peak: float | None) -> dict[str, float]:
    """ "tflops", TFLOP/s to 4 digits, and with a peak in TFLOP/s "mfu", their share of it."""
    rate = flops / seconds / 1e12
    return {"tflops": float(f"{rate:.4g}"), **({"mfu": round(rate / peak, 4)} if peak else {})}

"""How fast a run is: images a second, and how long it waits for its data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Meter:
    """Counts between two lines of the log.

    Args:
        images: of one optimizer step, over all processes.
    """

    def __init__(self, images: int) -> None:
        self.images, self.steps, self.waited = images, 0, 0.0
        self.mark = time.perf_counter()

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """The same items, one a step, with the time that getting each took counted as waiting."""
        while True:
            before = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            self.steps += 1
            yield item

    def entry(self) -> dict[str, Any]:
        """Images a second and the share of the time spent waiting for data since the last call."""
        now = time.perf_counter()
        seconds = max(now - self.mark, 1e-9)
        told = {
            "images_per_second": round(self.images * self.steps / seconds, 2),
            "loader_wait": round(self.waited / seconds, 4),
        }
        self.mark, self.steps, self.waited = now, 0, 0.0
        return told

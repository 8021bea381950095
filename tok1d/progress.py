"""The progress of long work: a bar on a terminal, and elsewhere (logs of a cluster) lines, at most ten for the work."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

LINES = 10  # without a terminal: lines for the whole work, one for each tenth
SECONDS = 10.0  # without a terminal: least time between the start and a line, and between lines
now = time.perf_counter


class Bar:
    """Shows on stderr how much of some work is done; a context manager.

    Args:
        total: units of the whole work.
        done: units that were done before.
        unit: name of a unit, in the singular.
        name: name of the work.
        quiet: show nothing.
    """

    def __init__(self, total: int, *, unit: str, done: int = 0, name: str = "", quiet: bool = False) -> None:
        self.total, self.unit, self.name, self.quiet = total, unit, name, quiet
        self.done = self.first = done
        self.text = ""
        self.start = self.shown = now()  # shown: time of the last line
        self.tenths = self._tenths(done)  # of the last line
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, desc=name or None, smoothing=0.05)

    def update(self, units: int = 1) -> None:
        """Add units that are done."""
        self.done += units
        if self._bar is not None:
            self._bar.update(units)
        elif not self.quiet and self._tenths(self.done) > self.tenths and now() - self.shown >= SECONDS:
            self.shown, self.tenths = now(), self._tenths(self.done)
            print(self._line(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Text after the numbers, such as the loss."""
        self.text = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def _tenths(self, units: int) -> int:
        return LINES * units // max(self.total, 1)

    def _line(self) -> str:
        speed = (self.done - self.first) / max(now() - self.start, 1e-9)
        parts = [f"{self.unit} {self.done}/{self.total}", f"{speed:.3g} {self.unit}s/s", self.text]
        return (f"{self.name}: " if self.name else "") + ", ".join(part for part in parts if part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

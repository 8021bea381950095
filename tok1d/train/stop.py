"""Signals that ask a run to save and leave, and how several processes agree on it."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import torch

# Several processes ask each other whether one of them has to stop after so many seconds, or so many steps.
AGREE_SECONDS, AGREE_EVERY = 1.0, 10
IMPATIENT = 1.0  # seconds after the first signal from which a Ctrl-C is a second one
# Ctrl-C, and what schedulers send before they take a machine away. Windows has no SIGUSR1.
NUMBERS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class StopSignal:
    """Turns the first Ctrl-C, SIGTERM or SIGUSR1 into a request to stop after the step at hand.

    A Ctrl-C more than a second later interrupts at once. Schedulers and launchers send their signals more than once, to
    all processes and through each other, so no number of those loses the step.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        try:
            for number in NUMBERS:
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:
            pass  # not in the main thread: signals are somebody else's
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > IMPATIENT:
            raise KeyboardInterrupt


class Agreement:
    """How several processes agree to stop at the same step; otherwise they would wait for each other forever.

    As asking waits for the device, they ask only about every AGREE_SECONDS, in steps that all of them count alike, and
    at least every AGREE_EVERY steps.
    """

    def __init__(self, accelerator: Any, step: int) -> None:
        self.accelerator, self.last, self.due = accelerator, step, step + 1
        self.mark = time.perf_counter()

    def stop(self, wanted: bool, step: int) -> bool:
        """Whether to stop after `step`, of which `wanted` is this process's wish."""
        world = self.accelerator.num_processes
        if world == 1:
            return wanted
        if step < self.due:
            return False
        seconds = (time.perf_counter() - self.mark) / max(step - self.last, 1)
        votes = torch.tensor([float(wanted), seconds], device=self.accelerator.device)
        wishes, seconds = self.accelerator.reduce(votes, "sum").tolist()
        wait = AGREE_SECONDS * world / max(seconds, 1e-9)
        self.last, self.due = step, step + int(min(max(wait, 1), AGREE_EVERY))
        self.mark = time.perf_counter()
        return wishes > 0

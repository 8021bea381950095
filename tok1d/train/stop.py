"""Signals that ask a run to save and stop, and how several processes agree to stop at the same step."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    Handler = Callable[[int, FrameType | None], object] | int | None  # as signal.signal returns it

# Processes check whether one of them has to stop about every AGREE_SECONDS, and at least every AGREE_EVERY steps.
AGREE_SECONDS, AGREE_EVERY = 1.0, 10
SECOND_CTRL_C = 1.0  # a Ctrl-C more than this many seconds after the first signal interrupts at once
# Ctrl-C, and what schedulers send before they end a job. Windows has no SIGUSR1.
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class StopSignal:
    """While active, the first Ctrl-C, SIGTERM or SIGUSR1 asks the run to stop after the current step.

    Only a Ctrl-C more than a second later interrupts at once: schedulers and launchers send their signals several
    times, to all processes and through each other, and repeated signals must not lose the step.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._old: dict[int, Handler] = {}

    def __enter__(self) -> StopSignal:
        try:
            for number in SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:
            pass  # Python allows handlers in the main thread only
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > SECOND_CTRL_C:
            raise KeyboardInterrupt


class Agreement:
    """Makes several processes stop at the same step; otherwise they would wait for each other forever.

    A check waits for the device, so it happens only about every AGREE_SECONDS, and at least every AGREE_EVERY steps.
    The steps of the checks are computed from summed times, so that they are the same in all processes.
    """

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        self.accelerator, self.last, self.due = accelerator, step, step + 1
        self.mark = time.perf_counter()

    def stop(self, wanted: bool, step: int) -> bool:
        """Whether to stop after `step`; `wanted` is whether this process wants to."""
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

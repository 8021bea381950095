"""Signals that ask a run to save and leave, and how several processes agree on it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch

AGREE_EVERY = 10  # after so many steps several processes ask each other whether one of them has to stop
# Ctrl-C, and what schedulers send before they take a machine away. Windows has no SIGUSR1.
NUMBERS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class StopSignal:
    """Turns the first Ctrl-C, SIGTERM or SIGUSR1 into a request to stop after the step at hand.

    A second Ctrl-C or SIGTERM interrupts at once; schedulers may send SIGUSR1 more than once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
        if self.received is not None and number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        self.received = number


def agreed(wanted: bool, step: int, accelerator: Any) -> bool:
    """Whether to stop after `step`, of which `wanted` is this process's wish.

    Several processes stop at the same step or wait for each other forever; as asking waits for the device, they ask
    only every AGREE_EVERY steps.
    """
    if accelerator.num_processes == 1:
        return wanted
    if step % AGREE_EVERY:
        return False
    votes = torch.tensor(float(wanted), device=accelerator.device)
    return bool(accelerator.reduce(votes, "sum") > 0)

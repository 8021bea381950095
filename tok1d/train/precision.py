"""Half precision in training: which arithmetic a forward pass runs in, and the loss scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tok1d.errors import ConfigError

Precision = Callable[[], AbstractContextManager[Any]]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
ON_CPU = False  # half precision on a CPU is right and tens of times slower than fp32: for tests
FIRST_SCALE = 2.0**16  # of the loss; halved after a step that overflowed, doubled after GROWTH_STEPS without one
GROWTH_STEPS = 2000
SMALLEST_SCALE = 1.0  # below it gradients overflow as they are, which no scale mends
MOST_SKIPPED = 25  # steps in a row


def precision_of(name: str, device: torch.device) -> Precision:
    """How a forward pass computes with `train.precision` on a device: in fp32 there, or under autocast.

    Raises:
        ConfigError: half precision on a CPU.
    """
    if name not in HALF:
        return nullcontext
    if device.type == "cpu" and not ON_CPU:
        raise ConfigError(f"train.precision: {name} is for GPUs (on a CPU it is slower than fp32), expected fp32")
    return lambda: torch.autocast(device.type, dtype=HALF[name])


class LossScale:
    """The factor by which fp16's losses are multiplied, so that small gradients do not become 0; one for all players.

    torch's GradScaler, of which each step uses three parts: `scale` before the backward pass, `unscale` of every
    optimizer's gradients, `update`. Nothing waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, growth_interval=GROWTH_STEPS)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)  # skipped steps up to now
        self.used = torch.full((), FIRST_SCALE, device=device)  # in the step before the last update

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose backward pass is to be run."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide an optimizer's gradients, all of a step accumulated, by the scale."""
        self.scaler.unscale_(optimizer)

    def update(self, skipped: Tensor) -> Tensor:
        """Set the next step's scale; returns whether it is time to give up, a bool on the device.

        Args:
            skipped: whether this step's gradients are not finite, so that it is left out.
        """
        self.used = self.scaler.scale(torch.ones_like(self.used))
        self.scaler.update()
        now = self.scaler.scale(torch.ones_like(self.used))
        self.in_a_row = torch.where(skipped, self.in_a_row + 1, 0)
        return skipped & ((self.in_a_row >= MOST_SKIPPED) | (now < SMALLEST_SCALE))

    def state_dict(self) -> dict[str, Any]:
        return {**self.scaler.state_dict(), "in_a_row": int(self.in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict({name: value for name, value in state.items() if name != "in_a_row"})
        self.in_a_row.fill_(state["in_a_row"])

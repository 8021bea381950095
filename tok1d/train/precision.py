"""Half precision in training: the autocast context of a forward pass, and the loss scale of fp16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tok1d.errors import ConfigError
from tok1d.train.optim import StateDict

Precision = Callable[[], AbstractContextManager[object]]  # makes the context of a forward pass

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
ON_CPU = False  # for tests: half precision on a CPU is correct, but much slower than fp32
FIRST_SCALE = 2.0**16  # halved after a step with overflow, doubled after GROWTH_STEPS steps without
GROWTH_STEPS = 2000
SMALLEST_SCALE = 1.0  # below it the unscaled gradients overflow, and no scale can help
MOST_SKIPPED = 25  # skipped steps in a row that stop the run


def precision_of(name: str, device: torch.device) -> Precision:
    """The context of a forward pass with `train.precision` on a device: none for fp32, else autocast.

    Raises:
        ConfigError: half precision on a CPU.
    """
    if name not in HALF:
        return nullcontext
    if device.type == "cpu" and not ON_CPU:
        raise ConfigError(f"train.precision: {name} is for GPUs (on a CPU it is slower than fp32), expected fp32")
    return lambda: torch.autocast(device.type, dtype=HALF[name])


class LossScale:
    """The factor that fp16 losses are multiplied by so that small gradients do not underflow; shared by all players.

    A step calls `scale` before the backward pass, `unscale` for the gradients of every optimizer, and `update`. This
    is torch's GradScaler without its own skipping of steps, because all players have to skip a step together. Nothing
    waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, growth_interval=GROWTH_STEPS)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)  # skipped steps up to now, without a gap
        self.used = torch.full((), FIRST_SCALE, device=device)  # scale of the last step

    def scale(self, loss: Tensor) -> Tensor:
        """The scaled loss."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide an optimizer's accumulated gradients by the scale."""
        self.scaler.unscale_(optimizer)

    def update(self, skipped: Tensor) -> Tensor:
        """Set the scale of the next step; returns whether to stop the run, a bool on the device.

        Args:
            skipped: whether this step is skipped because its gradients are not finite, a bool on the device.
        """
        self.used = self.scaler.scale(torch.ones_like(self.used))
        self.scaler.update()
        now = self.scaler.scale(torch.ones_like(self.used))
        self.in_a_row = torch.where(skipped, self.in_a_row + 1, 0)
        return skipped & ((self.in_a_row >= MOST_SKIPPED) | (now < SMALLEST_SCALE))

    def state_dict(self) -> StateDict:
        return {**self.scaler.state_dict(), "in_a_row": int(self.in_a_row)}

    def load_state_dict(self, state: StateDict) -> None:
        self.scaler.load_state_dict({name: value for name, value in state.items() if name != "in_a_row"})
        self.in_a_row.fill_(state["in_a_row"])

"""Common code of the benchmarks: inputs on a device, registered rows, and the end of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from speed import slow
from speed.measure import Row
from torch import Tensor, nn

from tok1d.config.optim import OptimConfig
from tok1d.diffusion.solver import Randn, randn_from
from tok1d.train.ema import EMA
from tok1d.train.optim import Optimizers

OPTIM = OptimConfig(steps=1_000_000, batch_size=1, lr=1e-3, weight_decay=0.05)
M = TypeVar("M", bound=nn.Module)
Builder = Callable[[Any], Iterator[Row]]


class Rows(dict[str, Builder]):
    """Builders of rows by name, in the order in which they are measured."""

    def builder(self, make: Builder) -> Builder:
        """Register the rows under the name of the function."""
        self[make.__name__.replace("_", "-")] = make
        return make


@dataclass(frozen=True)
class Inputs:
    """Inputs on one device.

    Args:
        sizes: has at least a name, image_size, gemm and min_seconds.
        precision: "bf16" runs every forward pass under autocast.
    """

    sizes: Any
    device: torch.device
    precision: Literal["fp32", "bf16"] = "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def randn(self) -> Randn:
        """A source of noise on the device; each call of this method starts the same sequence."""
        return randn_from(torch.Generator(self.device).manual_seed(0))

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers; the same numbers for the same shape."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(self.device)

    def labels(self, batch: int) -> Tensor:
        return torch.arange(batch, device=self.device)

    def images(self, batch: int, size: int | None = None) -> Tensor:
        """(batch, 3, H, W) in [0, 1], by default with the image size of the benchmark."""
        size = size or self.sizes.image_size
        return self.noise(batch, 3, size, size).sigmoid()

    def ready(self, model: M) -> M:
        """The model in eval mode on the device; parameters that are zero become random, else all results are zero."""
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return model.eval().to(self.device)


def without_grad(bench: Inputs, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`run` without gradients, as at inference."""

    def call() -> Tensor:
        with torch.no_grad(), bench.autocast():
            return run()

    return call


class Stepper:
    """The end of a training step as in `tok1d.train.loop`: clipping, AdamW, averages of the weights.

    Args:
        fused: fused AdamW and foreach averaging; else PyTorch's default AdamW and a loop.
        averaged: whether weights are averaged (not for a discriminator).
    """

    def __init__(self, model: nn.Module, *, fused: bool = True, averaged: bool = True) -> None:
        self.model, self.fused = model, fused
        self.optimizer = (
            next(iter(Optimizers(model, OPTIM))) if fused else slow.unfused_adamw(model, OPTIM, foreach=None)
        )
        self.ema = EMA(model, OPTIM.ema, ramp=False) if averaged else None

    def step(self) -> None:
        """Take a step with the current gradients, then clear them."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIM.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(0) if self.fused else slow.loop_ema(self.ema)

"""Who trains on a batch: a model alone, or several players, such as a tokenizer and a discriminator.

On each batch the players compute their losses and gradients in turn, then all of them are stepped. A player sees, of
those before it, what they made in the same forward pass, never their new weights: the outcome is that of stepping one
after the other (generator, its average, discriminator), but a loss that is not finite stops all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.recipe import OptimConfig
from tok1d.losses.total import Batch, Tensors
from tok1d.nn.precision import single
from tok1d.train.ema import EMA
from tok1d.train.optim import apply_step, build_optimizer, full_state, learning_rate, load_full_state
from tok1d.train.precision import Precision
from tok1d.zoo.weights import load_state


@dataclass(frozen=True)
class Moment:
    """Where a run is: at optimizer step `step` (0-based) of `steps`."""

    step: int
    steps: int

    @property
    def progress(self) -> float:
        """Where in the run this step is, from 0 (the first) to 1 (the last)."""
        return self.step / max(self.steps - 1, 1)


@dataclass
class Player:
    """One side of a training: what it may change, by which losses, and how.

    Args:
        module: its trainable parameters are stepped; checkpoints hold its whole state.
        losses: (batch, moment, seen) -> (terms, made). Terms are scalars: those named "loss..." are summed and
            minimised, at every step at least one of them with a gradient; others are logged. `made` are tensors that
            the players after it find, detached, in their `seen`. No gradient may reach another player's module.
        optim: learning rate and schedule, betas, decay, clip and averaging (`ema` 0 is none) with the recipe's
            `steps`; None is as the recipe's `train`. Its batch size and accumulation are not read.
        name: what messages and checkpoints call it.
        prefix: of the names it logs; also tells its random numbers from the other players'.
    """

    module: nn.Module
    losses: Callable[[Any, Moment, Tensors], tuple[Tensors, Tensors]]
    optim: OptimConfig | None = None
    name: str = "model"
    prefix: str = ""


def alone(model: nn.Module) -> Player:
    """The only player of an ordinary training: a model with its own `losses(batch, progress)`."""
    return Player(model, lambda batch, moment, seen: (model.losses(batch, moment.progress), {}))  # type: ignore[operator]


def compute_losses(
    player: Player, batch: Batch, moment: Moment, seen: Tensors, precision: Precision
) -> tuple[Tensors, Tensors]:
    """A player's forward pass in some precision; what comes out is float32 where it was half."""
    with precision():
        found = player.losses(batch, moment, seen)
    terms, made = ({name: single(value) for name, value in each.items()} for each in found)
    return terms, made


class Side:
    """A player in training, with what its steps need: the optimizer and the averages of its weights.

    Args:
        precision: of the forward pass. shard: the optimizer's state is shared out over the processes.
    """

    def __init__(
        self,
        player: Player,
        train: OptimConfig,
        device: torch.device,
        *,
        precision: Precision = nullcontext,
        shard: bool = False,
    ) -> None:
        self.player, self.config = player, player.optim or train
        assert self.config.steps == train.steps, f"{player.name}: a schedule of {self.config.steps} steps"
        player.module.train().to(device)
        self.optimizer = build_optimizer(player.module, self.config, shard=shard)
        self.ema = EMA(player.module, self.config.ema) if self.config.ema > 0 else None
        self.forward: Any = _Losses(player, precision)

    def state(self, *, main: bool) -> dict[str, Any]:
        """Weights, buffers and the optimizer's state: what the next step starts from.

        Whole in the main process; every process has to call.
        """
        return {"model": self.player.module.state_dict(), "optimizer": full_state(self.optimizer, main=main)}

    def state_dict(self, *, main: bool) -> dict[str, Any]:
        """`state` and the averages."""
        return {**self.state(main=main), "ema": self.ema.state_dict() if self.ema is not None else {}}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on from what `state_dict` gave; raises WeightsError naming `source` where the weights do not fit."""
        load_state(self.player.module, state["model"], source)
        load_full_state(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def prepare(self, accelerator: Any) -> None:
        """The forward pass as accelerate wants it, over all processes."""
        self.forward = accelerator.prepare(self.forward)
        self.buffers = _Buffers(self.player.module)

    def clip(self) -> Tensor:
        """The norm of the whole gradient, before it is scaled down to the configured one."""
        limit = self.config.clip if self.config.clip > 0 else float("inf")
        return torch.nn.utils.clip_grad_norm_(self.player.module.parameters(), limit)

    def step(self, step: int, halted: Tensor) -> None:
        """Optimizer step `step` (0-based), which changes no weight and no buffer where `halted` is true."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        apply_step(self.optimizer, halted)
        self.optimizer.zero_grad(set_to_none=True)
        self.buffers.settle(halted)
        if self.ema is not None:
            self.ema.update(step)


class _Losses(nn.Module):
    """A player's losses as a forward pass over its module, so that distributed wrappers see it."""

    def __init__(self, player: Player, precision: Precision) -> None:
        super().__init__()
        self.module, self.player, self.precision = player.module, player, precision

    def forward(self, batch: Batch, moment: Moment, seen: Tensors) -> tuple[Tensors, Tensors]:
        return compute_losses(self.player, batch, moment, seen, self.precision)


class _Buffers:
    """Running statistics change in the forward pass; this undoes what steps that do not count did to them.

    So do the parameters that a module names in `moving` (a codebook whose unused entries are revived). Without waiting
    for the device, and without a copy of buffers that never change (tables).
    """

    def __init__(self, module: nn.Module) -> None:
        places = [(part, name) for part in module.modules() for name in (*part._buffers, *getattr(part, "moving", ()))]
        self.places = [(part, name) for part, name in places if getattr(part, name) is not None]
        self.seen = [self._now(i) for i in range(len(self.places))]
        self.versions = [buffer._version for buffer in self.seen]
        self.kept = [buffer.clone() for buffer in self.seen]

    def _now(self, i: int) -> Tensor:
        part, name = self.places[i]
        return getattr(part, name)

    @torch.no_grad()
    def settle(self, halted: Tensor) -> None:
        """Put back what they were at the last call where `halted` is true; else keep what they are now."""
        for i, kept in enumerate(self.kept):
            now = self._now(i)
            if now is self.seen[i] and now._version == self.versions[i]:
                continue
            if now.shape == kept.shape:  # else a table made anew for another size
                now.copy_(torch.where(halted, kept, now))
            self.seen[i], self.versions[i], self.kept[i] = now, now._version, now.clone()

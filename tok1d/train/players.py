"""The modules that are trained together on one batch ("players"): a single model, or a tokenizer and a discriminator.

In every step each player computes its losses and gradients in turn, and then all of them are updated. A player
receives what the players before it computed in the same forward pass, but never their updated weights. The result
equals that of updating one after the other (generator, its average, discriminator), with one difference: a loss that
is not finite in any player stops the update of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from tok1d.config.optim import OptimConfig
from tok1d.losses.total import Batch, Tensors
from tok1d.nn.precision import single
from tok1d.train.checkpoint import PlayerContent, WeightsAndOptimizer
from tok1d.train.ema import EMA
from tok1d.train.optim import Optimizers
from tok1d.train.precision import Precision
from tok1d.zoo.weights import load_state

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        step: the current optimizer step, counted from 0.
        steps: optimizer steps of the whole run.
    """

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """`step` as a fraction of the run: 0 at the first step, 1 at the last."""
        return self.step / max(self.steps - 1, 1)


class HasLosses(Protocol):
    """A model that can be trained alone."""

    def losses(self, batch: Batch, progress: float) -> Tensors:
        """Scalars of one batch; `progress` is the fraction of the run, 0 to 1. See `Player.losses`."""
        ...


# (batch, progress, earlier) -> (terms, outputs); see `Player`
PlayerLosses = Callable[[Batch, Progress, Tensors], tuple[Tensors, Tensors]]


@dataclass
class Player:
    """A module that is trained, its losses and its optimizer settings.

    Args:
        module: its trainable parameters are updated; checkpoints hold its whole state.
        losses: (batch, progress, earlier) -> (terms, outputs). `terms` are scalars: those named "loss..." are summed
            and minimised, and at least one of them must have a gradient at every step; all of them are logged.
            `outputs` are tensors for the players that follow, which receive them detached as `earlier`. No gradient
            may reach another player's module.
        optim: learning rate and schedule, betas, weight decay, clipping and averaging (`ema` 0 is off), with the same
            `steps` as the recipe; None takes the recipe's `train`. Its batch size and accumulation are not used.
        name: name in messages and checkpoints.
        prefix: prefix of the names of its values in the log; also part of the seed of its random numbers.
    """

    module: nn.Module
    losses: PlayerLosses
    optim: OptimConfig | None = None
    name: str = "model"
    prefix: str = ""


def alone(model: nn.Module) -> Player:
    """The only player of a run without a discriminator: a model that has a method `losses(batch, progress)`."""

    # The method is looked up at every call: it may be replaced on the model.
    def losses(batch: Batch, progress: Progress, earlier: Tensors) -> tuple[Tensors, Tensors]:
        return cast(HasLosses, model).losses(batch, progress.fraction), {}

    return Player(model, losses)


def compute_losses(
    player: Player, batch: Batch, progress: Progress, earlier: Tensors, precision: Precision
) -> tuple[Tensors, Tensors]:
    """A player's forward pass under `precision`: its terms and outputs, half-precision results cast to float32."""
    with precision():
        found = player.losses(batch, progress, earlier)
    terms, outputs = ({name: single(value) for name, value in each.items()} for each in found)
    return terms, outputs


class PlayerState:
    """A player with its optimizers and the averages of its weights.

    Args:
        train: the recipe's settings, used where the player has none of its own.
        precision: context of the forward pass.
        shard: split the optimizers' state over the processes.
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
        assert self.config.steps == train.steps, (
            f"{player.name}: expected a schedule of {train.steps} steps, got {self.config.steps}"
        )
        player.module.train().to(device)
        self.optimizers = Optimizers(player.module, self.config, shard=shard)
        self.ema = EMA(player.module, self.config.ema, ramp=self.config.ema_ramp) if self.config.ema > 0 else None
        self.forward: nn.Module = _Losses(player, precision)

    def state(self, *, main: bool) -> WeightsAndOptimizer:
        """Weights, buffers and optimizer state before the next step.

        Complete in the main process only (`main`); with a sharded optimizer every process has to call this.
        """
        return {"model": self.player.module.state_dict(), "optimizer": self.optimizers.state_dict(main=main)}

    def state_dict(self, *, main: bool) -> PlayerContent:
        """`state` and the averaged weights."""
        return {**self.state(main=main), "ema": self.ema.state_dict() if self.ema is not None else {}}

    def load_state_dict(self, state: PlayerContent, source: str) -> None:
        """Restore what `state_dict` returned; raises WeightsError naming `source` where the weights do not fit."""
        load_state(self.player.module, state["model"], source)
        self.optimizers.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap the forward pass for training on all processes (DistributedDataParallel)."""
        self.forward = accelerator.prepare(self.forward)
        self.buffers = _Buffers(self.player.module)

    def clip(self) -> Tensor:
        """Clip the gradient to the configured norm; returns its norm before that."""
        limit = self.config.clip if self.config.clip > 0 else float("inf")
        return torch.nn.utils.clip_grad_norm_(self.player.module.parameters(), limit)

    def step(self, step: int, halted: Tensor) -> None:
        """Optimizer step `step` (counted from 0); where `halted` is true, weights and buffers stay as they were."""
        self.optimizers.step(step, halted)
        self.buffers.settle(halted)
        if self.ema is not None:
            self.ema.update(step)


class _Losses(nn.Module):
    """A player's losses as the forward pass of a module, because distributed wrappers need a module."""

    def __init__(self, player: Player, precision: Precision) -> None:
        super().__init__()
        self.module, self.player, self.precision = player.module, player, precision

    def forward(self, batch: Batch, progress: Progress, earlier: Tensors) -> tuple[Tensors, Tensors]:
        return compute_losses(self.player, batch, progress, earlier, self.precision)


class _Buffers:
    """Undoes the changes that skipped steps made to buffers.

    Buffers such as running statistics change in the forward pass. So do the parameters that a module lists in `moving`
    (a codebook whose unused entries are replaced). Nothing here waits for the device, and buffers that never change
    (tables) are not copied again.
    """

    def __init__(self, module: nn.Module) -> None:
        places = [(part, name) for part in module.modules() for name in (*part._buffers, *getattr(part, "moving", ()))]
        self.places = [(part, name) for part, name in places if getattr(part, name) is not None]
        self.last = [self._now(i) for i in range(len(self.places))]
        self.versions = [buffer._version for buffer in self.last]
        self.kept = [buffer.clone() for buffer in self.last]

    def _now(self, i: int) -> Tensor:
        part, name = self.places[i]
        return getattr(part, name)

    @torch.no_grad()
    def settle(self, halted: Tensor) -> None:
        """Where `halted` is true, restore the values of the last call; else remember the current ones."""
        for i, kept in enumerate(self.kept):
            now = self._now(i)
            # A tensor's version counter grows with every in-place change.
            if now is self.last[i] and now._version == self.versions[i]:
                continue
            if now.shape == kept.shape:  # else a table was rebuilt for another size
                now.copy_(torch.where(halted, kept, now))
            self.last[i], self.versions[i], self.kept[i] = now, now._version, now.clone()

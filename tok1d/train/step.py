"""One optimizer step: forward and backward passes of all players, and the update unless something is not finite.

A step is a pure function of (weights, optimizer state, seed, step number): the batch follows from the step number, and
the random numbers are seeded from it. Therefore a resumed run equals an uninterrupted one, and a failed step can be
computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.config.recipe import Recipe
from tok1d.losses.total import Batch, Tensors, total_loss
from tok1d.train.players import PlayerState, Progress
from tok1d.train.precision import LossScale
from tok1d.train.rng import copies_of, seeded
from tok1d.train.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

SCALE, SKIPPED = "scale", "skipped"  # fp16, in the log: the mean loss scale, and the fraction of skipped steps


@dataclass
class Stepper:
    """The players of a run and its current step.

    Args:
        scale: loss scale of fp16, else None.
        step: number of optimizer steps done.
    """

    recipe: Recipe
    task: Task
    accelerator: Accelerator
    players: list[PlayerState]
    scale: LossScale | None = None
    step: int = 0

    def __post_init__(self) -> None:
        # On the device, so that no step has to wait for it; read when a line of the log is due.
        device = self.accelerator.device
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # first step that stops the run, or -1
        self.bad_players = torch.zeros(len(self.players), dtype=torch.bool, device=device)  # in that step
        self.bad_scale = torch.ones((), device=device)  # its loss scale
        self.bad_in_a_row = torch.zeros((), dtype=torch.int64, device=device)  # fp16: skipped steps before it

    def prepare(self) -> None:
        """Wrap the players' forward passes for distributed training. Call this once, after their weights are loaded."""
        for player in self.players:
            player.prepare(self.accelerator)

    def batches(self, steps: Iterable[int]) -> Iterator[list[Batch]]:
        """This process's batches of each of the optimizer steps `steps`: `train.accumulate` batches a step."""
        num = self.recipe.train.accumulate
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for step in steps:
            yield [self.task.batch(step * num + i, rank, world) for i in range(num)]

    def train_step(self, batches: list[Batch]) -> Tensors:
        """Optimizer step `self.step` of every player.

        Returns the scalars to log, detached means over the batches, on the device and without waiting for it.
        """
        logged: Tensors = {}
        totals = [torch.zeros((), device=self.accelerator.device) for _ in self.players]
        for i, batch in enumerate(batches):
            for name, value in self._gradients(batch, i, len(batches), totals).items():
                logged[name] = logged.get(name, 0) + value.detach() / len(batches)
        if self.scale is not None:
            for optimizer in (each for state in self.players for each in state.optimizers):
                self.scale.unscale(optimizer)
        norms = [state.clip() for state in self.players]
        halted = self._halted(totals, norms)
        for state, norm in zip(self.players, norms):
            state.step(self.step, halted)
            logged[f"{state.player.prefix}grad_norm"] = norm.detach()
        return logged if self.scale is None else self._with_scale(logged, self.scale)

    def _with_scale(self, logged: Tensors, scale: LossScale) -> Tensors:
        """`logged` with the loss scale and whether the step was skipped; then its gradient norms are not counted."""
        skipped = scale.in_a_row > 0
        for name in [name for name in logged if name.endswith("grad_norm")]:
            logged[name] = torch.where(skipped, 0.0, logged[name])
        return logged | {SCALE: scale.used, SKIPPED: skipped.float()}

    def _gradients(self, batch: Batch, i: int, num: int, totals: list[Tensor]) -> Tensors:
        """Forward and backward pass of each player on batch `i` of the step's `num`; returns the scalars to log.

        Args:
            totals: the players' losses, to which these are added.
        """
        accelerator, progress = self.accelerator, Progress(self.step, self.recipe.train.steps)
        moved = tuple(part.to(accelerator.device, non_blocking=True) for part in batch)
        earlier, logged = Tensors(), Tensors()
        for n, state in enumerate(self.players):
            player = state.player
            assert i or not n or all(p.grad is None for p in player.module.parameters()), (
                f"the losses of an earlier player reached the gradients of {player.name}"
            )
            # Gradients are averaged over the processes once a step, in its last backward pass.
            with nullcontext() if i == num - 1 else accelerator.no_sync(state.forward):
                with self._seeded(self.step * num + i, state, moved):
                    terms, outputs = state.forward(moved, progress, earlier)
                loss = total_loss(terms) / num
                accelerator.backward(loss if self.scale is None else self.scale.scale(loss))
            totals[n] += loss.detach()
            earlier |= {name: value.detach() for name, value in outputs.items()}
            logged |= {player.prefix + name: value for name, value in terms.items()}
        return logged

    def _seeded(self, micro_step: int, state: PlayerState, batch: Batch) -> AbstractContextManager[None]:
        """Seeds the random numbers of a player's forward pass."""
        accelerator, module = self.accelerator, state.player.module
        rank, world = accelerator.process_index, accelerator.num_processes
        return seeded(self.recipe.seed, micro_step, rank, world, state.player.prefix, batch, copies=copies_of(module))

    def _halted(self, totals: list[Tensor], norms: list[Tensor]) -> Tensor:
        """Whether no weight may change in this step, as a bool on the device.

        True where this step or an earlier one stops the run, and in fp16 also where this step alone is skipped because
        its losses are finite and its gradients overflowed.
        """
        bad = torch.stack([~torch.isfinite(torch.stack(each)) for each in (totals, norms)])  # (2, players)
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0
        stops = bad_players = bad.any(0)
        if self.scale is not None:
            gives_up = self.scale.update(bad_players.any())
            stops = torch.where(bad[0].any(), bad[0], bad_players & gives_up)
        # Once true it stays true, so that the weights stay those before the first bad step until the host reads it.
        first = stops.any() & (self.first_bad < 0)
        self.first_bad = torch.where(first, self.step, self.first_bad)
        self.bad_players = torch.where(first, stops, self.bad_players)
        if self.scale is None:
            return self.first_bad >= 0
        self.bad_scale = torch.where(first, self.scale.used, self.bad_scale)
        self.bad_in_a_row = torch.where(first & gives_up, self.scale.in_a_row, self.bad_in_a_row)
        return (self.first_bad >= 0) | bad_players.any()

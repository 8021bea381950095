"""What a recipe trains: a model, its batches, and the players that are trained with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from tok1d.losses.total import Batch
from tok1d.train.log import LogEntry
from tok1d.train.players import Player, alone

if TYPE_CHECKING:
    from tok1d.cost.flops import StepFlops
    from tok1d.train.images import Images

# (micro_step, rank, world) -> this process's batch. A micro-step is one forward pass: optimizer step s with n
# accumulated batches has the micro-steps s * n, ..., s * n + n - 1.
BatchFunction = Callable[[int, int, int], Batch]
Preview = Callable[[nn.Module, Path], None]  # (model, file to write)


@dataclass(frozen=True)
class Measure:
    """A measurement of the model in eval mode during the training.

    Args:
        every: optimizer steps between measurements.
        run: model -> numbers for a line of the log. It may use torch's global random numbers, whose state is restored,
            and must leave the model unchanged.
        averaged: measure the averaged weights (where the run has any), else the trained ones.
    """

    every: int
    run: Callable[[nn.Module], LogEntry]
    averaged: bool = True


@dataclass
class Task:
    """What a recipe trains.

    Args:
        model: the model that is saved, previewed and measured.
        batch: see `BatchFunction`; a pure function.
        preview: writes an image of the model's current output.
        players: the players in their order, the model first; empty is the model alone, with its own losses.
        samples: (micro_step, rank, world) -> a name for each row of that batch, for error reports; None numbers them.
        images: the training images; their number and their unreadable files go into checkpoints and the log.
        tokenizer: hash of the weights of a generator's tokenizer, for checkpoints; None without one.
        measures: measurements during the training; each runs before the checkpoint of the same step.
        flops: FLOPs of a step, for the log; None is unknown.
        phases: shares of the training from which on the loss is of another kind, so that it may jump there.
    """

    model: nn.Module
    batch: BatchFunction
    preview: Preview | None = None
    players: list[Player] = field(default_factory=list)
    samples: Callable[[int, int, int], list[str]] | None = None
    images: Images | None = None
    measures: list[Measure] = field(default_factory=list)
    flops: StepFlops | None = None
    tokenizer: str | None = None
    phases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.players = self.players or [alone(self.model)]
        assert self.players[0].module is self.model and not self.players[0].prefix, "the first player is the model"
        for key in ("name", "prefix"):
            values = [getattr(player, key) for player in self.players]
            assert len(set(values)) == len(values), f"expected a different {key} for each player, got {values}"

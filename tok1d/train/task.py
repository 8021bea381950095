"""What a recipe trains: a model, where its batches come from, and who takes part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tok1d.losses.total import Batch
from tok1d.train.players import Player, alone

if TYPE_CHECKING:
    from tok1d.cost.flops import StepFlops


@dataclass(frozen=True)
class Measure:
    """What is measured on the model every so many steps, in eval mode.

    Args:
        run: model -> numbers for a line of the log of their own; may draw from torch's global random numbers, whose
            state is restored, and must leave the model as it is.
        averaged: with the averaged weights (where the run has any), else with those that are trained.
    """

    every: int
    run: Callable[[nn.Module], dict[str, Any]]
    averaged: bool = True


@dataclass
class Task:
    """What a recipe trains: the model and where its batches come from.

    Args:
        model: what is saved, shown and measured in the end.
        batch: (micro_step, rank, world) -> the batch; a pure function.
        preview: writes a picture of what the model does now.
        players: who trains, in turn, the model first; empty is the model alone, by its own losses.
        samples: (micro_step, rank, world) -> a name for each row of that batch, for reports; None numbers them.
        images: the training images, which know what of them could not be read.
        measures: what is measured meanwhile, before the checkpoint of the same step.
        flops: what a step computes, for the log; None is not known.
    """

    model: nn.Module
    batch: Callable[[int, int, int], Batch]
    preview: Callable[[nn.Module, Path], None] | None = None
    players: list[Player] = field(default_factory=list)
    samples: Callable[[int, int, int], list[str]] | None = None
    images: Any = None
    measures: list[Measure] = field(default_factory=list)
    flops: StepFlops | None = None

    def __post_init__(self) -> None:
        self.players = self.players or [alone(self.model)]
        assert self.players[0].module is self.model and not self.players[0].prefix, "the model plays first"
        for key in ("name", "prefix"):
            assert len({getattr(player, key) for player in self.players}) == len(self.players), f"{key}s that repeat"

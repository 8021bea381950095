"""What a recipe trains: a model, where its batches come from, and who takes part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tok1d.train.players import Batch, Player, alone


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
    """

    model: nn.Module
    batch: Callable[[int, int, int], Batch]
    preview: Callable[[nn.Module, Path], None] | None = None
    players: list[Player] = field(default_factory=list)
    samples: Callable[[int, int, int], list[str]] | None = None
    images: Any = None

    def __post_init__(self) -> None:
        self.players = self.players or [alone(self.model)]
        assert self.players[0].module is self.model and not self.players[0].prefix, "the model plays first"
        for key in ("name", "prefix"):
            assert len({getattr(player, key) for player in self.players}) == len(self.players), f"{key}s that repeat"

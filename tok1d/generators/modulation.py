"""How a class reaches CARD's blocks: its vector, and what that vector (or a caption's) makes of every block."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.attention import Attend, full
from tok1d.nn.block import Block
from tok1d.nn.embed import ClassLabels
from tok1d.nn.norm import Modulation, modulate
from tok1d.nn.roles import CLASSES, Roles

ModulationKind = Literal["scale2", "dit6", "lowrank6", "shared6"]
Parts = tuple[Tensor, ...]


class ClassVectors(ClassLabels):
    """Rows of a class table and a trained null vector, both through one trained projection. (B,) -> (B, dim).

    Args:
        class_dim: width of the table.
        frozen: the table is a buffer, whose values `set_table` brings from elsewhere; else it is trained.
    """

    table: Tensor

    roles: ClassVar[Roles] = {"table": (CLASSES,)}

    def __init__(self, num_classes: int, class_dim: int, dim: int, dropout: float, *, frozen: bool) -> None:
        super().__init__(num_classes, dropout)
        rows = torch.randn(num_classes, class_dim) * 0.02
        if frozen:
            self.register_buffer("table", rows)
        else:
            self.table = nn.Parameter(rows)
        if self.has_null:
            self.null_vector = nn.Parameter(torch.randn(1, class_dim) * 0.02)
        self.proj = nn.Linear(class_dim, dim)

    @torch.no_grad()
    def set_table(self, table: Tensor) -> None:
        """Copy the values (num_classes, class_dim)."""
        assert table.shape == self.table.shape, "checked by whoever has the message for it"
        self.table.copy_(table)

    def forward(self, labels: Tensor) -> Tensor:
        table = torch.cat([self.table, self.null_vector]) if self.has_null else self.table
        return self.proj(F.embedding(labels, table))


class BlockModulations(nn.Module):
    """Class vectors (B, dim) to the modulation of every block, a list of tuples of (B, 1, dim); zero at initialisation.

    "scale2": a linear layer a block gives a scale for each of its two norms. The others give DiT's shift, scale and
    gate for each (adaLN-Zero): "dit6" by a linear layer a block, "lowrank6" by two over a third of the width,
    "shared6" by one layer for all and a learned table a block (PixArt's adaLN-single, arXiv 2310.00426).
    """

    def __init__(self, kind: ModulationKind, dim: int, depth: int) -> None:
        super().__init__()
        self.parts = 2 if kind == "scale2" else 6
        rank, count = dim // 3 if kind == "lowrank6" else None, 1 if kind == "shared6" else depth
        self.layers = nn.ModuleList(Modulation(dim, self.parts, rank=rank) for _ in range(count))
        self.tables = nn.Parameter(torch.zeros(depth, self.parts, 1, dim)) if kind == "shared6" else None

    def zero_init(self) -> None:
        """Back to the start, at which the class has no effect."""
        for layer in self.layers:
            assert isinstance(layer, Modulation)
            layer.zero_init()

    def forward(self, c: Tensor) -> list[Parts]:
        c = c[:, None]
        if self.tables is None:
            return [layer(c) for layer in self.layers]
        shared = self.layers[0](c)
        return [tuple(own + part for own, part in zip(table, shared)) for table in self.tables]


class ClassBlock(Block):
    """The pre-norm block under a modulation: one scale a norm, or shift, scale and gate a branch."""

    def forward(self, x: Tensor, attend: Attend = full, rows: slice | None = None, *, parts: Parts = ()) -> Tensor:
        """As `Block`, with parts two or six of (B, 1, dim)."""
        kept = x if rows is None else x[:, rows]
        if len(parts) == 2:
            x = kept + self.drop1(self.attn(self.norm1(x) * (1 + parts[0]), attend, rows))
            return x + self.drop2(self.mlp(self.norm2(x) * (1 + parts[1])))
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = kept + self.drop1(gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), attend, rows))
        return x + self.drop2(gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2)))

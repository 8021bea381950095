"""Class conditioning of CARD: class vectors, and the modulation of every block by a vector of the condition."""

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
    """Rows of a class table and a trained null vector, both followed by one trained projection. (B,) -> (B, dim).

    Args:
        class_dim: width of the table.
        frozen: the table is a buffer, to be set by `set_table`; else it is trained.
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
        """Copy values (num_classes, class_dim) into the table."""
        assert table.shape == self.table.shape, "`zoo.pairs.shared_classes` has checked it"
        self.table.copy_(table)

    def forward(self, labels: Tensor) -> Tensor:
        table = torch.cat([self.table, self.null_vector]) if self.has_null else self.table
        return self.proj(F.embedding(labels, table))


class BlockModulations(nn.Module):
    """Vectors (B, dim) -> for every block a tuple of modulations (B, 1, dim); all zero at initialisation.

    "scale2" has one scale for each of a block's two norms, from one linear layer per block. The other kinds have DiT's
    shift, scale and gate for each norm (adaLN-Zero): "dit6" from one linear layer per block, "lowrank6" from two with
    a third of the width between them, "shared6" from one layer for all blocks and a learned table per block (PixArt's
    adaLN-single, arXiv 2310.00426).
    """

    def __init__(self, kind: ModulationKind, dim: int, depth: int) -> None:
        super().__init__()
        self.parts = 2 if kind == "scale2" else 6
        rank, count = dim // 3 if kind == "lowrank6" else None, 1 if kind == "shared6" else depth
        self.layers = nn.ModuleList(Modulation(dim, self.parts, rank=rank) for _ in range(count))
        self.tables = nn.Parameter(torch.zeros(depth, self.parts, 1, dim)) if kind == "shared6" else None

    def zero_init(self) -> None:
        """Set all modulations to zero, so that the condition has no effect on the blocks."""
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
    """The pre-norm block with one scale for each norm, or shift, scale and gate for each branch."""

    def forward(self, x: Tensor, attend: Attend = full, rows: slice | None = None, *, parts: Parts = ()) -> Tensor:
        """As `Block`; `parts` are two or six modulations (B, 1, dim)."""
        kept = x if rows is None else x[:, rows]
        if len(parts) == 2:
            x = kept + self.drop1(self.attn(self.norm1(x) * (1 + parts[0]), attend, rows))
            return x + self.drop2(self.mlp(self.norm2(x) * (1 + parts[1])))
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = kept + self.drop1(gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), attend, rows))
        return x + self.drop2(gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2)))

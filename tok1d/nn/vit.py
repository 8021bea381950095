"""A plain ViT body over a grid of patch states and a few extra tokens, with absolute and rotary positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.attention import Attend, Attention, full, masked, rotary
from tok1d.nn.block import Block, Mlp
from tok1d.nn.position import axial_angles, grid_coordinates, mixed_angles, mixed_frequencies, resample_grid

Rotary = Literal["none", "mixed", "axial"]


class ViT(nn.Module):
    """[class token, registers, patches, extra tokens] -> pre-norm blocks with full attention -> LayerNorm.

    Patches get their places from a learned table, from rotations of queries and keys by their integer column and row,
    or both; prefix and extra tokens are never rotated. Any grid is read: the table is resampled bicubically.

    Args:
        side: rows and columns of the grid that the learned table belongs to.
        class_token: whether the sequence starts with one; without registers it has a row of the table too (as
            DINOv2's variants have it).
        registers: further learned tokens after it.
        absolute: whether there is a learned table.
        rotation: none, frequencies learned for every block and head (mixed, arXiv 2403.13298), or fixed (axial).
        theta: base of the rotary frequencies, of the initial ones where they are learned.
        layer_scale: initial factor of both branches of a block; None has none.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        pre_norm: a LayerNorm of the whole sequence before the first block (CLIP, TiTok).
        eps: of all LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        side: int,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        registers: int = 0,
        absolute: bool = True,
        rotation: Rotary = "none",
        theta: float = 10.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        pre_norm: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.side, self.heads, self.head_dim = side, heads, dim // heads
        self.rotation, self.theta = rotation, theta
        self.prefix = int(class_token) + registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.registers = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.class_row = class_token and not registers
        self.positions = nn.Parameter(torch.zeros(1, self.class_row + side**2, dim)) if absolute else None
        turns = torch.rand(depth, heads)
        self.freqs = nn.Parameter(mixed_frequencies(self.head_dim, turns, theta)) if rotation == "mixed" else None
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, heads),
                Mlp(dim, int(dim * mlp_ratio)),
                (nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)),
                drop_path=drop_path * i / max(depth - 1, 1),
                layer_scale=layer_scale,
            )
            for i in range(depth)
        )
        self.norm_in = nn.LayerNorm(dim, eps=eps) if pre_norm else nn.Identity()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normal with std 0.02 for linears and the table, next to nothing for the class token (DINOv2)."""
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def table(self, rows: int, columns: int) -> Tensor | None:
        """The learned positions of a grid: (1, class row + rows * columns, dim), resampled where needed."""
        if self.positions is None or rows == columns == self.side:
            return self.positions
        cls, patches = self.positions.tensor_split([int(self.class_row)], dim=1)
        return torch.cat([cls, resample_grid(patches, (self.side, self.side), (rows, columns))], dim=1)

    def embed(self, patches: Tensor, grid: tuple[int, int], extra: Tensor | None = None) -> Tensor:
        """The sequence that enters the first block. (B, N, dim), (B, L, dim) -> (B, prefix + N + L, dim)."""
        batch, table = patches.shape[0], self.table(*grid)
        cls: Tensor | None = self.cls_token
        if table is not None:
            patches = patches + table[:, int(self.class_row) :]
            if self.class_row and cls is not None:
                cls = cls + table[:, :1]
        prefix = [token.expand(batch, -1, -1) for token in (cls, self.registers) if token is not None]
        return self.norm_in(torch.cat([*prefix, patches, *([] if extra is None else [extra])], dim=1))

    def angles(self, rows: int, columns: int) -> Tensor:
        """Rotary angles of a grid, (depth or 1, heads or 1, rows * columns, head width / 2), in float32."""
        x, y = grid_coordinates(rows, columns, self.norm.weight.device)
        if self.freqs is not None:
            return mixed_angles(self.freqs, self.heads, x, y)
        return axial_angles(self.head_dim, x, y, self.theta)[None, None]

    def attends(self, grid: tuple[int, int], extra: int, attend: Attend = full) -> list[Attend]:
        """The attention of every block: `attend`, rotated where there are rotary positions."""
        depth = len(self.blocks)
        if self.rotation == "none":
            return [attend] * depth
        # Angle 0 turns nothing: one rotation of the whole sequence leaves prefix and extra tokens as they are.
        angles = F.pad(self.angles(*grid), (0, 0, self.prefix, extra))
        cos, sin = angles.cos(), angles.sin()
        return [rotary(cos[i % len(cos)], sin[i % len(sin)], attend) for i in range(depth)]

    def forward(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        extra: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Normalised states of the patches (B, N, dim) of a grid (rows, columns), and of extra tokens (B, L, dim).

        Extra tokens where `seen` (B, L) is False are attended to by nobody; for the others it is as if they were not
        there.
        """
        num_extra = 0 if extra is None else extra.shape[1]
        x = self.embed(patches, grid, extra)
        attend: Attend = full
        if seen is not None:
            attend = masked(F.pad(seen, (x.shape[1] - num_extra, 0), value=True)[:, None, None])
        for block, look in zip(self.blocks, self.attends(grid, num_extra, attend)):
            x = block(x, look)
        x = self.norm(x[:, self.prefix :])
        return x[:, : patches.shape[1]], x[:, patches.shape[1] :]

"""A plain vision transformer over a grid of patch states and a few extra tokens, with absolute and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.attention import Attend, full, masked, rotary
from tok1d.nn.block import init_linears, vit_blocks
from tok1d.nn.position import axial_angles, grid_coordinates, mixed_angles, mixed_frequencies, resample_grid
from tok1d.nn.roles import GRID, Roles

Rotary = Literal["none", "mixed", "axial"]


@dataclass(frozen=True)
class ViTShape:
    """The sizes and options of a `ViT`.

    Args:
        dim: width of the sequence.
        depth: number of blocks.
        heads: attention heads; `dim` is a multiple of it.
        side: rows and columns of the square grid of patches that the learned position table belongs to.
        mlp_ratio: hidden width of the MLP over `dim`.
        class_token: whether the sequence starts with a class token. It has a row in the position table, except with
            registers (as in DINOv2's variants).
        registers: further learned tokens after the class token (arXiv 2309.16588).
        absolute: whether there is a learned position table.
        rotation: rotary positions: none, frequencies learned for every block and head (mixed, arXiv 2403.13298), or
            fixed frequencies (axial).
        theta: base of the rotary frequencies; of their initial values where they are learned.
        layer_scale: initial LayerScale factor of both branches of a block; None: no LayerScale.
        drop_path: stochastic depth rate of the last block; the rate grows linearly from 0 over the blocks.
        pre_norm: whether the whole sequence passes a LayerNorm before the first block (CLIP, TiTok).
        eps: epsilon of all LayerNorms.
    """

    dim: int
    depth: int
    heads: int
    side: int
    mlp_ratio: float = 4.0
    class_token: bool = True
    registers: int = 0
    absolute: bool = True
    rotation: Rotary = "none"
    theta: float = 10.0
    layer_scale: float | None = None
    drop_path: float = 0.0
    pre_norm: bool = False
    eps: float = 1e-6


class ViT(nn.Module):
    """[class token, registers, patches, extra tokens] -> pre-norm blocks with full attention -> LayerNorm.

    Positions of patches come from a learned table, from rotary embeddings of queries and keys by their integer column
    and row, or from both. Class token, registers and extra tokens are never rotated. Grids of any size are accepted:
    the table is resampled bicubically.
    """

    roles: ClassVar[Roles] = {"positions": (GRID,)}

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        dim, depth, heads = shape.dim, shape.depth, shape.heads
        self.side, self.heads, self.head_dim = shape.side, heads, dim // heads
        self.rotation, self.theta = shape.rotation, shape.theta
        self.prefix = int(shape.class_token) + shape.registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if shape.class_token else None
        self.registers = nn.Parameter(torch.zeros(1, shape.registers, dim)) if shape.registers else None
        self.class_row = shape.class_token and not shape.registers
        rows = self.class_row + shape.side**2
        self.positions = nn.Parameter(torch.zeros(1, rows, dim)) if shape.absolute else None
        # Sampled even without rotary positions, so that other initial weights do not depend on `rotation`.
        turns = torch.rand(depth, heads)
        mixed = shape.rotation == "mixed"
        self.freqs = nn.Parameter(mixed_frequencies(self.head_dim, turns, shape.theta)) if mixed else None
        self.blocks = vit_blocks(
            dim,
            depth,
            heads,
            mlp_ratio=shape.mlp_ratio,
            drop_path=shape.drop_path,
            layer_scale=shape.layer_scale,
            eps=shape.eps,
        )
        self.norm_in = nn.LayerNorm(dim, eps=shape.eps) if shape.pre_norm else nn.Identity()
        self.norm = nn.LayerNorm(dim, eps=shape.eps)
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normal with std 0.02 for linear layers and positions, std 1e-6 for the class token (DINOv2)."""
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)
        init_linears(self)

    @property
    def grid_margin(self) -> tuple[int, int]:
        """Rows of the position table before and after those of the patches."""
        return int(self.class_row), 0

    def table(self, rows: int, columns: int) -> Tensor | None:
        """The learned positions, (1, class row + rows * columns, dim), resampled to the grid; None without them."""
        if self.positions is None or rows == columns == self.side:
            return self.positions
        cls, patches = self.positions.tensor_split([int(self.class_row)], dim=1)
        return torch.cat([cls, resample_grid(patches, (self.side, self.side), (rows, columns))], dim=1)

    def embed(self, patches: Tensor, grid: tuple[int, int], extra: Tensor | None = None) -> Tensor:
        """The input of the first block. Patches (B, N, dim), extra tokens (B, L, dim) -> (B, prefix + N + L, dim)."""
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
        """The attention function of every block: `attend`, with rotary positions where configured."""
        depth = len(self.blocks)
        if self.rotation == "none":
            return [attend] * depth
        # Padded with angle 0, the rotation of the whole sequence leaves prefix and extra tokens unchanged.
        angles = F.pad(self.angles(*grid), (0, 0, self.prefix, extra))
        cos, sin = angles.cos(), angles.sin()
        return [rotary(cos[i % len(cos)], sin[i % len(sin)], attend) for i in range(depth)]

    def forward(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        extra: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Patches (B, N, dim) and extra tokens (B, L, dim) -> their normalised states, of the same shapes.

        Args:
            grid: rows and columns of the patches, rows * columns = N.
            visible: (B, L) bool; extra tokens where it is False are masked as keys in every block, so the other tokens
                do not depend on them. None: all are visible.
        """
        num_extra = 0 if extra is None else extra.shape[1]
        x = self.embed(patches, grid, extra)
        attend: Attend = full
        if visible is not None:
            attend = masked(F.pad(visible, (x.shape[1] - num_extra, 0), value=True)[:, None, None])
        for block, block_attend in zip(self.blocks, self.attends(grid, num_extra, attend)):
            x = block(x, block_attend)
        x = self.norm(x[:, self.prefix :])
        return x[:, : patches.shape[1]], x[:, patches.shape[1] :]

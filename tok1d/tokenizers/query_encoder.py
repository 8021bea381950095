"""A causal ViT over patches and learned queries: the encoder of Semanticist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.nn.attention import after_prefix, full, prefix_causal
from tok1d.nn.block import init_linears, vit_blocks
from tok1d.nn.embed import PatchEmbed
from tok1d.nn.position import resample_grid
from tok1d.nn.roles import GRID, TOKENS, Roles
from tok1d.tokenizers.vit import VIT_SIZES


@dataclass
class EncoderConfig:
    """A ViT encoder of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = VIT_SIZES

    patch: int = option(16, "side of a square patch, in pixels", ge=1)
    dim: int = option(768, "width; size=tiny, small, base, large or huge sets width, depth and heads", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)
    causal: bool = option(True, "query i attends to patches and queries 0..i, patches attend to patches")
    drop_path: float = option(
        0.1, "stochastic depth rate of the last block; the rate grows linearly from 0 over the blocks", ge=0, lt=1
    )
    norm_eps: float = option(1e-6, "epsilon of the norms", gt=0)
    mean: list[float] = option(
        [],
        "subtracted from the images in [0, 1]: a number, or one for each channel; none: 0. Where images are mostly of "
        "one colour, tokens hardly depend on them at first without it",
    )
    std: list[float] = option([], "the images are divided by it afterwards, as mean; none: 1", gt=0)

    def check_channels(self, channels: int) -> None:
        """Raise ConfigError if there are not as many numbers in `mean` and `std` as images have channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                wanted = "one number, or one for each channel of the images"
                raise ConfigError(f"encoder.{name}: expected {wanted} ({channels}), got {len(values)}")


class QueryEncoder(nn.Module):
    """[class token, patches, queries] -> ViT -> the states of the queries (Semanticist, arXiv 2503.08685, section 4.1).

    Images of any size that the patches divide are accepted: the learned positions of the patches are resampled.

    Args:
        image_size: side of the square training images, in pixels.
        channels: image channels.
        num_tokens: number K of queries.
    """

    roles: ClassVar[Roles] = {"queries": (TOKENS,), "positions": (GRID, TOKENS)}

    def __init__(self, config: EncoderConfig, image_size: int, channels: int, num_tokens: int) -> None:
        super().__init__()
        dim = config.dim
        self.num_tokens = num_tokens
        self.side = image_size // config.patch
        self.num_patches = self.side**2
        self.causal = config.causal
        self.patch_embed = PatchEmbed(config.patch, channels, dim)
        self.shifted = bool(config.mean or config.std)
        for name, values in (("mean", config.mean or [0.0]), ("std", config.std or [1.0])):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.queries = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.num_patches + num_tokens, dim))
        self.blocks = vit_blocks(
            dim,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
            eps=config.norm_eps,
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self._tables: dict[tuple[object, ...], Tensor] = {}  # resampled position tables of other image sizes
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normal with std 0.02, but PyTorch's default for the patch convolution."""
        for table in (self.cls_token, self.queries, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        init_linears(self)

    @property
    def grid_margin(self) -> tuple[int, int]:
        """Rows of the position table before and after those of the patches."""
        return 1, self.num_tokens

    def train(self, mode: bool = True) -> QueryEncoder:
        """As `nn.Module.train`, which `eval` calls as well; drops resampled tables, since weights may have changed."""
        self._tables.clear()
        return super().train(mode)

    def table(self, rows: int, columns: int) -> Tensor:
        """The positions for a grid of patches, (1, 1 + rows * columns + K, dim).

        Those of the patches are resampled bicubically. In eval mode without gradients the result is cached.
        """
        if (rows, columns) == (self.side, self.side):
            return self.positions
        if self.training or torch.is_grad_enabled():
            return self._resampled(rows, columns)
        weight = self.positions
        version = 0 if weight.is_inference() else weight._version
        key = (rows, columns, version, weight.device, weight.dtype)
        if key not in self._tables:
            self._tables[key] = self._resampled(rows, columns)
        return self._tables[key]

    def _resampled(self, rows: int, columns: int) -> Tensor:
        cls, patches, queries = self.positions.split([1, self.num_patches, self.num_tokens], dim=1)
        return torch.cat([cls, resample_grid(patches, (self.side, self.side), (rows, columns)), queries], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """The input of the first block. Images (B, C, H, W) -> (B, 1 + N + K, dim)."""
        batch, patch = images.shape[0], self.patch_embed.patch
        if self.shifted:
            images = (images - self.mean) / self.std
        parts = [self.cls_token.expand(batch, -1, -1), self.patch_embed(images), self.queries.expand(batch, -1, -1)]
        return torch.cat(parts, dim=1) + self.table(images.shape[-2] // patch, images.shape[-1] // patch)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> states (B, K, dim)."""
        x = self.embed(images)
        prefix = x.shape[1] - self.num_tokens
        attend, last = (prefix_causal(prefix), after_prefix(prefix)) if self.causal else (full, full)
        for block in self.blocks[:-1]:
            x = block(x, attend)
        # The last block only computes the queries: the states of the patches are not used afterwards.
        return self.norm(self.blocks[-1](x, last, slice(prefix, None)))

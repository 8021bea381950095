"""A ViT that reads patches and learned queries and returns the queries' states: the encoder of every tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.nn.attention import Attention, after_prefix, full, prefix_causal
from tok1d.nn.block import Block, Mlp
from tok1d.nn.embed import PatchEmbed
from tok1d.nn.position import resample_grid


@dataclass
class EncoderConfig:
    """A ViT encoder of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"dim": 192, "depth": 12, "heads": 3},
        "small": {"dim": 384, "depth": 12, "heads": 6},
        "base": {"dim": 768, "depth": 12, "heads": 12},
        "large": {"dim": 1024, "depth": 24, "heads": 16},
        "huge": {"dim": 1280, "depth": 32, "heads": 16},
    }

    patch: int = option(16, "side of a square patch, in pixels", ge=1)
    dim: int = option(768, "width; size=tiny, small, base, large or huge sets width, depth and heads", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)
    causal: bool = option(True, "token i sees patches and tokens 0..i, patches see no token")
    drop_path: float = option(0.1, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)


class QueryEncoder(nn.Module):
    """[class token, patches, queries] -> ViT -> the queries' states (Semanticist, section 3.1).

    It reads images of any size that its patches divide: the learned positions of the patches are resampled.

    Args:
        image_size: side of the square images it is trained on, in pixels.
        channels: image channels.
        num_tokens: number K of queries.
    """

    def __init__(self, config: EncoderConfig, image_size: int, channels: int, num_tokens: int) -> None:
        super().__init__()
        dim = config.dim
        self.num_tokens = num_tokens
        self.side = image_size // config.patch
        self.num_patches = self.side**2
        self.causal = config.causal
        self.patch_embed = PatchEmbed(config.patch, channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.queries = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.num_patches + num_tokens, dim))
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, config.heads),
                Mlp(dim, int(dim * config.mlp_ratio)),
                (nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)),
                drop_path=rate,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._tables: dict[tuple[object, ...], Tensor] = {}  # resampled position tables, no part of the weights
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normal with std 0.02 for linears and tables; the patch convolution keeps PyTorch's own."""
        for table in (self.cls_token, self.queries, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> QueryEncoder:
        """As `nn.Module.train`, which `eval` calls too; weights may have been exchanged since, so tables go."""
        self._tables.clear()
        return super().train(mode)

    def table(self, rows: int, columns: int) -> Tensor:
        """The positions for a grid of patches, (1, 1 + rows * columns + K, dim).

        Those of the class token and the queries stay, those of the patches are resampled bicubically. Without
        gradients, in eval mode, a size is resampled once.
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
        """The sequence that enters the first block. (B, C, H, W) -> (B, 1 + N + K, dim)."""
        batch, patch = images.shape[0], self.patch_embed.patch
        parts = [self.cls_token.expand(batch, -1, -1), self.patch_embed(images), self.queries.expand(batch, -1, -1)]
        return torch.cat(parts, dim=1) + self.table(images.shape[-2] // patch, images.shape[-1] // patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, dim)."""
        x = self.embed(images)
        prefix = x.shape[1] - self.num_tokens
        attend, last = (prefix_causal(prefix), after_prefix(prefix)) if self.causal else (full, full)
        for block in self.blocks[:-1]:
            x = block(x, attend)
        # Nothing reads what the last block would make of the patches.
        return self.norm(self.blocks[-1](x, last, slice(prefix, None)))

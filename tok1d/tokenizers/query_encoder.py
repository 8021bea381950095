"""A ViT that reads patches and learned queries and returns the queries' states: the encoder of every tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tok1d.config import option
from tok1d.nn.attention import Attention, full, prefix_causal
from tok1d.nn.block import Block, Mlp
from tok1d.nn.embed import PatchEmbed


@dataclass
class EncoderConfig:
    """A ViT encoder; tiny 192/12/3, small 384/12/6, base 768/12/12, large 1024/24/16."""

    patch: int = option(16, "side of a square patch, in pixels", ge=1)
    dim: int = option(768, "width", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)
    causal: bool = option(True, "token i sees patches and tokens 0..i, patches see no token")
    drop_path: float = option(0.1, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)


class QueryEncoder(nn.Module):
    """[class token, patches, queries] -> ViT -> the queries' states (Semanticist, section 3.1).

    Args:
        image_size: side of the square input, in pixels.
        channels: image channels.
        num_tokens: number K of queries.
    """

    def __init__(self, config: EncoderConfig, image_size: int, channels: int, num_tokens: int) -> None:
        super().__init__()
        dim = config.dim
        self.num_tokens = num_tokens
        self.num_patches = (image_size // config.patch) ** 2
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
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normal with std 0.02 for linears and tables; the patch convolution keeps PyTorch's own."""
        for table in (self.cls_token, self.queries, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """The sequence that enters the first block. (B, C, H, W) -> (B, 1 + N + K, dim)."""
        batch = images.shape[0]
        parts = [self.cls_token.expand(batch, -1, -1), self.patch_embed(images), self.queries.expand(batch, -1, -1)]
        return torch.cat(parts, dim=1) + self.positions

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, dim)."""
        x = self.embed(images)
        attend = prefix_causal(1 + self.num_patches) if self.causal else full
        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x[:, -self.num_tokens :])

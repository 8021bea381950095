"""A ViT that reads patches and learned queries with full attention: the encoder of MAETok, SMAP and their kin."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.embed import PatchEmbed
from tok1d.tokenizers.vit import ViTConfig, build_vit


class PixelEncoder(nn.Module):
    """[prefix, patches, queries] -> ViT -> the queries' states, or the patches' with `num_tokens` 0."""

    def __init__(
        self, config: ViTConfig, image_size: int, channels: int, num_tokens: int, *, masked: bool = False
    ) -> None:
        super().__init__()
        dim = config.dim
        self.patch_embed = PatchEmbed(config.patch, channels, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if masked else None
        self.vit = build_vit(config, image_size // config.patch)
        self.queries = self.query_positions = None
        if num_tokens:
            self.queries = nn.Parameter(0.02 * torch.randn(1, num_tokens, dim))
            self.query_positions = nn.Parameter(torch.zeros(1, num_tokens, dim))
            nn.init.trunc_normal_(self.query_positions, std=0.02)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        cond: Tensor | None = None,
        cond_seen: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, L, dim).

        Args:
            mask: (B, N), patches where it is True are not seen.
            cond: (B, n, dim), further tokens that stand between the patches and the queries.
            cond_seen: (B, n) bool, those of them where it is False are not attended to.
        """
        patch, queries, seen = self.patch_embed.patch, None, None
        x = self.patch_embed(images)
        if mask is not None:
            assert self.mask_token is not None, "a mask for an encoder without a mask token"
            # Before positions: the encoder knows where it does not see.
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        if self.queries is not None and self.query_positions is not None:
            queries = (self.queries + self.query_positions).expand(len(x), -1, -1)
            if cond is not None:
                seen = None if cond_seen is None else F.pad(cond_seen, (0, queries.shape[1]), value=True)
                queries = torch.cat([cond, queries], dim=1)
        patches, tokens = self.vit(x, (images.shape[-2] // patch, images.shape[-1] // patch), queries, seen)
        return patches if queries is None else tokens[:, 0 if cond is None else cond.shape[1] :]

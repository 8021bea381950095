"""A ViT over patches and learned queries with full attention: the encoder of MAETok, SMAP and TiTok."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.embed import PatchEmbed
from tok1d.nn.roles import MASKING, TOKENS, Roles
from tok1d.nn.vit import ViT


class BuildsViT(Protocol):
    """The configuration of a ViT."""

    @property
    def patch(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def build(self, side: int) -> ViT:
        """The ViT for a grid of `side` x `side` patches."""
        ...


class PixelEncoder(nn.Module):
    """[prefix, patches, condition, queries] -> ViT -> the states of the queries, or of the patches without queries.

    Args:
        config: the ViT.
        image_size: side of the square training images, in pixels; images of other sizes are accepted as well.
        channels: image channels.
        num_tokens: number K of queries; 0: the states of the patches are the output.
        masked: whether patches can be masked in training.
    """

    roles: ClassVar[Roles] = {"queries": (TOKENS,), "query_positions": (TOKENS,), "mask_token": (MASKING,)}

    def __init__(
        self, config: BuildsViT, image_size: int, channels: int, num_tokens: int, *, masked: bool = False
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch, channels, config.dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, config.dim)) if masked else None
        self.vit = config.build(image_size // config.patch)
        self.queries = self.query_positions = None
        if num_tokens:
            self.queries, self.query_positions = self._new_queries(num_tokens, config.dim)

    def _new_queries(self, num_tokens: int, dim: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Initial queries (normal, std 0.02) and their positions (truncated normal, std 0.02), (1, K, dim) each."""
        queries = nn.Parameter(0.02 * torch.randn(1, num_tokens, dim))
        positions = nn.Parameter(torch.zeros(1, num_tokens, dim))
        nn.init.trunc_normal_(positions, std=0.02)
        return queries, positions

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        cond: Tensor | None = None,
        cond_visible: Tensor | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in the range of the tokenizer's networks -> (B, K, dim).

        Args:
            mask: (B, N) bool, True for patches that are replaced by the mask token.
            cond: (B, n, dim), condition tokens between the patches and the queries.
            cond_visible: (B, n) bool, False for condition tokens that are masked as attention keys; None: no mask.
        """
        patch, queries, visible = self.patch_embed.patch, None, None
        x = self.patch_embed(images)
        if mask is not None:
            assert self.mask_token is not None, "a mask for an encoder without a mask token"
            # Replaced before positions are added, so a mask token has the position of its patch.
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        if self.queries is not None and self.query_positions is not None:
            queries = (self.queries + self.query_positions).expand(x.shape[0], -1, -1)
            if cond is not None:
                visible = None if cond_visible is None else F.pad(cond_visible, (0, queries.shape[1]), value=True)
                queries = torch.cat([cond, queries], dim=1)
        patches, tokens = self.vit(x, (images.shape[-2] // patch, images.shape[-1] // patch), queries, visible)
        return patches if queries is None else tokens[:, 0 if cond is None else cond.shape[1] :]

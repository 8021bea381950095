"""A ViT from tokens to pixels: the decoder of MAETok and SMAP (MAETok, arXiv 2502.03444, section 3.1)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.embed import unpatchify
from tok1d.nn.roles import PIXELS_OUT, TOKENS, Roles
from tok1d.tokenizers.checks import check_grid
from tok1d.tokenizers.deterministic import Head, ImageDecoder
from tok1d.tokenizers.vit import ViTConfig


class TokenDecoder(nn.Module):
    """[mask tokens, condition, tokens] -> ViT -> the states of the mask tokens, one per patch.

    Args:
        side: patches per row and column of the square training images.
        num_tokens: number K of tokens; 0: there is one token per patch, which takes the place of its mask token.
        token_dim: channels C of a token.
        depth: number of blocks; default: that of the configuration.
    """

    roles: ClassVar[Roles] = {"token_positions": (TOKENS,)}

    def __init__(
        self, config: ViTConfig, side: int, num_tokens: int, token_dim: int, *, depth: int | None = None
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.token_embed = nn.Linear(token_dim, config.dim)
        self.vit = config.build(side, depth)
        if num_tokens:
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
            self.token_positions = nn.Parameter(torch.zeros(1, num_tokens, config.dim))
            nn.init.trunc_normal_(self.token_positions, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        *,
        cond: Tensor | None = None,
        cond_visible: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, k, C), the first k <= K, -> states (B, rows * columns, dim) of a grid (rows, columns).

        Args:
            cond: (B, n, dim), condition tokens between the mask tokens and the tokens.
            cond_visible: (B, n) bool, False for condition tokens that are masked as attention keys; None: no mask.
            visible: (B, k) bool, the same for the tokens.
        """
        states = self.token_embed(tokens)
        if not self.num_tokens:
            assert cond is None and visible is None, "one token per patch: neither a condition nor prefixes"
            return self.vit(states, grid)[0]
        masks = self.mask_token.expand(tokens.shape[0], grid[0] * grid[1], -1)
        states = states + self.token_positions[:, : tokens.shape[1]]
        if cond is not None:
            if cond_visible is not None:
                visible = states.new_ones(states.shape[:2], dtype=torch.bool) if visible is None else visible
                visible = torch.cat([cond_visible, visible], dim=1)
            elif visible is not None:
                visible = F.pad(visible, (cond.shape[1], 0), value=True)
            states = torch.cat([cond, states], dim=1)
        return self.vit(masks, grid, states, visible)[0]


class LinearHead(nn.Module):
    """A linear layer from every state to the pixels of its patch. (B, rows * columns, dim) -> (B, C, H, W)."""

    roles: ClassVar[Roles] = {"proj": (PIXELS_OUT,)}

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, patch**2 * channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the linear layer."""
        return self.proj.weight

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return unpatchify(self.proj(x), self.patch, *grid)


class ConvHead(nn.Module):
    """Convolutions with nearest upsampling from the grid of states to pixels. (B, rows * columns, dim) -> (B, C, H, W).

    A 1x1 convolution to 128 channels, then [ReLU, upsampling by 2, 3x3 convolution] to 64, 32, 16, ..., 16 channels and
    finally to the image channels.

    Args:
        patch: a power of two, at least 2.
    """

    roles: ClassVar[Roles] = {"convs": (PIXELS_OUT,)}  # the last one; the others keep their shape

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        doublings = patch.bit_length() - 1
        assert patch == 2**doublings >= 2, f"patch: expected a power of 2, got {patch}"
        widths = [128, *[max(64 >> i, 16) for i in range(doublings - 1)], channels]
        first = nn.Conv2d(dim, widths[0], 1)
        self.convs = nn.ModuleList([first, *(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))])

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution."""
        return self.convs[-1].get_parameter("weight")

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.convs[0](x.transpose(1, 2).unflatten(2, grid))
        for conv in self.convs[1:]:
            x = conv(F.interpolate(x.relu(), scale_factor=2, mode="nearest"))
        return x


HEADS: dict[Head, type[LinearHead | ConvHead]] = {"linear": LinearHead, "conv": ConvHead}


class PixelDecoder(TokenDecoder, ImageDecoder):
    """Tokens (B, K, C) to pixels (B, channels, H, W), nominally in [-1, 1]; see `TokenDecoder`."""

    def __init__(
        self, config: ViTConfig, image_size: int, channels: int, num_tokens: int, token_dim: int, *, head: Head
    ) -> None:
        super().__init__(config, image_size // config.patch, num_tokens, token_dim)
        self.patch = config.patch
        self.head = HEADS[head](config.dim, config.patch, channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, for the adaptive adversarial weight (VQGAN, arXiv 2012.09841, equation 7)."""
        return self.head.last_weight

    def decode(
        self,
        tokens: Tensor,
        size: tuple[int, int],
        *,
        cond: Tensor | None = None,
        cond_visible: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, k, C) -> pixels (B, channels, H, W) of a size (H, W); see `TokenDecoder.forward`.

        Raises:
            InputError: a size that the patches do not divide.
        """
        grid = check_grid(size, self.patch)
        return self.head(self(tokens, grid, cond=cond, cond_visible=cond_visible, visible=visible), grid)

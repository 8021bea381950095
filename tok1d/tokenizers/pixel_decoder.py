"""A ViT that reads tokens and paints patches: the decoder of MAETok and its kin (MAETok, section 3.1)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.embed import unpatchify
from tok1d.tokenizers.deterministic import Head, check_grid
from tok1d.tokenizers.vit import ViTConfig, build_vit


class TokenDecoder(nn.Module):
    """[mask tokens of the patches, tokens] -> ViT -> the patches' states.

    Args:
        side: patches a side of the images it is trained on.
        num_tokens: number L of tokens; 0: the tokens are one a patch and stand in the patches' places.
        token_dim: numbers C of a token.
        depth: number of blocks, default that of the configuration.
    """

    def __init__(
        self, config: ViTConfig, side: int, num_tokens: int, token_dim: int, *, depth: int | None = None
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.token_embed = nn.Linear(token_dim, config.dim)
        self.vit = build_vit(config, side, depth)
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
        cond_seen: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """(B, L, C), or the first tokens of those, and the patches' (rows, columns) -> (B, rows * columns, dim).

        Args:
            cond: (B, n, dim), further tokens that stand between the mask tokens and these.
            cond_seen: (B, n) bool, those of them where it is False are not attended to.
            seen: (B, L) bool, tokens where it is False are not attended to.
        """
        states = self.token_embed(tokens)
        if not self.num_tokens:
            assert cond is None and seen is None, "tokens that stand in the patches' places are all there is"
            return self.vit(states, grid)[0]
        masks = self.mask_token.expand(len(tokens), grid[0] * grid[1], -1)
        states = states + self.token_positions[:, : tokens.shape[1]]
        if cond is not None:
            if cond_seen is not None:
                seen = states.new_ones(states.shape[:2], dtype=torch.bool) if seen is None else seen
                seen = torch.cat([cond_seen, seen], dim=1)
            elif seen is not None:
                seen = F.pad(seen, (cond.shape[1], 0), value=True)
            states = torch.cat([cond, states], dim=1)
        return self.vit(masks, grid, states, seen)[0]


class LinearHead(nn.Module):
    """Every state becomes its patch by one linear layer. (B, rows * columns, dim) -> (B, C, H, W)."""

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, patch**2 * channels)

    @property
    def last_weight(self) -> Tensor:
        return self.proj.weight

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return unpatchify(self.proj(x), self.patch, *grid)


class ConvHead(nn.Module):
    """States on their grid are doubled (nearest) and convolved up to pixels. (B, rows * columns, dim) -> (B, C, H, W).

    A 1x1 convolution to 128 channels, then 3x3 ones to 64, 32, 16, ..., 16 and the image's, ReLU between.

    Args:
        patch: a power of two, at least 2.
    """

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        doublings = patch.bit_length() - 1
        assert patch == 2**doublings >= 2, f"a patch of {patch} pixels is not reached by doubling"
        widths = [128, *[max(64 >> i, 16) for i in range(doublings - 1)], channels]
        first = nn.Conv2d(dim, widths[0], 1)
        self.convs = nn.ModuleList([first, *(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))])

    @property
    def last_weight(self) -> Tensor:
        return self.convs[-1].get_parameter("weight")

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.convs[0](x.transpose(1, 2).unflatten(2, grid))
        for conv in self.convs[1:]:
            x = conv(F.interpolate(x.relu(), scale_factor=2, mode="nearest"))
        return x


HEADS: dict[Head, type[LinearHead | ConvHead]] = {"linear": LinearHead, "conv": ConvHead}


class PixelDecoder(TokenDecoder):
    """Tokens to pixels, those in [-1, 1] but for errors: (B, L, C) -> (B, channels, H, W); see `TokenDecoder`."""

    def __init__(
        self, config: ViTConfig, image_size: int, channels: int, num_tokens: int, token_dim: int, *, head: Head
    ) -> None:
        super().__init__(config, image_size // config.patch, num_tokens, token_dim)
        self.patch = config.patch
        self.head = HEADS[head](config.dim, config.patch, channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, at which adversarial and other gradients are compared (VQGAN)."""
        return self.head.last_weight

    def paint(
        self,
        tokens: Tensor,
        size: tuple[int, int],
        *,
        cond: Tensor | None = None,
        cond_seen: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """(B, L, C) -> (B, channels, H, W) for a size (H, W) that the patches divide; see `TokenDecoder.forward`.

        Raises:
            InputError: a size that they do not.
        """
        grid = check_grid(size, self.patch)
        return self.head(self(tokens, grid, cond=cond, cond_seen=cond_seen, seen=seen), grid)

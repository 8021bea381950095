"""TiTok in one stage: an image as a short sequence without order, and its pixels back in one pass (An Image is Worth 32
Tokens, arXiv 2406.07550), trained at once as TA-TiTok is (arXiv 2501.07730), whose decoder may also read a text.

Encode: [class token, patches, queries] through a ViT; the queries' states become tokens, ids with a VQ bottleneck.
Decode: [class token, mask tokens, tokens, text] through a ViT; the mask tokens' states become pixels.
The two-stage models that were released first are in `zoo/compat/titok.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.kl import Posterior
from tok1d.config.fields import option
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, InputError
from tok1d.nn.embed import PatchEmbed, unpatchify
from tok1d.nn.vit import ViT
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, VQConfig, build_bottleneck
from tok1d.tokenizers.deterministic import (
    Size,
    check_grid,
    check_images,
    check_parts,
    checked_tokens,
    height_and_width,
    posterior_of,
    refuse_prefixes,
    refuse_sampling,
)


@dataclass
class TiTokViTConfig:
    """One side's ViT: learned positions, LayerNorm before the first block and after the last."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "small": {"dim": 512, "depth": 8, "heads": 8},
        "base": {"dim": 768, "depth": 12, "heads": 12},
        "large": {"dim": 1024, "depth": 24, "heads": 16},
    }

    patch: int = option(16, "side of a square patch, in pixels", ge=1)
    dim: int = option(768, "width; size=small, base or large sets width, depth and heads", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)

    def check(self) -> None:
        """Raise ConfigError on a width that the heads do not divide."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")

    def build(self, side: int) -> ViT:
        """The ViT for a grid of `side` patches a side."""
        return ViT(self.dim, self.depth, self.heads, side=side, mlp_ratio=self.mlp_ratio, pre_norm=True, eps=1e-5)


@dataclass
class TiTokConfig:
    """A one-stage TiTok. The defaults are those of the released BL-128 with its VQ of 8192 entries of 64 numbers."""

    name: str = option("titok", "which model this is")
    image_size: int = option(256, "side of the square images, in pixels; others are read too", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(128, "tokens an image becomes", ge=1)
    token_dim: int = option(64, "numbers of a token (of a codebook's entry)", ge=1)
    bottleneck: BottleneckConfig = option(VQConfig(size=8192, l2=False))
    encoder: TiTokViTConfig = option(TiTokViTConfig)
    decoder: TiTokViTConfig = option(TiTokViTConfig(dim=1024, depth=24, heads=16))
    reconstruction: Literal["mse", "l1"] = option("mse", "error of all pixels, which lie in [0, 1] for it")
    text: bool = option(False, "whether the decoder also reads a text's features (TA-TiTok)")
    text_length: int = option(77, "positions of a text; shorter texts take the first ones", ge=1)
    text_dim: int = option(768, "numbers of a text position's features (CLIP ViT-L/14: 768)", ge=1)

    def check(self) -> None:
        """Raise ConfigError on contradictions between the fields."""
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.num_tokens)


def scaled(*shape: int) -> nn.Parameter:
    """Normal with std width^(-1/2), as everything learned that enters the sequence; the width is the last axis."""
    return nn.Parameter(shape[-1] ** -0.5 * torch.randn(shape))


def init_titok(module: nn.Module) -> None:
    """Truncated normal with std 0.02 for linears and convolutions, `scaled` for class tokens and positions."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, ViT):
            for table in (part.cls_token, part.positions):
                if table is not None:
                    nn.init.normal_(table, std=table.shape[-1] ** -0.5)


class TiTokEncoder(nn.Module):
    """[class token, patches, queries] -> ViT -> the queries' states."""

    def __init__(self, config: TiTokViTConfig, image_size: int, channels: int, num_tokens: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch, channels, config.dim)
        self.vit = config.build(image_size // config.patch)
        self.queries = scaled(1, num_tokens, config.dim)
        self.query_positions = scaled(1, num_tokens, config.dim)
        init_titok(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, L, dim)."""
        patch = self.patch_embed.patch
        queries = (self.queries + self.query_positions).expand(len(images), -1, -1)
        return self.vit(self.patch_embed(images), (images.shape[-2] // patch, images.shape[-1] // patch), queries)[1]


class MaskDecoder(nn.Module):
    """[class token, mask tokens, tokens, text] -> ViT -> the mask tokens' states.

    Args:
        num_tokens: number L of tokens.
        token_dim: numbers C of a token.
        text: (positions T, width E) of a text's features; None reads none.
    """

    def __init__(
        self,
        config: TiTokViTConfig,
        image_size: int,
        num_tokens: int,
        token_dim: int,
        *,
        text: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.patch = config.patch
        self.token_embed = nn.Linear(token_dim, config.dim)
        self.vit = config.build(image_size // config.patch)
        self.mask_token = scaled(1, 1, config.dim)
        self.token_positions = scaled(1, num_tokens, config.dim)
        self.text_embed = nn.Linear(text[1], config.dim) if text else None
        self.text_positions = scaled(1, text[0], config.dim) if text else None
        init_titok(self)

    def states(self, tokens: Tensor, grid: tuple[int, int], text: Tensor | None = None) -> Tensor:
        """Tokens (B, L, C), the patches' (rows, columns), text (B, <= T, E) -> (B, rows * columns, dim)."""
        extra = self.token_embed(tokens) + self.token_positions
        if self.text_embed is not None and self.text_positions is not None:
            assert text is not None, "a decoder that reads text"
            extra = torch.cat([extra, self.text_embed(text) + self.text_positions[:, : text.shape[1]]], dim=1)
        masks = self.mask_token.expand(len(tokens), grid[0] * grid[1], -1)
        return self.vit(masks, grid, extra)[0]


class TiTokDecoder(MaskDecoder):
    """Tokens to pixels: a linear layer makes a patch of every state, a 3x3 convolution smooths the whole image."""

    def __init__(
        self,
        config: TiTokViTConfig,
        image_size: int,
        num_tokens: int,
        token_dim: int,
        *,
        channels: int,
        text: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(config, image_size, num_tokens, token_dim, text=text)
        self.proj = nn.Linear(config.dim, config.patch**2 * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in (self.proj, self.conv):
            init_titok(layer)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, at which adversarial and other gradients are compared (VQGAN)."""
        return self.conv.weight

    def paint(self, tokens: Tensor, size: tuple[int, int], text: Tensor | None = None) -> Tensor:
        """(B, L, C), text (B, <= T, E) -> (B, channels, H, W), in [0, 1] but for errors, for a size (H, W).

        Raises:
            InputError: a size that the patches do not divide.
        """
        grid = check_grid(size, self.patch)
        return self.conv(unpatchify(self.proj(self.states(tokens, grid, text)), self.patch, *grid))


class TiTok(nn.Module):
    """The tokenizer; see the module's text. Images (B, C, H, W) in [0, 1], tokens (B, L, C), with VQ ids (B, L)."""

    any_size: ClassVar[bool] = True
    adversarial: ClassVar[bool] = True

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        num_tokens, dim = config.num_tokens, config.token_dim
        self.encoder = TiTokEncoder(config.encoder, config.image_size, config.channels, num_tokens)
        self.bottleneck = build_bottleneck(config.bottleneck, config.encoder.dim, dim)
        init_titok(self.bottleneck)
        text = (config.text_length, config.text_dim) if config.text else None
        self.decoder = TiTokDecoder(
            config.decoder, config.image_size, num_tokens, dim, channels=config.channels, text=text
        )
        vocab = self.bottleneck.vocab_size
        self.spec = TokenSpec(num_tokens, dim=None if vocab else dim, vocab_size=vocab, deterministic=True)

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> tokens (B, L, C), with a KL bottleneck the means, or ids (B, L).

        Images may have any size that the patches divide: positions are resampled. `cond` is not used.

        Raises:
            InputError: another number of channels than the model's, or a size that the patches do not divide.
        """
        return self.bottleneck.encode(self._states(images))

    def _states(self, images: Tensor) -> Tensor:
        config = self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)
        return self.encoder(images)

    def posterior(self, images: Tensor, cond: Tensor | None = None) -> Posterior:
        """The normals (B, L, C) of which a KL bottleneck's decoder reads samples in training; `encode` gives the means.

        Raises:
            InputError: another bottleneck, or as `encode`.
        """
        return posterior_of(self.bottleneck, self._states(images))

    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: torch.Generator | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] of tokens (B, L, C) or ids (B, L); nothing is drawn at random.

        Args:
            cond: with `text` the features (B, T, E) of a text, T at most `text_length`; else not used.
            keep: all tokens are needed: None or L.
            size: of the images in pixels, a side or (H, W); default: the size of the training.

        Raises:
            InputError: fewer tokens, steps or guidance (there is nothing to step or guide), tokens of another shape,
                ids outside the vocabulary, a size that the patches do not divide, a text that is missing or unfit.
        """
        config = self.config
        shape = height_and_width(size, config.image_size)
        tokens = checked_tokens(
            tokens,
            config.num_tokens,
            dim=config.token_dim,
            vocab_size=self.spec.vocab_size,
            dtype=self.decoder.token_embed.weight.dtype,
        )
        refuse_sampling(steps, guidance)
        refuse_prefixes(keep, tokens)
        text = self._text(cond, len(tokens), "as cond")
        return self.decoder.paint(self.bottleneck.embed(tokens), shape, text).clamp(0, 1)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """The losses of a batch (images, ...); see `reconstruct`."""
        return self.reconstruct(batch, progress)[2]

    def reconstruct(self, batch: Any, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One training pass: the reconstruction, the latents, and the terms known without further networks.

        Args:
            batch: (images, ...); with `text` a third entry holds the texts' features (B, T, E).
            progress: share of the training done; nothing depends on it.

        Returns:
            The reconstruction (B, C, H, W) for [0, 1], not clamped; what the decoder read (B, L, C); and the scalars
            "loss_reconstruction" and the bottleneck's.

        Raises:
            InputError: images that do not fit the model, or texts that are missing or do not.
        """
        images, config = batch[0], self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)
        text = self._text(batch[2] if len(batch) > 2 else None, len(images), "as a batch's third entry")
        latents, terms = self.bottleneck(self.encoder(images))
        painted = self.decoder.paint(latents, (images.shape[-2], images.shape[-1]), text)
        error = F.mse_loss if config.reconstruction == "mse" else F.l1_loss
        return painted, latents, {"loss_reconstruction": error(painted, images), **terms}

    def _text(self, features: Tensor | None, batch: int, place: str) -> Tensor | None:
        """The text's features as the decoder wants them; None where it reads none."""
        config = self.config
        if not config.text:
            return None
        fits = features is not None and features.dim() == 3 and features.is_floating_point()
        if features is None or not fits or not self._text_fits(features, batch):
            expected = f"({batch}, 1..{config.text_length}, {config.text_dim})"
            found = "none" if features is None else f"{tuple(features.shape)} of {features.dtype}"
            raise InputError(f"text: this decoder reads features of shape {expected} {place}, got {found}")
        return features.to(self.decoder.token_embed.weight.dtype)

    def _text_fits(self, features: Tensor, batch: int) -> bool:
        length, dim = self.config.text_length, self.config.text_dim
        return (len(features), features.shape[2]) == (batch, dim) and 1 <= features.shape[1] <= length

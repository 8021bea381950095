"""TiTok, trained in one stage: an image as a short sequence of unordered tokens (An Image is Worth 32 Tokens, arXiv
2406.07550). Training follows TA-TiTok (arXiv 2501.07730), whose decoder can also read text.

Encode: [class token, patches, queries] pass a ViT; the states of the queries become tokens, with a VQ bottleneck ids.
Decode: [class token, mask tokens, tokens, text] pass a ViT; the states of the mask tokens become pixels.
The two-stage models that were published first are in `zoo/compat/titok.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.errors import ConfigError, InputError
from tok1d.losses.total import Batch, Tensors
from tok1d.nn.embed import unpatchify
from tok1d.nn.roles import PIXELS_IN, PIXELS_OUT, TOKENS, Roles
from tok1d.nn.vit import Rotary, ViT, ViTShape
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, VQConfig, build_bottleneck
from tok1d.tokenizers.checks import check_grid
from tok1d.tokenizers.deterministic import DeterministicTokenizer, ImageDecoder, check_parts
from tok1d.tokenizers.pixel_encoder import PixelEncoder


@dataclass
class TiTokViTConfig:
    """The ViT of encoder or decoder: learned positions, LayerNorm before the first block and after the last."""

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
    norm_eps: float = option(1e-5, "epsilon of the norms", gt=0)
    rotary: Rotary = option("none", "rotary positions of patches beside the learned ones, as in SMAP; not in TiTok")
    layer_scale: float = option(0.0, "initial LayerScale factor of every branch; 0, as in TiTok: no LayerScale", ge=0)
    registers: int = option(0, "number of learned register tokens after the class token; none in TiTok", ge=0)

    def check(self) -> None:
        """Raise ConfigError on a width that does not fit the heads."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.rotary != "none" and self.dim // self.heads % 4:
            raise ConfigError(
                f"heads: rotary positions need a head width that is a multiple of 4, got {self.dim // self.heads}"
            )

    def build(self, side: int) -> ViT:
        """The ViT for a grid of `side` x `side` patches."""
        sizes = (self.dim, self.depth, self.heads, side)
        return ViT(
            ViTShape(
                *sizes,
                mlp_ratio=self.mlp_ratio,
                registers=self.registers,
                rotation=self.rotary,
                layer_scale=self.layer_scale or None,
                pre_norm=True,
                eps=self.norm_eps,
            )
        )


@dataclass
class TiTokConfig:
    """A one-stage TiTok. The defaults are those of the released BL-128 with a VQ of 8192 entries of 64 channels."""

    name: str = option("titok", "which model this is")
    image_size: int = option(256, "side of the square training images, in pixels", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(128, "number of tokens", ge=1)
    token_dim: int = option(64, "channels of a token, or of a codebook entry", ge=1)
    bottleneck: BottleneckConfig = option(VQConfig(size=8192, l2=False))
    encoder: TiTokViTConfig = option(TiTokViTConfig)
    decoder: TiTokViTConfig = option(TiTokViTConfig(dim=1024, depth=24, heads=16))
    reconstruction: Literal["mse", "l1"] = option("mse", "reconstruction error, over all pixels in [0, 1]")
    text: bool = option(False, "whether the decoder also reads features of a text (TA-TiTok)")
    text_length: int = option(77, "largest number of text positions; shorter texts have the first ones", ge=1)
    text_dim: int = option(768, "width of the features of a text (CLIP ViT-L/14: 768)", ge=1)

    def check(self) -> None:
        """Raise ConfigError on fields that contradict each other."""
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.num_tokens)


def scaled(*shape: int) -> nn.Parameter:
    """A learned part of the sequence, initialised from a normal with std width^(-1/2); the width is the last axis."""
    return nn.Parameter(shape[-1] ** -0.5 * torch.randn(shape))


def init_titok(module: nn.Module) -> None:
    """Truncated normal with std 0.02 for linear layers and convolutions, as `scaled` for class tokens and positions."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, ViT):
            for table in (part.cls_token, part.positions):
                if table is not None:
                    nn.init.normal_(table, std=table.shape[-1] ** -0.5)


class TiTokEncoder(PixelEncoder):
    """A `PixelEncoder` with TiTok's initial weights: images (B, C, H, W) in [0, 1] -> states (B, L, dim)."""

    def __init__(self, config: TiTokViTConfig, image_size: int, channels: int, num_tokens: int) -> None:
        super().__init__(config, image_size, channels, num_tokens)
        init_titok(self)

    def _new_queries(self, num_tokens: int, dim: int) -> tuple[nn.Parameter, nn.Parameter]:
        return scaled(1, num_tokens, dim), scaled(1, num_tokens, dim)


class MaskDecoder(nn.Module):
    """[class token, mask tokens, tokens, text] -> ViT -> the states of the mask tokens, one per patch.

    Args:
        config: the ViT.
        image_size: side of the square training images, in pixels.
        num_tokens: number L of tokens.
        token_dim: channels C of a token.
        text: (T, E), positions and width of the features of a text; None: no text.
    """

    roles: ClassVar[Roles] = {"token_positions": (TOKENS,)}

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
        """Tokens (B, L, C), a grid (rows, columns), text (B, at most T, E) -> (B, rows * columns, dim)."""
        extra = self.token_embed(tokens) + self.token_positions
        if self.text_embed is not None and self.text_positions is not None:
            assert text is not None, "this decoder reads text"
            extra = torch.cat([extra, self.text_embed(text) + self.text_positions[:, : text.shape[1]]], dim=1)
        masks = self.mask_token.expand(tokens.shape[0], grid[0] * grid[1], -1)
        return self.vit(masks, grid, extra)[0]


class TiTokDecoder(MaskDecoder, ImageDecoder):
    """Tokens to pixels: a linear layer from every state to its patch, then a 3x3 convolution over the image."""

    roles: ClassVar[Roles] = {
        **MaskDecoder.roles,
        "proj": (PIXELS_OUT,),
        "conv.weight": (PIXELS_IN, PIXELS_OUT),
        "conv.bias": (PIXELS_OUT,),
    }

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
        """The weight of the last layer, for the adaptive adversarial weight (VQGAN, arXiv 2012.09841, equation 7)."""
        return self.conv.weight

    def decode(self, tokens: Tensor, size: tuple[int, int], text: Tensor | None = None) -> Tensor:
        """Tokens (B, L, C), text (B, at most T, E) -> pixels (B, channels, H, W), nominally in [0, 1].

        Raises:
            InputError: a size that the patches do not divide.
        """
        grid = check_grid(size, self.patch)
        return self.conv(unpatchify(self.proj(self.states(tokens, grid, text)), self.patch, *grid))


class TiTok(DeterministicTokenizer):
    """Images (B, C, H, W) in [0, 1] <-> tokens (B, L, C), or with a VQ bottleneck ids (B, L).

    With `config.text` the `cond` of `decode` holds the features (B, T, E) of a text; the encoder does not use them.
    """

    signed: ClassVar[bool] = False

    config: TiTokConfig
    encoder: TiTokEncoder
    decoder: TiTokDecoder

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
        length = num_tokens * self.bottleneck.levels
        self.spec = TokenSpec(length, dim=None if vocab else dim, vocab_size=vocab, deterministic=True)

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor, Tensors]:
        """One forward pass of training, without LPIPS and the adversarial loss.

        Args:
            batch: (images, ...); with `text` the third entry holds the features (B, T, E) of the texts.
            progress: not used.

        Returns:
            The reconstruction (B, C, H, W), nominally in [0, 1], not clamped; the decoder's input (B, L, C);
            the scalars "loss_reconstruction" and those of the bottleneck.

        Raises:
            InputError: images or texts that do not fit the model.
        """
        images = batch[0]
        self._check_images(images)
        text = self._checked_text(batch[2] if len(batch) > 2 else None, len(images), "as a batch's third entry")
        latents, terms = self.bottleneck(self._states(images, None))
        pixels = self._pixels(latents, (images.shape[-2], images.shape[-1]), text, None)
        return (
            self._unsigned(pixels),
            latents,
            {"loss_reconstruction": self._pixel_error(self.config.reconstruction, pixels, images), **terms},
        )

    def _pixels(self, tokens: Tensor, size: tuple[int, int], cond: Tensor | None, visible: Tensor | None) -> Tensor:
        return self.decoder.decode(tokens, size, cond)

    def _decoder_cond(self, cond: Tensor | None, tokens: Tensor) -> Tensor | None:
        return self._checked_text(cond, len(tokens), "as cond")

    def _checked_text(self, features: Tensor | None, batch: int, place: str) -> Tensor | None:
        """Features of texts in the precision of the weights; None for a decoder without text."""
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

"""The two-stage TiTok that was released first (L-32, B-64, S-128; arXiv 2406.07550, section 3.3).

Its decoder predicts codes of another tokenizer, MaskGIT-VQGAN; stage two paints the mixture of those codes with that
tokenizer's convolutional decoder and trains both decoders on. Published weights also expect the queries' states in an
order that was no intention (`legacy_order`) and residual blocks that forget their input (`PixelBlock`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import VQConfig, build_bottleneck
from tok1d.tokenizers.deterministic import (
    Size,
    check_grid,
    check_images,
    check_parts,
    checked_tokens,
    height_and_width,
    refuse_prefixes,
    refuse_sampling,
)
from tok1d.tokenizers.titok import MaskDecoder, TiTokEncoder, TiTokViTConfig, init_titok

GROUPS = 32  # of every GroupNorm


@dataclass
class PixelsConfig:
    """The pixel decoder of MaskGIT-VQGAN. The defaults are the released one's."""

    code_dim: int = option(256, "numbers of a code", ge=1)
    width: int = option(128, "channels of the last level, a multiple of 32", ge=GROUPS)
    mult: list[int] = option([1, 1, 2, 2, 4], "channels of a level over the last one's; each but one doubles", ge=1)
    blocks: int = option(2, "residual blocks of a level", ge=1)

    def check(self) -> None:
        """Raise ConfigError on channels that the normalisation groups do not divide, or no level."""
        if self.width % GROUPS:
            raise ConfigError(f"width: expected a multiple of {GROUPS}, got {self.width}")
        if not self.mult:
            raise ConfigError("mult: expected at least one level, got []")


@dataclass
class LegacyTiTokConfig:
    """A two-stage TiTok. The defaults are those of the released L-32."""

    name: str = option("titok_legacy", "which model this is")
    image_size: int = option(256, "side of the square images, in pixels; others are read too", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(32, "tokens an image becomes", ge=1)
    token_dim: int = option(12, "numbers of a codebook's entry", ge=1)
    bottleneck: VQConfig = option(VQConfig(size=4096))
    encoder: TiTokViTConfig = option(TiTokViTConfig(dim=1024, depth=24, heads=16))
    decoder: TiTokViTConfig = option(TiTokViTConfig(dim=1024, depth=24, heads=16))
    codes: int = option(1024, "codes of MaskGIT-VQGAN, one a patch of the decoder", ge=2)
    pixels: PixelsConfig = option(PixelsConfig)
    stage: Literal["train", "finetune"] = option(
        "finetune", "train predicts codes and paints nothing; in finetune the decoder paints and learns alone"
    )
    quantizer_weight: float = option(1.0, "weight of the bottleneck's losses beside that of the codes, in train", ge=0)

    def check(self) -> None:
        """Raise ConfigError on another bottleneck than VQ, or patches that do not divide the image."""
        if self.bottleneck.name != "vq":
            raise ConfigError(f"bottleneck.name: expected vq, got {self.bottleneck.name}")
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.num_tokens)


def legacy_order(states: Tensor) -> Tensor:
    """(B, L, dim) whose memory is read as (B, dim, L), as (B, L, dim) again: state and channel change places."""
    return states.flatten(1).unflatten(1, (states.shape[2], states.shape[1])).transpose(1, 2)


class PixelBlock(nn.Module):
    """Twice GroupNorm, SiLU and a 3x3 convolution without bias, added to the input.

    Where the number of channels changes, the shortcut reads the branch's result and the input is dropped.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, width, eps=1e-6) for width in (channels_in, channels))
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, channels, 1, bias=False) if channels != channels_in else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.shortcut is None else self.shortcut(h))


class PixelLevel(nn.Module):
    """Residual blocks at one resolution, then, but for the last level, a doubling (nearest) and a convolution."""

    def __init__(self, channels_in: int, channels: int, blocks: int, *, doubles: bool) -> None:
        super().__init__()
        widths = [channels_in, *[channels] * blocks]
        self.blocks = nn.ModuleList(PixelBlock(a, b) for a, b in pairwise(widths))
        self.upsample = nn.Conv2d(channels, channels, 3, padding=1) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2, mode="nearest"))


class PixelPainter(nn.Module):
    """Codes on their grid to pixels, (B, code_dim, h, w) -> (B, channels, s h, s w) with s = 2^(levels - 1).

    `levels` are in the published order: the first has the highest resolution and comes last.
    """

    def __init__(self, config: PixelsConfig, channels: int) -> None:
        super().__init__()
        widths = [config.width * mult for mult in config.mult]
        self.scale = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(PixelBlock(widths[-1], widths[-1]) for _ in range(config.blocks))
        self.levels = nn.ModuleList(
            PixelLevel(before, width, config.blocks, doubles=i > 0)
            for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True))
        )
        self.norm_out = nn.GroupNorm(GROUPS, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.conv_in(codes)
        for part in (*self.mid, *reversed(self.levels)):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class LegacyDecoder(MaskDecoder):
    """Tokens to logits of codes and, with `pixels`, their mixture to pixels."""

    def __init__(self, config: LegacyTiTokConfig) -> None:
        super().__init__(config.decoder, config.image_size, config.num_tokens, config.token_dim)
        dim = config.decoder.dim
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, config.codes)
        for layer in (self.fc1, self.fc2):
            init_titok(layer)
        self.codebook: nn.Parameter | None = None
        self.painter: PixelPainter | None = None
        if config.stage == "finetune":
            self.codebook = nn.Parameter(torch.randn(config.codes, config.pixels.code_dim))
            self.painter = PixelPainter(config.pixels, config.channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, at which adversarial and other gradients are compared (VQGAN)."""
        assert self.painter is not None, "stage one has no pixels"
        return self.painter.conv_out.weight

    def logits(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) and the patches' (rows, columns) -> (B, rows * columns, codes)."""
        return self.fc2(self.fc1(self.states(tokens, grid)).tanh())

    def mixture(self, logits: Tensor, grid: tuple[int, int]) -> Tensor:
        """The codes' mean under the logits' softmax. (B, rows * columns, codes) -> (B, code_dim, rows, columns)."""
        assert self.codebook is not None, "stage one has no codebook of pixels"
        return (logits.softmax(-1) @ self.codebook).transpose(1, 2).unflatten(2, grid)

    def paint(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, channels, H, W), in [0, 1] but for errors, for a size (H, W).

        Raises:
            InputError: a size that the patches do not divide, or weights of stage one, which paint nothing.
        """
        if self.painter is None:
            raise InputError(
                "stage=train: these weights predict codes of MaskGIT-VQGAN and paint no images, expected a model of "
                "stage=finetune"
            )
        grid = check_grid(size, self.patch)
        return self.painter(self.mixture(self.logits(tokens, grid), grid))


class LegacyTiTok(nn.Module):
    """The tokenizer; see the module's text. Images (B, C, H, W) in [0, 1], ids (B, L)."""

    adversarial: ClassVar[bool] = True

    def __init__(self, config: LegacyTiTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TiTokEncoder(config.encoder, config.image_size, config.channels, config.num_tokens)
        self.bottleneck = build_bottleneck(config.bottleneck, config.encoder.dim, config.token_dim)
        init_titok(self.bottleneck)
        self.decoder = LegacyDecoder(config)
        self.spec = TokenSpec(config.num_tokens, dim=None, vocab_size=config.bottleneck.size, deterministic=True)
        self.frozen = config.stage == "finetune"
        if self.frozen:
            for part in (self.encoder, self.bottleneck):
                part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LegacyTiTok:
        """As `nn.Module.train`; what stage two has frozen stays in eval mode."""
        super().train(mode)
        if self.frozen:
            for part in (self.encoder, self.bottleneck):
                part.eval()
        return self

    def states(self, images: Tensor) -> Tensor:
        """What the bottleneck reads of images: (B, C, H, W) in [0, 1] -> (B, L, dim).

        Raises:
            InputError: another number of channels than the model's, or a size that the patches do not divide.
        """
        config = self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)
        return legacy_order(self.encoder(images))

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> ids (B, L); `cond` is not used. Raises InputError as `states`."""
        return self.bottleneck.encode(self.states(images))

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
        """Images (B, channels, H, W) in [0, 1] of ids (B, L); arguments and errors as those of `TiTok.decode`."""
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
        return self.decoder.paint(self.bottleneck.embed(tokens), shape).clamp(0, 1)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """The losses of either stage; stage one wants MaskGIT-VQGAN's codes (B, N) as the batch's third entry.

        N are the decoder's patches, row by row. Stage one: "loss_code", the cross-entropy of the codes, and the
        bottleneck's terms (section 3.3), its losses times `quantizer_weight`. Stage two: see `reconstruct`.

        Raises:
            InputError: images or codes that do not fit the model.
        """
        if self.frozen:
            return self.reconstruct(batch, progress)[2]
        images = batch[0]
        latents, terms = self.bottleneck(self.states(images))
        grid = check_grid((images.shape[-2], images.shape[-1]), self.config.decoder.patch)
        logits = self.decoder.logits(latents, grid)
        codes = batch[2] if len(batch) > 2 else None
        if codes is None or codes.shape != logits.shape[:2] or codes.is_floating_point():
            found = "none" if codes is None else f"{tuple(codes.shape)} of {codes.dtype}"
            raise InputError(
                f"stage=train: expected batches of (images, labels, codes) with MaskGIT-VQGAN's codes of shape "
                f"{tuple(logits.shape[:2])}, got {found}"
            )
        weighted = {
            name: self.config.quantizer_weight * term if name.startswith("loss_") else term
            for name, term in terms.items()
        }
        return {"loss_code": F.cross_entropy(logits.flatten(0, 1), codes.flatten()), **weighted}

    def reconstruct(self, batch: Any, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Stage two's pass: encoder, queries and codebook are frozen, both decoders learn.

        Returns:
            The reconstruction (B, C, H, W) for [0, 1], not clamped; what the decoder read (B, L, C); and the scalar
            "loss_reconstruction", the mean squared error.

        Raises:
            ConfigError: a pixel decoder whose patches are not those of the ViT, so that sizes differ.
            InputError: images that do not fit the model, or a model of stage one.
        """
        images = batch[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            latents = self.bottleneck(self.states(images))[0]
        painted = self.decoder.paint(latents, (images.shape[-2], images.shape[-1]))
        if painted.shape != images.shape:
            raise ConfigError(
                f"pixels.mult: {len(self.config.pixels.mult)} levels paint {painted.shape[-2]}x{painted.shape[-1]} of "
                f"{images.shape[-2]}x{images.shape[-1]} images, expected patches of decoder.patch "
                f"{self.config.decoder.patch}"
            )
        return painted, latents, {"loss_reconstruction": F.mse_loss(painted, images)}

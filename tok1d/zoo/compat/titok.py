"""The two-stage TiTok that was published first (L-32, B-64, S-128; arXiv 2406.07550, section 3.3).

Stage one: the decoder predicts the codes of another tokenizer, MaskGIT-VQGAN. Stage two: the convolutional decoder of
that tokenizer turns the expected codes into pixels, and both decoders are trained further.

Two details of the released code are needed for its weights: the encoder's states are passed on in transposed memory
order (`legacy_order`), and residual blocks that change the number of channels drop their input (`PixelBlock`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError, InputError
from tok1d.losses.total import Batch, Tensors
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import VQConfig, build_bottleneck
from tok1d.tokenizers.checks import check_grid
from tok1d.tokenizers.deterministic import DeterministicTokenizer, ImageDecoder, check_parts
from tok1d.tokenizers.titok import MaskDecoder, TiTokEncoder, TiTokViTConfig, init_titok

GROUPS = 32  # of every GroupNorm


@dataclass
class PixelsConfig:
    """The convolutional decoder of MaskGIT-VQGAN. The defaults are those of the release."""

    code_dim: int = option(256, "channels of a code", ge=1)
    width: int = option(128, "channels of the level with the highest resolution, a multiple of 32", ge=GROUPS)
    mult: list[int] = option([1, 1, 2, 2, 4], "channels of each level over `width`; all but one upsample by 2", ge=1)
    blocks: int = option(2, "residual blocks per level", ge=1)

    def check(self) -> None:
        """Raise ConfigError on channels that are no multiple of the normalisation groups, or no level."""
        if self.width % GROUPS:
            raise ConfigError(f"width: expected a multiple of {GROUPS}, got {self.width}")
        if not self.mult:
            raise ConfigError("mult: expected at least one level, got []")


@dataclass
class LegacyTiTokConfig:
    """A two-stage TiTok. The defaults are those of the released L-32."""

    name: str = option("titok_legacy", "which model this is")
    image_size: int = option(256, "side of the square training images, in pixels", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(32, "number of tokens", ge=1)
    token_dim: int = option(12, "channels of a codebook entry", ge=1)
    bottleneck: VQConfig = option(VQConfig(size=4096))
    encoder: TiTokViTConfig = option(TiTokViTConfig(dim=1024, depth=24, heads=16))
    decoder: TiTokViTConfig = option(TiTokViTConfig(dim=1024, depth=24, heads=16))
    codes: int = option(1024, "number of codes of MaskGIT-VQGAN, which has one per patch of the decoder", ge=2)
    pixels: PixelsConfig = option(PixelsConfig)
    stage: Literal["train", "finetune"] = option(
        "finetune", "train: stage one, which predicts codes; finetune: stage two, which trains the decoders on pixels"
    )
    quantizer_weight: float = option(1.0, "train: weight of the losses of the bottleneck", ge=0)

    def check(self) -> None:
        """Raise ConfigError on another bottleneck than VQ, or patches that do not fit the image size."""
        if self.bottleneck.name != "vq":
            raise ConfigError(f"bottleneck.name: expected vq, got {self.bottleneck.name}")
        if self.bottleneck.levels > 1:
            raise ConfigError(f"bottleneck.levels: expected 1 for the released model, got {self.bottleneck.levels}")
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.num_tokens)


def legacy_order(states: Tensor) -> Tensor:
    """States (B, L, dim), their memory read as (B, dim, L) and transposed back to (B, L, dim), as the release does."""
    return states.flatten(1).unflatten(1, (states.shape[2], states.shape[1])).transpose(1, 2)


class PixelBlock(nn.Module):
    """x + branch(x), where the branch is twice [GroupNorm, SiLU, 3x3 convolution without bias].

    Where the number of channels changes, the result is h + shortcut(h) with h = branch(x), as in the release.
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
    """Residual blocks at one resolution, then with `doubles` nearest upsampling by 2 and a convolution."""

    def __init__(self, channels_in: int, channels: int, blocks: int, *, doubles: bool) -> None:
        super().__init__()
        widths = [channels_in, *[channels] * blocks]
        self.blocks = nn.ModuleList(PixelBlock(a, b) for a, b in pairwise(widths))
        self.upsample = nn.Conv2d(channels, channels, 3, padding=1) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2, mode="nearest"))


class CodeDecoder(nn.Module):
    """Codes (B, code_dim, h, w) -> pixels (B, channels, s h, s w) with s = 2^(levels - 1).

    `levels` are stored in the published order: the first has the highest resolution and is computed last.
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


class LegacyDecoder(MaskDecoder, ImageDecoder):
    """Tokens to logits of codes, and in stage two the expected codes to pixels."""

    def __init__(self, config: LegacyTiTokConfig) -> None:
        super().__init__(config.decoder, config.image_size, config.num_tokens, config.token_dim)
        dim = config.decoder.dim
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, config.codes)
        for layer in (self.fc1, self.fc2):
            init_titok(layer)
        self.codebook: nn.Parameter | None = None
        self.painter: CodeDecoder | None = None  # the name of its weights in published model folders
        if config.stage == "finetune":
            self.codebook = nn.Parameter(torch.randn(config.codes, config.pixels.code_dim))
            self.painter = CodeDecoder(config.pixels, config.channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, for the adaptive adversarial weight (VQGAN, arXiv 2012.09841, equation 7)."""
        assert self.painter is not None, "stage one has no pixels"
        return self.painter.conv_out.weight

    def logits(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, L, C), a grid (rows, columns) -> logits (B, rows * columns, codes)."""
        return self.fc2(self.fc1(self.states(tokens, grid)).tanh())

    def expected_codes(self, logits: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits (B, rows * columns, codes) -> the mean code under their softmax, (B, code_dim, rows, columns)."""
        assert self.codebook is not None, "stage one has no codebook of pixels"
        return (logits.softmax(-1) @ self.codebook).transpose(1, 2).unflatten(2, grid)

    def decode(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, L, C) -> pixels (B, channels, H, W) of a size (H, W), nominally in [0, 1].

        Raises:
            InputError: a size that the patches do not divide, or a decoder of stage one, which has no pixels.
        """
        if self.painter is None:
            raise InputError(
                "stage=train: these weights predict codes of MaskGIT-VQGAN and decode no images, expected a model of "
                "stage=finetune"
            )
        grid = check_grid(size, self.patch)
        return self.painter(self.expected_codes(self.logits(tokens, grid), grid))


class LegacyTiTok(DeterministicTokenizer):
    """Images (B, C, H, W) in [0, 1] <-> ids (B, L)."""

    any_size: ClassVar[bool] = False
    signed: ClassVar[bool] = False

    config: LegacyTiTokConfig
    encoder: TiTokEncoder
    decoder: LegacyDecoder

    def __init__(self, config: LegacyTiTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TiTokEncoder(config.encoder, config.image_size, config.channels, config.num_tokens)
        self.bottleneck = build_bottleneck(config.bottleneck, config.encoder.dim, config.token_dim)
        init_titok(self.bottleneck)
        self.decoder = LegacyDecoder(config)
        self.spec = TokenSpec(config.num_tokens, dim=None, vocab_size=config.bottleneck.size, deterministic=True)
        if config.stage == "finetune":
            self.freeze_encoder()

    def states(self, images: Tensor) -> Tensor:
        """The input of the bottleneck: images (B, C, H, W) in [0, 1] -> (B, L, dim).

        Raises:
            InputError: images with another number of channels, or a size that the patches do not divide.
        """
        return self._encoded(images, None)

    def _states(self, images: Tensor, cond: Tensor | None) -> Tensor:
        return legacy_order(super()._states(images, cond))

    def losses(self, batch: Batch, progress: float) -> Tensors:
        """The scalars of a training step of either stage.

        Stage one: "loss_code", the cross-entropy of MaskGIT-VQGAN's codes, which are the third entry of the batch as
        (B, N) ids of the decoder's N patches, row by row; and those of the bottleneck (section 3.3), its losses times
        `quantizer_weight`. Stage two: see `reconstruct`.

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

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor, Tensors]:
        """One forward pass of stage two: encoder and bottleneck are frozen, both decoders are trained.

        Returns:
            The reconstruction (B, C, H, W), nominally in [0, 1], not clamped; the decoder's input (B, L, C);
            the scalar "loss_reconstruction", the mean squared error.

        Raises:
            ConfigError: a pixel decoder whose output has another size than the images.
            InputError: images that do not fit the model, or a model of stage one.
        """
        images = batch[0]
        with self._encoder_grad():
            latents = self.bottleneck(self.states(images))[0]
        pixels = self.decoder.decode(latents, (images.shape[-2], images.shape[-1]))
        if pixels.shape != images.shape:
            raise ConfigError(
                f"pixels.mult: {len(self.config.pixels.mult)} levels decode {pixels.shape[-2]}x{pixels.shape[-1]} of "
                f"{images.shape[-2]}x{images.shape[-1]} images, expected patches of decoder.patch "
                f"{self.config.decoder.patch}"
            )
        return pixels, latents, {"loss_reconstruction": F.mse_loss(pixels, images)}

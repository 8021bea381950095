"""MAETok: a plain autoencoder with 1D tokens, trained by mask modelling (Masked Autoencoders Are Effective Tokenizers
for Diffusion Models, arXiv 2502.03444), and its relatives with a KL, VQ or SoftVQ bottleneck.

Encode: patches, some of them masked in training, and L queries through a ViT; the queries' states become tokens.
Decode: a ViT turns mask tokens and the tokens into pixels; shallow auxiliary decoders predict features of the masked
patches from the same tokens and are dropped afterwards.
Stage two: the encoder is frozen and the pixel decoder learns on, while fewer and fewer patches are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.bottleneck.kl import Posterior
from tok1d.config.fields import option
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, WeightsError
from tok1d.tokenizers.auxiliary import AuxiliaryConfig, AuxiliaryDecoder, LatentAlignment, LatentAlignmentConfig
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, PlainConfig, build_bottleneck
from tok1d.tokenizers.deterministic import (
    check_images,
    check_parts,
    checked_tokens,
    height_and_width,
    pixel_error,
    posterior_of,
    refuse_prefixes,
    refuse_sampling,
    to_images,
)
from tok1d.tokenizers.masking import MaskConfig, draw_mask, draw_ratios
from tok1d.tokenizers.pixel_decoder import PixelDecoder
from tok1d.tokenizers.pixel_encoder import PixelEncoder
from tok1d.tokenizers.vit import ViTConfig


@dataclass
class FinetuneConfig:
    """How fewer and fewer patches are masked in stage two (section 4.1)."""

    ratio: float = option(0.6, "share of masked patches at the start", ge=0, le=1)
    until: float = option(1.0, "share of the training at which it has reached 0, linearly", gt=0, le=1)

    def at(self, progress: float) -> float:
        """The share at training progress in [0, 1]."""
        return self.ratio * max(0.0, 1 - progress / self.until)


@dataclass
class MAETokConfig:
    """A MAETok tokenizer. The defaults are the paper's: ViT-B/16 on both sides, 128 tokens of 32 numbers, 256 px."""

    name: str = option("maetok", "which model this is")
    image_size: int = option(256, "side of the square images, in pixels; others are read too", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(128, "tokens L an image becomes; 0: the patches' states are the tokens", ge=0)
    token_dim: int = option(32, "numbers C of a token (of a codebook's entry)", ge=1)
    bottleneck: BottleneckConfig = option(PlainConfig())
    encoder: ViTConfig = option(ViTConfig())
    decoder: ViTConfig = option(ViTConfig(absolute=False))
    head: Literal["linear", "conv"] = option("linear", "how the decoder's states become pixels")
    mask: MaskConfig = option(MaskConfig())
    reconstruction: Literal["mse", "l1"] = option("mse", "error of all pixels, which lie in [-1, 1] for it")
    auxiliary: list[AuxiliaryConfig] = option([], "auxiliary decoders, of stage one")
    aux_loss_on: Literal["masked", "all"] = option("masked", "patches whose features the auxiliary losses compare")
    alignment: LatentAlignmentConfig = option(LatentAlignmentConfig())
    stage: Literal["train", "finetune"] = option(
        "train", "finetune is stage two: encoder and bottleneck are frozen, auxiliary decoders and alignment left out"
    )
    finetune: FinetuneConfig = option(FinetuneConfig())

    @property
    def length(self) -> int:
        """Tokens of an image of `image_size`."""
        return self.num_tokens or (self.image_size // self.encoder.patch) ** 2

    def check(self) -> None:
        """Contradictions between the fields."""
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.length, head=self.head)
        patch = self.decoder.patch
        if not self.num_tokens and patch != self.encoder.patch:
            raise ConfigError(f"decoder.patch: num_tokens=0 needs the encoder's {self.encoder.patch}, got {patch}")
        self._check_masking()

    def _check_masking(self) -> None:
        labels = [each.label for each in self.auxiliary]
        for i, each in enumerate(self.auxiliary):
            if each.target == "hog" and self.encoder.patch % each.cell:
                raise ConfigError(
                    f"auxiliary[{i}].cell: {each.cell} does not divide encoder.patch {self.encoder.patch}"
                )
            if each.label in labels[:i]:
                raise ConfigError(f"auxiliary[{i}].target: {each.label} is there twice, expected different targets")
        if self.mask.high == 0 and self.auxiliary and self.aux_loss_on == "masked" and self.stage == "train":
            raise ConfigError("aux_loss_on: mask.high=0 leaves no masked patch to learn from, expected all")
        if self.mask.high == 0 and self.stage == "finetune" and self.finetune.ratio > 0:
            raise ConfigError("finetune.ratio: a model trained with mask.high=0 has no mask token, expected 0")


class MAETok(nn.Module):
    """The tokenizer; see the module's text. Images (B, C, H, W) in [0, 1], tokens (B, L, C), with VQ ids (B, L)."""

    any_size: ClassVar[bool] = True
    adversarial: ClassVar[bool] = True

    def __init__(self, config: MAETokConfig) -> None:
        super().__init__()
        self.config = config
        tokens = {"num_tokens": config.num_tokens, "token_dim": config.token_dim}
        self.encoder = PixelEncoder(
            config.encoder, config.image_size, config.channels, config.num_tokens, masked=config.mask.high > 0
        )
        self.bottleneck = build_bottleneck(config.bottleneck, config.encoder.dim, config.token_dim)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.channels, **tokens, head=config.head)
        self.spec = TokenSpec(
            config.length,
            dim=None if self.bottleneck.vocab_size else config.token_dim,
            vocab_size=self.bottleneck.vocab_size,
            deterministic=True,
        )
        self.frozen = config.stage == "finetune"
        patch = config.encoder.patch
        grid = {"patch": patch, "side": config.image_size // patch, "channels": config.channels}
        self.auxiliary = nn.ModuleList(
            AuxiliaryDecoder(each, config.decoder, **grid, **tokens)
            for each in ([] if self.frozen else config.auxiliary)
        )
        aligned = bool(config.alignment.teacher) and not self.frozen
        self.alignment = (
            LatentAlignment(config.alignment, config.token_dim, repeat=config.num_tokens > 0) if aligned else None
        )
        if self.frozen:
            for part in (self.encoder, self.bottleneck):
                part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MAETok:
        """As `nn.Module.train`; what stage two has frozen stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
            self.bottleneck.eval()  # a codebook with revival would move
        return self

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> tokens (B, L, C), not normalised, or ids (B, L). Nothing is masked.

        Images may have any size that the patches divide. `cond` is not used.

        Raises:
            InputError: another number of channels than the model's, or a size that the patches do not divide.
        """
        self._check_images(images)
        return self.bottleneck.encode(self.encoder(2 * images - 1))

    def posterior(self, images: Tensor, cond: Tensor | None = None) -> Posterior:
        """The normals (B, L, C) of which a KL bottleneck's decoder reads samples in training; `encode` gives the means.

        Raises:
            InputError: another bottleneck, or as `encode`.
        """
        self._check_images(images)
        return posterior_of(self.bottleneck, self.encoder(2 * images - 1))

    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: torch.Generator | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] of tokens (B, L, C) or ids (B, L); nothing is drawn at random.

        Args:
            keep: all tokens are needed: None or L.
            size: of the images in pixels, a side or (H, W); default: the size of the training.

        Raises:
            InputError: fewer tokens, steps or guidance (there is nothing to step or guide), tokens of another shape,
                ids outside the vocabulary, a size that the patches do not divide.
        """
        height, width = height_and_width(size, self.config.image_size)
        tokens = self._checked(tokens, height, width)
        refuse_sampling(steps, guidance)
        refuse_prefixes(keep, tokens)
        return to_images(self.decoder.paint(self.bottleneck.embed(tokens), (height, width)))

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """The losses of a batch (images, labels) or (images, labels, captions); see `reconstruct`."""
        return self.reconstruct(batch, progress)[2]

    def reconstruct(
        self, batch: Any, progress: float, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One training pass: the reconstruction, the latents, and the terms known without further networks.

        Args:
            batch: (images, ...); a third entry holds captions, see `AuxiliaryDecoder.loss`.
            progress: share of the training done; stage two's masking depends on it.
            mask: (B, N) bool, True where the encoder does not see; default: drawn in train mode, none in eval mode.

        Returns:
            The reconstruction (B, C, H, W) for [0, 1], not clamped; what the decoder read (B, L, C); and the scalars
            "loss_reconstruction", the bottleneck's, "loss_NAME" of every auxiliary target, "loss_align" and, where
            patches are masked, "mask_ratio".
        """
        images = batch[0]
        self._check_images(images)
        mask = self.training_mask(images, progress) if mask is None else mask
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            latents, terms = self.bottleneck(self.encoder(2 * images - 1, mask))
        painted = self.decoder.paint(latents, (images.shape[-2], images.shape[-1]))
        error = pixel_error(self.config.reconstruction, painted, images)
        terms = {"loss_reconstruction": error, **({} if self.frozen else terms)}
        terms |= self._feature_terms(images, latents, mask, batch[2] if len(batch) > 2 else None)
        if mask is not None:
            terms["mask_ratio"] = mask.float().mean()
        return (painted + 1) / 2, latents, terms

    def _feature_terms(
        self, images: Tensor, latents: Tensor, mask: Tensor | None, words: Tensor | None
    ) -> dict[str, Tensor]:
        if self.config.aux_loss_on == "all":
            mask = None
        elif mask is None and len(self.auxiliary):
            patch = self.config.encoder.patch
            counts = images.shape[-2] // patch * (images.shape[-1] // patch)
            mask = torch.zeros(len(images), counts, dtype=torch.bool, device=images.device)
        terms = {
            f"loss_{each.config.label}": each.loss(latents, images, mask, words)
            for each in self.auxiliary
            if isinstance(each, AuxiliaryDecoder)
        }
        if self.alignment is not None:
            terms["loss_align"] = self.alignment.loss(latents, images)
        return terms

    def training_mask(self, images: Tensor, progress: float) -> Tensor | None:
        """(B, N) bool for images (B, C, H, W), True where a patch is masked; None in eval mode or without masking.

        Drawn from the global generator: stage one from the configured range, stage two at one share that falls to 0.
        """
        config, batch = self.config, len(images)
        if not self.training or self.encoder.mask_token is None:
            return None
        if self.frozen:
            ratios = torch.full((batch,), config.finetune.at(progress), device=images.device)
        else:
            ratios = draw_ratios(config.mask, batch, device=images.device)
        patch = config.encoder.patch
        return draw_mask(ratios, images.shape[-2] // patch * (images.shape[-1] // patch))

    def start_from(self, first: MAETok) -> None:
        """Take over the weights of a trained model: of stage one for stage two, or without its auxiliary decoders.

        Raises:
            WeightsError: a weight of this model is not there, or has another shape.
        """
        theirs = first.state_dict()
        unfit = [k for k, v in self.state_dict().items() if k not in theirs or theirs[k].shape != v.shape]
        if unfit:
            raise WeightsError(
                f"stage two: the first stage's model has no fitting weights for {unfit[0]} ({len(unfit)} in all); give "
                "both the same sizes, tokens and bottleneck"
            )
        self.load_state_dict({name: theirs[name] for name in self.state_dict()})

    def _check_images(self, images: Tensor) -> None:
        config = self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)

    def _checked(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens in the precision of the weights, or ids; as many as images of that size have."""
        patch = self.config.encoder.patch
        return checked_tokens(
            tokens,
            self.config.num_tokens or height // patch * (width // patch),
            dim=self.config.token_dim,
            vocab_size=self.spec.vocab_size,
            dtype=self.decoder.token_embed.weight.dtype,
            where=f" for {height}x{width} pixels",
        )

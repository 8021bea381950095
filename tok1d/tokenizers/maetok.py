"""MAETok: a plain autoencoder with 1D tokens, trained by mask modelling (Masked Autoencoders Are Effective Tokenizers
for Diffusion Models, arXiv 2502.03444), and its variants with a KL, VQ or SoftVQ bottleneck.

Encode: patches, some of them masked in training, and L queries pass a ViT; the states of the queries become tokens.
Decode: mask tokens and the tokens pass a ViT; the states of the mask tokens become pixels.
Training: shallow auxiliary decoders predict features of the masked patches from the same tokens (section 3.2). They are
not needed afterwards.
Stage two (section 4.1): the encoder is frozen and the pixel decoder is trained further, with a decreasing mask ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.losses.total import Batch, Tensors
from tok1d.tokenizers.auxiliary import AuxiliaryConfig, AuxiliaryDecoder, LatentAlignment, LatentAlignmentConfig
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, PlainConfig, build_bottleneck
from tok1d.tokenizers.deterministic import DeterministicTokenizer, check_parts
from tok1d.tokenizers.masking import MaskConfig, sample_mask, sample_ratios
from tok1d.tokenizers.pixel_decoder import PixelDecoder
from tok1d.tokenizers.pixel_encoder import PixelEncoder
from tok1d.tokenizers.vit import ViTConfig


@dataclass
class FinetuneConfig:
    """The mask ratio of stage two, which decreases linearly to 0 (section 4.1)."""

    ratio: float = option(0.6, "mask ratio at the beginning", ge=0, le=1)
    until: float = option(1.0, "share of the training after which it is 0", gt=0, le=1)

    def at(self, progress: float) -> float:
        """The mask ratio at training progress in [0, 1]."""
        return self.ratio * max(0.0, 1 - progress / self.until)


@dataclass
class MAETokConfig:
    """A MAETok tokenizer. The defaults are the paper's: ViT-B/16 on both sides, 128 tokens of 32 channels, 256 px."""

    name: str = option("maetok", "which model this is")
    image_size: int = option(256, "side of the square training images, in pixels", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(128, "number of tokens; 0: one per patch, the states of the patches", ge=0)
    token_dim: int = option(32, "channels of a token, or of a codebook entry", ge=1)
    bottleneck: BottleneckConfig = option(PlainConfig())
    encoder: ViTConfig = option(ViTConfig())
    decoder: ViTConfig = option(ViTConfig(absolute=False))
    head: Literal["linear", "conv"] = option("linear", "layers from the decoder's states to pixels")
    mask: MaskConfig = option(MaskConfig())
    reconstruction: Literal["mse", "l1"] = option("mse", "reconstruction error, over all pixels in [-1, 1]")
    auxiliary: list[AuxiliaryConfig] = option([], "auxiliary decoders of stage one")
    aux_loss_on: Literal["masked", "all"] = option("masked", "patches that count in the auxiliary losses")
    alignment: LatentAlignmentConfig = option(LatentAlignmentConfig())
    stage: Literal["train", "finetune"] = option(
        "train", "finetune: stage two, with frozen encoder and bottleneck, without auxiliary decoders and alignment"
    )
    finetune: FinetuneConfig = option(FinetuneConfig())

    @property
    def length(self) -> int:
        """Number of tokens of an image of `image_size`."""
        return self.num_tokens or (self.image_size // self.encoder.patch) ** 2

    def check(self) -> None:
        """Raise ConfigError on fields that contradict each other."""
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
                raise ConfigError(f"auxiliary[{i}].target: expected different targets, got {each.label} twice")
        if self.mask.high == 0 and self.auxiliary and self.aux_loss_on == "masked" and self.stage == "train":
            raise ConfigError("aux_loss_on: mask.high=0 masks no patches, expected all, got masked")
        if self.mask.high == 0 and self.stage == "finetune" and self.finetune.ratio > 0:
            raise ConfigError("finetune.ratio: a model trained with mask.high=0 has no mask token, expected 0")


class MAETok(DeterministicTokenizer):
    """Images (B, C, H, W) in [0, 1] <-> tokens (B, L, C), not normalised, or with a VQ bottleneck ids (B, L)."""

    training_only: ClassVar[tuple[str, ...]] = ("auxiliary", "alignment")

    config: MAETokConfig
    encoder: PixelEncoder
    decoder: PixelDecoder

    def __init__(self, config: MAETokConfig) -> None:
        super().__init__()
        self.config = config
        tokens = {"num_tokens": config.num_tokens, "token_dim": config.token_dim}
        self.encoder = PixelEncoder(
            config.encoder, config.image_size, config.channels, config.num_tokens, masked=config.mask.high > 0
        )
        self.bottleneck = build_bottleneck(config.bottleneck, config.encoder.dim, config.token_dim)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.channels, **tokens, head=config.head)
        vocab_size = self.bottleneck.vocab_size
        self.spec = TokenSpec(
            config.length * self.bottleneck.levels,
            dim=None if vocab_size else config.token_dim,
            vocab_size=vocab_size,
            deterministic=True,
        )
        first_stage, patch = config.stage == "train", config.encoder.patch
        grid = {"patch": patch, "side": config.image_size // patch, "channels": config.channels}
        self.auxiliary = nn.ModuleList(
            AuxiliaryDecoder(each, config.decoder, **grid, **tokens)
            for each in (config.auxiliary if first_stage else [])
        )
        self.alignment: LatentAlignment | None = None
        if config.alignment.teacher and first_stage:
            self.alignment = LatentAlignment(config.alignment, config.token_dim, repeat=config.num_tokens > 0)
        if not first_stage:
            self.freeze_encoder()

    def _num_tokens(self, size: tuple[int, int]) -> int:
        patch = self.config.encoder.patch
        return self.config.num_tokens or size[0] // patch * (size[1] // patch)

    def reconstruct(
        self, batch: Batch, progress: float, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensors]:
        """One forward pass of training (equations 6 and 8), without LPIPS and the adversarial loss.

        Args:
            batch: (images, labels) or (images, labels, captions); captions as in `AuxiliaryDecoder.loss`.
            progress: fraction of the training completed; the mask ratio of stage two depends on it.
            mask: (B, N) bool, True for masked patches; default: `training_mask`.

        Returns:
            The reconstruction (B, C, H, W), nominally in [0, 1], not clamped; the decoder's input (B, L, C);
            the scalars "loss_reconstruction", those of the bottleneck, "loss_NAME" of every auxiliary target,
            "loss_align" and, with masking, "mask_ratio".

        Raises:
            InputError: images that do not fit the model.
            Tok1dError: see `AuxiliaryDecoder.loss` and `LatentAlignment.loss`.
        """
        images = batch[0]
        self._check_images(images)
        mask = self.training_mask(images, progress) if mask is None else mask
        with self._encoder_grad():
            latents, terms = self.bottleneck(self.encoder(self._network_range(images), mask))
        pixels = self.decoder.decode(latents, (images.shape[-2], images.shape[-1]))
        terms = {
            "loss_reconstruction": self._pixel_error(self.config.reconstruction, pixels, images),
            **({} if self.frozen else terms),
        }
        terms |= self._feature_terms(images, latents, mask, batch[2] if len(batch) > 2 else None)
        if mask is not None:
            terms["mask_ratio"] = mask.float().mean()
        return self._unsigned(pixels), latents, terms

    def _feature_terms(self, images: Tensor, latents: Tensor, mask: Tensor | None, words: Tensor | None) -> Tensors:
        """The losses of the auxiliary decoders and of the alignment."""
        if self.config.aux_loss_on == "all":
            mask = None
        elif mask is None and len(self.auxiliary):
            counts = self._num_patches(images)
            mask = torch.zeros(len(images), counts, dtype=torch.bool, device=images.device)
        terms = {f"loss_{each.config.label}": each.loss(latents, images, mask, words) for each in self._auxiliary()}
        if self.alignment is not None:
            terms["loss_align"] = self.alignment.loss(latents, images)
        return terms

    def _auxiliary(self) -> list[AuxiliaryDecoder]:
        return [each for each in self.auxiliary if isinstance(each, AuxiliaryDecoder)]

    def _num_patches(self, images: Tensor) -> int:
        patch = self.config.encoder.patch
        return images.shape[-2] // patch * (images.shape[-1] // patch)

    def training_mask(self, images: Tensor, progress: float) -> Tensor | None:
        """(B, N) bool for images (B, C, H, W), True for masked patches; None in eval mode or without masking.

        Sampled with the global generator: in stage one with ratios of `config.mask`, in stage two with one ratio that
        depends on the progress of the training, in [0, 1].
        """
        config, batch = self.config, len(images)
        if not self.training or self.encoder.mask_token is None:
            return None
        if self.frozen:
            ratios = torch.full((batch,), config.finetune.at(progress), device=images.device)
        else:
            ratios = sample_ratios(config.mask, batch, device=images.device)
        return sample_mask(ratios, self._num_patches(images))

    def use_stand_ins(self, *, average: bool = False) -> None:
        """Replace the features of teachers by empty tensors of their shape; see `Tokenizer`."""
        num = (self.config.image_size // self.config.encoder.patch) ** 2
        for each in self._auxiliary():
            each.use_stand_in(num)
        if self.alignment is not None:
            self.alignment.use_stand_in(num)

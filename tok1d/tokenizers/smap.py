"""SMAP: 1D tokens under a shared class condition, trained with tail token dropping (arXiv 2603.25249).

Encode: patches, the class as one token, and N queries through a ViT; the queries' states become tokens.
Decode: mask tokens, the class again (out of the same table), and the first k tokens through a ViT; the image is painted
from the mask tokens. In training k is uniform over 0..N, so any prefix decodes, and the class alone does.

With `condition.kind=text` a caption stands where the class stands: the states of a frozen text encoder, one token a
sub-word, out of one projection (beyond the paper, which lists it among its limits).

Encoding and decoding want the label: reconstructions with the true label know more of an image than its tokens say, and
do not compare with those of tokenizers without labels. Without a label (cond=None) the table's null row takes its
place, on both sides; it is a trained row only with `label_dropout` > 0. So it is with captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.bottleneck.kl import Posterior
from tok1d.config.condition import ConditionConfig
from tok1d.config.fields import option
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, VQConfig, build_bottleneck
from tok1d.tokenizers.condition import ClassCondition, TextCondition
from tok1d.tokenizers.deterministic import (
    Size,
    check_images,
    check_parts,
    checked_tokens,
    height_and_width,
    pixel_error,
    posterior_of,
    refuse_sampling,
    to_images,
)
from tok1d.tokenizers.pixel_decoder import PixelDecoder
from tok1d.tokenizers.pixel_encoder import PixelEncoder
from tok1d.tokenizers.prefix import prefix_mask, resolve_keep
from tok1d.tokenizers.tail_drop import TailDropConfig, draw_tail
from tok1d.tokenizers.vit import ViTConfig

PLAIN_VIT: dict[str, Any] = {"class_token": False, "rotary": "none", "layer_scale": 0.0}


@dataclass
class SMAPConfig:
    """A SMAP tokenizer. The defaults are SMAP-B: ViT-B and ViT-L, 128 ids out of 8192 entries of 64 numbers, 256 px."""

    name: str = option("smap", "which model this is")
    image_size: int = option(256, "side of the square images, in pixels; others are read too", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(128, "tokens N an image becomes", ge=1)
    token_dim: int = option(64, "numbers of a token (of a codebook's entry); 16 for kl and softvq in the paper", ge=1)
    num_classes: int = option(1000, "classes of the images; the null class comes on top; text: not read", ge=1)
    use_condition: bool = option(True, "off: neither side sees the class, the ablation of the shared condition")
    condition: ConditionConfig = option(ConditionConfig())
    label_dropout: float = option(
        0.0, "probability of the null class, or of no caption, instead of the image's own in training", ge=0, le=1
    )
    bottleneck: BottleneckConfig = option(VQConfig(size=8192, l2=False, revival=True))
    encoder: ViTConfig = option(ViTConfig(**PLAIN_VIT))
    decoder: ViTConfig = option(ViTConfig(dim=1024, depth=24, heads=16, **PLAIN_VIT))
    head: Literal["linear", "conv"] = option("linear", "how the decoder's states become pixels")
    tail_drop: TailDropConfig = option(TailDropConfig())
    reconstruction: Literal["mse", "l1"] = option("mse", "error of all pixels, which lie in [-1, 1] for it")

    def check(self) -> None:
        """Contradictions between the fields."""
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.num_tokens, head=self.head)
        try:
            self.tail_drop.check_length(self.num_tokens)
        except ConfigError as error:
            raise ConfigError(f"tail_drop.{error}") from None
        if self.condition.is_text and not self.use_condition:
            raise ConfigError("condition.kind: use_condition=false is told nothing, expected class, got text")
        if self.label_dropout and not self.use_condition:
            raise ConfigError(
                f"label_dropout: use_condition=false has no label, expected 0, got {self.label_dropout:g}"
            )


class SMAP(nn.Module):
    """The tokenizer; see the module's text. Images (B, C, H, W) in [0, 1], tokens (B, N, C), with VQ ids (B, N)."""

    any_size: ClassVar[bool] = True
    adversarial: ClassVar[bool] = True

    def __init__(self, config: SMAPConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.encoder.dim, {"num_tokens": config.num_tokens, "token_dim": config.token_dim}
        self.condition = self._condition(config) if config.use_condition else None
        self.encoder = PixelEncoder(config.encoder, config.image_size, config.channels, config.num_tokens)
        self.bottleneck = build_bottleneck(config.bottleneck, width, config.token_dim)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.channels, **tokens, head=config.head)
        self.spec = TokenSpec(
            config.num_tokens,
            dim=None if self.bottleneck.vocab_size else config.token_dim,
            vocab_size=self.bottleneck.vocab_size,
            ordered=True,
            needs_label=config.use_condition,
            num_classes=0 if config.condition.is_text or not config.use_condition else config.num_classes,
            reads_captions=config.condition.is_text,
            deterministic=True,
        )

    @staticmethod
    def _condition(config: SMAPConfig) -> ClassCondition | TextCondition:
        told, widths, dropout = config.condition, (config.encoder.dim, config.decoder.dim), config.label_dropout
        if told.is_text:
            return TextCondition(told.dim, told.length, *widths, dropout=dropout)
        return ClassCondition(config.num_classes, *widths, dropout=dropout)

    def class_vectors(self) -> Tensor:
        """The shared table without its null row, (num_classes, encoder width), for generators that reuse it (CARD).

        Raises:
            InputError: a tokenizer without the condition, or of captions.
        """
        if self.condition is None:
            raise InputError("class vectors: this tokenizer was built with use_condition=false and has none")
        if isinstance(self.condition, TextCondition):
            raise InputError("class vectors: this tokenizer is told captions and has none")
        return self.condition.label_embed.table.weight[: self.config.num_classes]

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] and class ids (B,) -> tokens (B, N, C), or ids (B, N); nothing is dropped or drawn.

        Images may have any size that the patches divide. `cond` None is the null class; a tokenizer of captions takes
        their embeddings (B, T, E) instead.

        Raises:
            InputError: another number of channels than the model's, a size that the patches do not divide, or another
                condition than the model's.
        """
        self._check_images(images)
        return self.bottleneck.encode(self._states(images, self._given(cond, images)))

    def posterior(self, images: Tensor, cond: Tensor | None = None) -> Posterior:
        """The normals (B, N, C) of which a KL bottleneck's decoder reads samples in training; `encode` gives the means.

        Raises:
            InputError: another bottleneck, or as `encode`.
        """
        self._check_images(images)
        return posterior_of(self.bottleneck, self._states(images, self._given(cond, images)))

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
        """Images (B, channels, H, W) in [0, 1] of the first `keep` tokens and class ids (B,); nothing is drawn.

        Args:
            tokens: (B, k, C), or ids (B, k), with k <= N: shorter sequences are taken as prefixes.
            cond: None is the null class; a tokenizer of captions takes their embeddings (B, T, E).
            keep: how many tokens to use, 0..k, an int or (B,); 0 paints what the condition alone says.
            size: of the images in pixels, a side or (H, W); default: the size of the training.

        Raises:
            InputError: steps or guidance (there is nothing to step or guide), tokens of another shape, ids outside the
                vocabulary, another condition than the model's, a count out of range, a size that the patches do not
                divide.
        """
        refuse_sampling(steps, guidance)
        tokens = checked_tokens(
            tokens,
            self.config.num_tokens,
            dim=self.config.token_dim,
            vocab_size=self.spec.vocab_size,
            dtype=self.decoder.token_embed.weight.dtype,
            prefixes=True,
        )
        counts = resolve_keep(keep, len(tokens), tokens.shape[1], tokens.device)
        least, most = (int(counts.min()), int(counts.max())) if len(tokens) else (0, 0)
        painted = self._paint(
            self.bottleneck.embed(tokens[:, :most]),
            self._given(cond, tokens),
            height_and_width(size, self.config.image_size),
            seen=None if least == most else prefix_mask(counts, most),
        )
        return to_images(painted)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """The losses of a batch (images, labels or captions); see `reconstruct`."""
        return self.reconstruct(batch, progress)[2]

    def reconstruct(
        self, batch: Any, progress: float, *, keep: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One training pass: the reconstruction, the latents, and the terms known without further networks.

        All N tokens are regularised and meet the bottleneck's losses; only then are they cut (section 3.2).

        Args:
            batch: (images, class ids or captions, ...).
            keep: an int cuts all sequences there, (B,) masks those behind; default: drawn in train mode, all in eval
                mode.

        Returns:
            The reconstruction (B, C, H, W) for [0, 1], not clamped; the regularised tokens (B, N, C); and the scalars
            "loss_reconstruction", the bottleneck's, and "keep", the mean number of tokens kept.
        """
        images = batch[0]
        self._check_images(images)
        cond = self._given(batch[1], images)  # one draw of dropped labels serves both sides
        latents, terms = self.bottleneck(self._states(images, cond))
        keep = self.training_keep(images) if keep is None else keep
        seen, kept = None, latents
        if isinstance(keep, Tensor):
            seen = prefix_mask(keep, latents.shape[1])
        else:
            # With keep 0 too the tokens pass through their layers, whose gradients are then zero and not missing.
            kept = latents[:, :keep]
        painted = self._paint(kept, cond, (images.shape[-2], images.shape[-1]), seen=seen)
        terms = {"loss_reconstruction": pixel_error(self.config.reconstruction, painted, images), **terms}
        terms["keep"] = keep.float().mean() if isinstance(keep, Tensor) else images.new_tensor(float(keep))
        return (painted + 1) / 2, latents, terms

    def training_keep(self, images: Tensor) -> int | Tensor:
        """How many tokens the decoder sees of images (B, C, H, W): an int for all of them, or (B,); N in eval mode.

        Drawn from the global generator: an int from the CPU's, so that no step waits for another device.
        """
        drop, length = self.config.tail_drop, self.config.num_tokens
        if not self.training or not drop.enabled:
            return length
        if drop.keep_per == "sample":
            return draw_tail(drop, length, len(images), images.device)
        return int(draw_tail(drop, length, 1))

    def _given(self, cond: Tensor | None, batch: Tensor) -> Tensor | None:
        """The checked condition of a batch of images or tokens, on their device; None where none is read."""
        return None if self.condition is None else self.condition.given(cond, len(batch), batch.device)

    def _states(self, images: Tensor, cond: Tensor | None) -> Tensor:
        """The queries' states (B, N, encoder width)."""
        tokens, seen = (None, None) if cond is None or self.condition is None else self.condition.for_encoder(cond)
        return self.encoder(2 * images - 1, cond=tokens, cond_seen=seen)

    def _paint(self, tokens: Tensor, cond: Tensor | None, size: tuple[int, int], *, seen: Tensor | None) -> Tensor:
        """Pixels in [-1, 1] but for errors, of (B, k, C)."""
        told, told_seen = (None, None) if cond is None or self.condition is None else self.condition.for_decoder(cond)
        return self.decoder.paint(tokens, size, cond=told, cond_seen=told_seen, seen=seen)

    def _check_images(self, images: Tensor) -> None:
        config = self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)

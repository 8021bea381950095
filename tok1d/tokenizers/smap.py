"""SMAP: ordered 1D tokens with a class condition that encoder and decoder share, trained with tail token dropping
(arXiv 2603.25249).

Encode: patches, the class as one token, and N queries pass a ViT; the states of the queries become tokens.
Decode: mask tokens, the class from the same table, and the first k tokens pass a ViT; the states of the mask tokens
become pixels. In training k is uniform over 0..N, so every prefix can be decoded, also the class alone (k = 0).

With `condition.kind=text` a caption takes the place of the class: the states of a frozen text encoder, one token per
sub-word, through one projection; with `condition.kind=words` a learned vector for each word takes the place of these
states. This goes beyond the paper.

Encoder and decoder need the label; with `condition_on` one of them alone, or neither. A reconstruction with the true
label has more information about the image than its tokens, so its metrics do not compare with those of tokenizers
without labels. cond=None selects the null row of the
table, which is trained only with `label_dropout` > 0; the same holds for captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from tok1d.config.condition import ConditionConfig
from tok1d.config.fields import convert, option
from tok1d.config.written import plain_values
from tok1d.errors import ConfigError, InputError
from tok1d.losses.total import Batch, Tensors
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, VQConfig, build_bottleneck
from tok1d.tokenizers.condition import ClassCondition, TextCondition, Widths
from tok1d.tokenizers.deterministic import DeterministicTokenizer, check_parts
from tok1d.tokenizers.pixel_decoder import PixelDecoder
from tok1d.tokenizers.pixel_encoder import PixelEncoder
from tok1d.tokenizers.prefix import prefix_mask
from tok1d.tokenizers.tail_drop import TailDropConfig, mean_kept, sample_tail
from tok1d.tokenizers.vit import ViTConfig


def plain_vit(dim: int = 768, depth: int = 12, heads: int = 12, patch: int = 16) -> ViTConfig:
    """A ViT with learned positions alone: no class token, no rotary positions, no LayerScale."""
    return ViTConfig(patch=patch, dim=dim, depth=depth, heads=heads, class_token=False, rotary="none", layer_scale=0.0)


Sides = Literal["both", "encoder", "decoder", "none"]  # the networks that read the condition


def sides(value: object, key: str) -> Sides:
    """The value of `condition_on`; the option was `use_condition` before, true for both and false for none.

    Raises:
        ConfigError: another value.
    """
    plain = plain_values(value)
    if isinstance(plain, bool):
        return "both" if plain else "none"
    return cast(Sides, convert(Sides, value, key))


@dataclass
class SMAPConfig:
    """A SMAP tokenizer. The defaults are SMAP-B: ViT-B encoder, ViT-L decoder, 128 ids of 8192 entries, 256 px."""

    name: str = option("smap", "which model this is")
    image_size: int = option(256, "side of the square training images, in pixels", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(128, "number of tokens", ge=1)
    token_dim: int = option(64, "channels of a token, or of a codebook entry; the paper has 16 for kl and softvq", ge=1)
    num_classes: int = option(1000, "number of classes, without the null class; captions: not used", ge=1)
    condition_on: Sides = option(
        "both",
        "networks that read the condition: both (the paper), one, or none (its ablation)",
        was="use_condition",
        build=sides,
    )
    condition: ConditionConfig = option(ConditionConfig())
    label_dropout: float = option(0.0, "probability of the null class, or of no caption, in training", ge=0, le=1)
    bottleneck: BottleneckConfig = option(VQConfig(size=8192, l2=False, revival=True))
    encoder: ViTConfig = option(plain_vit())
    decoder: ViTConfig = option(plain_vit(dim=1024, depth=24, heads=16))
    head: Literal["linear", "conv"] = option("linear", "layers from the decoder's states to pixels")
    tail_drop: TailDropConfig = option(TailDropConfig())
    reconstruction: Literal["mse", "l1"] = option("mse", "reconstruction error, over all pixels in [-1, 1]")

    def check(self) -> None:
        """Raise ConfigError on fields that contradict each other."""
        check_parts(self.image_size, self.encoder, self.decoder, self.bottleneck, self.num_tokens, head=self.head)
        try:
            self.tail_drop.check_length(self.num_tokens)
        except ConfigError as error:
            raise ConfigError(f"tail_drop.{error}") from None
        if self.condition.is_text and self.condition_on == "none":
            raise ConfigError(
                f"condition.kind: condition_on=none has no condition, expected class, got {self.condition.kind}"
            )
        if self.label_dropout and self.condition_on == "none":
            raise ConfigError(f"label_dropout: condition_on=none has no label, expected 0, got {self.label_dropout:g}")


class SMAP(DeterministicTokenizer):
    """Images (B, C, H, W) in [0, 1] <-> tokens (B, N, C), or with a VQ bottleneck ids (B, N)."""

    config: SMAPConfig
    encoder: PixelEncoder
    decoder: PixelDecoder

    def __init__(self, config: SMAPConfig) -> None:
        super().__init__()
        self.config = config
        self.fixed_keep: int | None = None  # number of kept tokens in train mode, instead of a random one
        width, tokens = config.encoder.dim, {"num_tokens": config.num_tokens, "token_dim": config.token_dim}
        reads = config.condition_on
        self.encoder_reads, self.decoder_reads = reads in ("both", "encoder"), reads in ("both", "decoder")
        self.condition = self._build_condition(config) if reads != "none" else None
        self.encoder = PixelEncoder(config.encoder, config.image_size, config.channels, config.num_tokens)
        self.bottleneck = build_bottleneck(config.bottleneck, width, config.token_dim)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.channels, **tokens, head=config.head)
        vocab_size = self.bottleneck.vocab_size
        self.spec = TokenSpec(
            config.num_tokens * self.bottleneck.levels,
            dim=None if vocab_size else config.token_dim,
            vocab_size=vocab_size,
            ordered=True,
            needs_label=reads != "none",
            num_classes=0 if config.condition.is_text or reads == "none" else config.num_classes,
            reads_captions=config.condition.is_text,
            deterministic=True,
        )

    @staticmethod
    def _build_condition(config: SMAPConfig) -> ClassCondition | TextCondition:
        text, dropout, reads = config.condition, config.label_dropout, config.condition_on
        widths = Widths(config.encoder.dim, None if reads == "encoder" else config.decoder.dim, reads != "decoder")
        if text.is_text:
            return TextCondition(text.dim, text.length, widths, dropout=dropout, words=text.num_words)
        return ClassCondition(config.num_classes, widths, dropout=dropout)

    def class_vectors(self) -> Tensor:
        """The shared table without its null row, (num_classes, encoder width), for generators that reuse it (CARD).

        Raises:
            InputError: a tokenizer without a condition, or conditioned on captions.
        """
        if self.condition is None:
            raise InputError(
                "class vectors: expected a tokenizer with a class condition, got one with condition_on=none"
            )
        if isinstance(self.condition, TextCondition):
            raise InputError(
                "class vectors: expected a tokenizer with a class condition, got one conditioned on captions"
            )
        return self.condition.label_embed.table.weight[: self.config.num_classes]

    def reconstruct(
        self, batch: Batch, progress: float, *, keep: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensors]:
        """One forward pass of training, without LPIPS and the adversarial loss.

        All N tokens pass the bottleneck and its losses; the tail is dropped afterwards (section 3.2).

        Args:
            batch: (images, class ids (B,), or captions (B, T, E) or (B, T), ...).
            progress: fraction of the training completed, in [0, 1]; `tail_drop.after` depends on it.
            keep: number of kept tokens. An int cuts the sequences, (B,) int64 masks the dropped tokens; default:
                `training_keep`.

        Returns:
            The reconstruction (B, C, H, W), nominally in [0, 1], not clamped; all tokens (B, N, C) as the
            decoder reads them; the scalars "loss_reconstruction", those of the bottleneck, and "keep", the mean number
            of kept tokens.

        Raises:
            InputError: images or a condition that do not fit the model.
        """
        images = batch[0]
        self._check_images(images)
        cond = self._cond(batch[1], images)  # with label dropout: the same labels for both sides
        latents, terms = self.bottleneck(self._states(images, cond))
        keep = self.training_keep(images, progress) if keep is None else keep
        visible, kept = None, latents
        if isinstance(keep, Tensor):
            visible = prefix_mask(keep, latents.shape[1])
        else:
            # With keep = 0 the empty sequence still passes its layers: their gradients are zero instead of missing,
            # which DistributedDataParallel would not accept.
            kept = latents[:, :keep]
        pixels = self._pixels(kept, (images.shape[-2], images.shape[-1]), cond, visible)
        terms = {"loss_reconstruction": self._pixel_error(self.config.reconstruction, pixels, images), **terms}
        terms["keep"] = keep.float().mean() if isinstance(keep, Tensor) else images.new_tensor(float(keep))
        return self._unsigned(pixels), latents, terms

    @property
    def phases(self) -> tuple[float, ...]:
        """The share of the training after which tails are dropped and the loss is higher."""
        return (self.config.tail_drop.after,) if self.config.tail_drop.enabled else ()

    def training_keep(self, images: Tensor, progress: float = 1.0) -> int | Tensor:
        """Number of tokens kept of images (B, C, H, W): one int for all of them, or (B,) int64.

        N in eval mode, and before the share `tail_drop.after` of the training.

        Sampled with the global generator: an int with that of the CPU, so that no step synchronises with a GPU.
        """
        if self.fixed_keep is not None:
            return self.fixed_keep
        drop, length = self.config.tail_drop, self.config.num_tokens
        if not self.training or not drop.enabled or progress < drop.after:
            return length
        if drop.keep_per == "sample":
            return sample_tail(drop, length, len(images), images.device)
        return int(sample_tail(drop, length, 1))

    def use_stand_ins(self, *, average: bool = False) -> None:
        """Keep all tokens, the largest cost of a step, or with `average` the mean number; see `Tokenizer`."""
        drop, length = self.config.tail_drop, self.config.num_tokens
        varies = average and drop.enabled and drop.keep_per == "iteration"
        self.fixed_keep = round(mean_kept(drop, length)) if varies else length

    def _cond(self, cond: Tensor | None, batch: Tensor) -> Tensor | None:
        """The checked condition of a batch of images or tokens; None for a tokenizer without one."""
        return None if self.condition is None else self.condition.checked(cond, batch.shape[0], batch.device)

    def _encoder_cond(self, cond: Tensor | None, images: Tensor) -> Tensor | None:
        return self._cond(cond, images) if self.encoder_reads else None

    def _decoder_cond(self, cond: Tensor | None, tokens: Tensor) -> Tensor | None:
        return self._cond(cond, tokens) if self.decoder_reads else None

    def _states(self, images: Tensor, cond: Tensor | None) -> Tensor:
        condition = self.condition if self.encoder_reads else None
        tokens, visible = (None, None) if cond is None or condition is None else condition.for_encoder(cond)
        return self.encoder(self._network_range(images), cond=tokens, cond_visible=visible)

    def _pixels(self, tokens: Tensor, size: tuple[int, int], cond: Tensor | None, visible: Tensor | None) -> Tensor:
        condition = self.condition if self.decoder_reads else None
        extra, extra_visible = (None, None) if cond is None or condition is None else condition.for_decoder(cond)
        return self.decoder.decode(tokens, size, cond=extra, cond_visible=extra_visible, visible=visible)

"""The base class of tokenizers whose decoder is a single forward pass (MAETok, SMAP, TiTok), and its input checks."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.base import Bottleneck
from tok1d.bottleneck.kl import KL, Posterior
from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.diffusion.solver import Generators
from tok1d.errors import ConfigError, InputError
from tok1d.losses.total import Batch, Tensors
from tok1d.nn.precision import single
from tok1d.nn.values import has_values
from tok1d.tokenizers.base import Size, TokenizerConfig, TokenSpec
from tok1d.tokenizers.bottlenecks import BottleneckConfig, SoftVQConfig
from tok1d.tokenizers.checks import check_images, checked_tokens, height_and_width
from tok1d.tokenizers.model import TokenizerModel
from tok1d.tokenizers.prefix import prefix_mask, resolve_keep

Head = Literal["linear", "conv"]  # the layers from a decoder's states to pixels


class HasPatch(Protocol):
    """The configuration of an encoder or decoder."""

    @property
    def patch(self) -> int:
        """Side of a square patch in pixels."""
        ...


class DeterministicConfig(TokenizerConfig, Protocol):
    """The configuration of a tokenizer with patches on both sides."""

    @property
    def encoder(self) -> HasPatch: ...


class ImageDecoder(nn.Module):
    """A network from the tokens that it receives, (B, K, C), to pixels."""

    token_embed: nn.Linear  # the layer that reads tokens

    @property
    @abstractmethod
    def last_weight(self) -> Tensor:
        """The weight of the last layer."""

    @abstractmethod
    def decode(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, K, C) -> pixels (B, channels, H, W), in the tokenizer's range up to its error, not clamped."""


class DeterministicTokenizer(TokenizerModel):
    """Images -> `encoder` -> `bottleneck` -> tokens -> `decoder` -> images.

    The constructor of a subclass sets `config`, `spec`, `encoder`, `bottleneck` and `decoder`. A subclass implements
    `reconstruct`, and overrides `_states`, `_pixels` and the two `_cond` methods where it reads a condition.
    """

    any_size: ClassVar[bool] = True
    adversarial: ClassVar[bool] = True
    signed: ClassVar[bool] = True  # whether the networks work on pixels in [-1, 1]; otherwise in [0, 1]

    config: DeterministicConfig
    spec: TokenSpec
    encoder: nn.Module
    bottleneck: Bottleneck
    decoder: ImageDecoder
    frozen: bool = False  # whether encoder and bottleneck are constant: stage two trains the decoder only

    def freeze_encoder(self) -> None:
        """Make encoder and bottleneck constant."""
        self.frozen = True
        for part in (self.encoder, self.bottleneck):
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; frozen parts stay in eval mode, in which codebooks with revival do not change."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
            self.bottleneck.eval()
        return self

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last layer, for the adaptive adversarial weight (VQGAN, equation 7)."""
        return self.decoder.last_weight

    def encode_images(self, images: Tensor, cond: Tensor | None) -> Tensor:
        """See `TokenizerModel.encode`. Nothing is masked, dropped or random."""
        return self.bottleneck.encode(self._encoded(images, cond))

    def posterior(self, images: Tensor, cond: Tensor | None = None) -> Posterior:
        """The normal distributions over (B, K, C) of a KL bottleneck, whose means `encode` returns.

        Raises:
            InputError: another bottleneck, or as `encode`.
        """
        return posterior_of(self.bottleneck, self._encoded(images, cond))

    def decode_tokens(  # type: ignore[override]
        self,
        tokens: Tensor,
        cond: Tensor | None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: Generators | None = None,
        sampler: str | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """See `TokenizerModel.decode`; nothing is random, so `generator` is not used."""
        shape = height_and_width(size, self.config.image_size)
        tokens = self._checked_tokens(tokens, shape)
        refuse_sampling(steps, guidance, sampler)
        kept, visible = self._kept(tokens, keep)
        latents = self.bottleneck.embed(kept, visible)
        # A token of several ids is decoded from the first of them on.
        visible = None if visible is None else visible[:, :: self.bottleneck.levels]
        pixels = self._pixels(latents, shape, self._decoder_cond(cond, tokens), visible)
        return self._unsigned(pixels).clamp(0, 1)

    def decode_entries(self, entries: Tensor, cond: Tensor | None = None) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] from what the decoder reads: all entries (B, L, C) of a codebook.

        Any vectors may take the place of entries, as where entries are projected.
        """
        pixels = self._pixels(
            entries, height_and_width(None, self.config.image_size), self._decoder_cond(cond, entries), None
        )
        return self._unsigned(pixels).clamp(0, 1)

    def losses(self, batch: Batch, progress: float) -> Tensors:
        """The scalars of a training step; see `reconstruct`."""
        return self.reconstruct(batch, progress)[2]

    @abstractmethod
    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor, Tensors]:
        """One forward pass of training; see `ReconstructingTokenizer.reconstruct`."""

    def use_stand_ins(self, *, average: bool = False) -> None:
        """Prepare a model on the meta device for counting costs; see `Tokenizer`. Nothing to do by default."""

    def _encoder_cond(self, cond: Tensor | None, images: Tensor) -> Tensor | None:
        """The checked condition of the encoder, None where it reads none."""
        return None

    def _decoder_cond(self, cond: Tensor | None, tokens: Tensor) -> Tensor | None:
        """The checked condition of the decoder, None where it reads none."""
        return None

    def _encoded(self, images: Tensor, cond: Tensor | None) -> Tensor:
        self._check_images(images)
        return self._states(images, self._encoder_cond(cond, images))

    def _states(self, images: Tensor, cond: Tensor | None) -> Tensor:
        """Checked images in [0, 1] and a checked condition -> the input (B, K, dim) of the bottleneck."""
        return self.encoder(self._network_range(images))

    def _pixels(self, tokens: Tensor, size: tuple[int, int], cond: Tensor | None, visible: Tensor | None) -> Tensor:
        """The decoder's input (B, k, C) and a checked condition -> pixels in the networks' range, not clamped.

        Args:
            visible: (B, k) bool, True for tokens that the decoder uses; None: all. Only with ordered tokens.
        """
        return self.decoder.decode(tokens, size)

    def _num_tokens(self, size: tuple[int, int]) -> int:
        """Number of tokens of an image of that size (H, W)."""
        return self.config.num_tokens

    def _check_images(self, images: Tensor) -> None:
        config = self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)

    def _checked_tokens(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens in the precision of the weights, or ids; as many as images of that size have."""
        return checked_tokens(
            tokens,
            self._num_tokens(size) * self.bottleneck.levels,
            dim=self.config.token_dim,
            vocab_size=self.spec.vocab_size,
            dtype=self.decoder.token_embed.weight.dtype,
            prefixes=self.spec.ordered,
            where="" if self.config.num_tokens else f" for {size[0]}x{size[1]} pixels",
        )

    def _kept(self, tokens: Tensor, keep: int | Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens cut to the longest prefix in the batch, (B, k, ...), and (B, k) bool, None where all are kept."""
        if not self.spec.ordered:
            refuse_prefixes(keep, tokens)
            return tokens, None
        counts = resolve_keep(keep, tokens.shape[0], tokens.shape[1], tokens.device)
        if torch.compiler.is_compiling():  # a graph has one length
            return tokens, None if keep is None else prefix_mask(counts, tokens.shape[1])
        least, most = (int(counts.min()), int(counts.max())) if has_values(counts) else (0, 0)
        return tokens[:, :most], None if least == most else prefix_mask(counts, most)

    def _encoder_grad(self) -> AbstractContextManager[object]:
        """A context that turns gradients off if the encoder is frozen."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen)

    def _network_range(self, images: Tensor) -> Tensor:
        """Images in [0, 1], in the range of the networks."""
        return 2 * images - 1 if self.signed else images

    def _unsigned(self, pixels: Tensor) -> Tensor:
        """Pixels in the range of the networks, as images in [0, 1]; not clamped."""
        return (pixels + 1) / 2 if self.signed else pixels

    def _pixel_error(self, kind: Literal["mse", "l1"], pixels: Tensor, images: Tensor) -> Tensor:
        """The error of pixels in the networks' range against images in [0, 1], in float32."""
        return pixel_error(kind, pixels, self._network_range(single(images)))


def check_parts(
    image_size: int,
    encoder: HasPatch,
    decoder: HasPatch,
    bottleneck: BottleneckConfig,
    length: int,
    *,
    head: Head = "linear",
) -> None:
    """Raise ConfigError on patches, a head or codebooks that do not fit the image size or the number of tokens."""
    for part, net in (("encoder", encoder), ("decoder", decoder)):
        if image_size % net.patch:
            raise ConfigError(f"{part}.patch: {net.patch} does not divide image_size {image_size}")
    patch = decoder.patch
    if head == "conv" and (patch < 2 or patch & (patch - 1)):
        raise ConfigError(f"decoder.patch: head=conv upsamples by 2, expected 2, 4, 8, ..., got {patch}")
    if isinstance(bottleneck, SoftVQConfig) and not bottleneck.parts_divide(length):
        raise ConfigError(f"bottleneck.num_codebooks: {bottleneck.num_codebooks} does not divide {length} tokens")


def posterior_of(bottleneck: nn.Module, states: Tensor) -> Posterior:
    """The normal distributions of a KL bottleneck for states (B, K, dim); raises InputError on another bottleneck."""
    if not isinstance(bottleneck, KL):
        raise InputError(f"posterior: expected a tokenizer with a KL bottleneck, got {type(bottleneck).__name__}")
    return bottleneck.posterior(states)


def refuse_sampling(steps: int | None, guidance: float | Guidance, sampler: str | None = None) -> None:
    """Raise InputError on sampling steps, guidance or a sampler, which a deterministic decoder does not have."""
    if sampler is not None:
        raise InputError(f"sampler: expected none, because this decoder is a single forward pass, got {sampler!r}")
    if steps is not None:
        raise InputError(f"steps: expected none, because this decoder is a single forward pass, got {steps}")
    guide = as_guidance(guidance)
    if guide.scale != 1 or guide.weak_model is not None:
        raise InputError(f"guidance: expected 1, because this decoder is deterministic, got {guide.scale}")


def refuse_prefixes(keep: int | Tensor | None, tokens: Tensor) -> None:
    """Raise InputError on a `keep` below the number of tokens (B, K, ...), which are unordered."""
    length = tokens.shape[1]
    if keep is not None and int(resolve_keep(keep, len(tokens), length, tokens.device).min()) < length:
        raise InputError(f"keep: these tokens have no order, expected all {length}, got {keep}")


def pixel_error(kind: Literal["mse", "l1"], pixels: Tensor, target: Tensor) -> Tensor:
    """Mean squared or mean absolute error of two tensors of the same shape, computed in float32."""
    return (F.mse_loss if kind == "mse" else F.l1_loss)(single(pixels), target)

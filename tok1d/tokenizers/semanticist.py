"""Semanticist: ordered tokens, similar to principal components, that a diffusion decoder turns into images ("Principal
Components" Enable A New Language of Images, arXiv 2503.08685).

Encode: patches and K queries pass a causal ViT; the states of the queries are projected to D channels and standardised.
Drop: training keeps the first k ~ U{1..K} tokens and replaces the others by null tokens (section 4.3).
Decode: a DiT conditioned on the tokens denoises latents, as a discrete DDPM with learned variance (the paper) or as a
    continuous flow, which needs fewer steps.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from tok1d.bottleneck.normalised import Normalised
from tok1d.diffusion.ddpm import Chain
from tok1d.diffusion.few_step import FewStepObjective
from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Generators, randn_from
from tok1d.errors import ConfigError
from tok1d.losses.features import Features, TeacherName, empty_features
from tok1d.losses.total import Batch, Tensors
from tok1d.tokenizers.base import Size, TokenSpec
from tok1d.tokenizers.bottlenecks import build_vq
from tok1d.tokenizers.checks import check_images, check_size, height_and_width
from tok1d.tokenizers.denoising import DiffusionDecoding
from tok1d.tokenizers.latent_space import Autoencoder, latent_space
from tok1d.tokenizers.prefix import prefix_mask, sample_keep
from tok1d.tokenizers.query_encoder import QueryEncoder
from tok1d.tokenizers.semanticist_config import FlowConfig, NestedConfig, SemanticistConfig
from tok1d.tokenizers.token_dit import TokenDiT

__all__ = ["FlowConfig", "NestedConfig", "Semanticist", "SemanticistConfig"]


class Semanticist(DiffusionDecoding):
    """Images (B, C, H, W) in [0, 1] <-> tokens (B, K, D), or with `quantiser` ids (B, K)."""

    any_size: ClassVar[bool] = False
    adversarial: ClassVar[bool] = False

    config: SemanticistConfig

    def __init__(self, config: SemanticistConfig) -> None:
        super().__init__()
        self.config = config
        self.quantiser = build_vq(config.quantiser, 0, config.token_dim) if config.quantiser else None
        vocab_size = self.quantiser.vocab_size if self.quantiser else None
        dim = None if vocab_size else config.token_dim
        self.spec = TokenSpec(config.num_tokens, dim, vocab_size=vocab_size, ordered=True)
        self.latent_space = latent_space(config.latents, config.channels)
        self.encoder = QueryEncoder(config.encoder, config.image_size, config.channels, config.num_tokens)
        self.bottleneck = Normalised(
            config.encoder.dim, config.token_dim, normalise=config.normalise, eps=config.normalise_eps
        )
        discrete = config.objective == "ddpm"
        latent_channels = self.latent_space.channels
        side = config.image_size // self.latent_space.factor
        self.latent_shape = (latent_channels, side, side)
        self.decoder = TokenDiT(
            config.decoder,
            channels=latent_channels,
            size=self.latent_shape[-1],
            num_tokens=config.num_tokens,
            token_dim=config.token_dim,
            out_channels=latent_channels * (2 if discrete else 1),
            time_scale=1.0 if discrete else 1000.0,
            intervals=config.flow.few_step is not None,
        )
        self.chain = Chain.named("linear")
        flow = config.flow
        self.objective = FlowObjective(Path(flow.path), flow.prediction, flow.weight_power)
        self.times = Times(flow.times, flow.times_mean, flow.times_std)
        if flow.few_step is not None:
            self.few_step = FewStepObjective(flow.few_step, self.objective, self.times, flow.shift)
        self.teacher: Features | None = None  # set by zoo.pretrained.teachers.give_teachers
        if self.decoder.projector is not None and not config.alignment.teacher:
            # Converted weights have a projector. Without a teacher it gets no gradient, for which
            # DistributedDataParallel would wait.
            self.decoder.projector.requires_grad_(False)
        if config.stage == "finetune":
            for part in self._frozen:
                part.requires_grad_(False)

    @property
    def _frozen(self) -> list[nn.Module]:
        """The parts that make tokens, if they are constant."""
        parts = (self.encoder, self.bottleneck, self.quantiser) if self.config.stage == "finetune" else ()
        return [part for part in parts if part is not None]

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def encode_images(self, images: Tensor, cond: Tensor | None) -> Tensor:
        """See `TokenizerModel.encode`: standardised tokens (B, K, D), or ids (B, K). `cond` is not used.

        Learned positions are resampled for images of another size.
        """
        tokens = self._continuous(images)
        return tokens if self.quantiser is None else self.quantiser.encode(tokens)

    def _continuous(self, images: Tensor) -> Tensor:
        """Standardised tokens (B, K, D) of checked images, before they are quantised."""
        config = self.config
        check_images(images, channels=config.channels, patch=config.encoder.patch, image_size=config.image_size)
        return self.bottleneck(self.encoder(images))

    def losses(self, batch: Batch, progress: float) -> Tensors:
        """The denoising losses of a batch (images, ...) at training progress in [0, 1] (section 4.1).

        With `config.alignment` also "loss_align", the loss of REPA, with `config.quantiser` those of `VQ`. Their sum is
        minimised.
        """
        images = batch[0]
        tokens = self._continuous(images)
        tokens, terms = (tokens, {}) if self.quantiser is None else self.quantiser(tokens)
        mask = self.training_mask(images.shape[0], progress, images.device)
        latents = self.latent_space.encode(images)
        features = self.teacher_features(images) if self.config.alignment.teacher else None
        return self.denoising(latents, tokens, mask, features=features) | terms

    @property
    def teacher_name(self) -> TeacherName | None:
        """The teacher of the alignment; None without alignment."""
        config = self.config.alignment
        return TeacherName(config.teacher, config.weights, config.image_size) if config.teacher else None

    def teacher_features(self, images: Tensor) -> Tensor:
        """The teacher's features (B, N, align_dim) of images (B, C, H, W) in [0, 1], without gradient.

        Raises:
            InputError: the teacher is not loaded.
            ConfigError: a teacher with features of another width than `decoder.align_dim`.
        """
        config = self.config.alignment
        if self.teacher is None:
            raise TeacherName(config.teacher, config.weights, config.image_size).missing()
        features, width = self.teacher(images), self.config.decoder.align_dim
        if features.shape[-1] != width:
            raise ConfigError(
                f"model.decoder.align_dim: expected {features.shape[-1]}, the width of {config.teacher}, got {width}"
            )
        return features

    def use_stand_ins(self, *, average: bool = False) -> None:
        """Replace the autoencoder's latents and the teacher's features by empty tensors; see `Tokenizer`."""
        super().use_stand_ins(average=average)
        if isinstance(self.latent_space, Autoencoder):
            self.latent_space.use_stand_in()
        alignment = self.config.alignment
        if alignment.teacher:
            # The number of patches of a timm name such as vit_base_patch14_dinov2; else that of the decoder.
            patch = re.search(r"patch(\d+)", alignment.teacher)
            num = (alignment.image_size // int(patch[1])) ** 2 if patch else self.decoder.grid**2
            self.teacher = empty_features(num, self.config.decoder.align_dim)

    @property
    def phases(self) -> tuple[float, ...]:
        """The share of the training after which suffixes are dropped and the loss is higher."""
        return (self.config.nested.after,) if self.config.nested.enabled else ()

    def training_mask(self, batch: int, progress: float, device: torch.device, *, u: Tensor | None = None) -> Tensor:
        """Which tokens are kept in a training step, (B, K) bool, sampled with the global generator.

        Before `nested.after` all tokens or none, then the first k ~ U{1..K} tokens (section 4.3).

        Args:
            progress: fraction of the training completed, in [0, 1].
            u: (B,) uniform random numbers in [0, 1); all tokens are dropped where it is below their probability.
        """
        nested, length = self.config.nested, self.spec.length
        if nested.enabled and nested.after <= progress and nested.after < 1:
            keep, drop = sample_keep(batch, length, device=device), nested.drop_after
            if nested.full_prob:
                keep = torch.where(torch.rand(batch, device=device) < nested.full_prob, length, keep)
        else:
            keep, drop = torch.full((batch,), length, device=device), nested.drop_before
        dropped = (torch.rand(batch, device=device) if u is None else u) < drop
        return prefix_mask(keep.masked_fill(dropped, 0), length)

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
        """See `TokenizerModel.decode`; `cond` is not used.

        Raises:
            InputError: also a sampler the objective does not have, or too few steps for it.
        """
        tokens = self.entries(self._checked(tokens, self.spec.vocab_size))
        if generator is None:
            generator = torch.Generator(tokens.device).manual_seed(0)
        randn = randn_from(generator)
        start = randn(tokens.new_empty(tokens.shape[0], *self.latent_shape_at(size)))
        if self.config.objective == "flow":
            start = start * self.config.flow.temperature
        latents = self.decode_latents(
            tokens, start, randn, keep=keep, steps=steps, guidance=as_guidance(guidance), sampler=sampler
        )
        return self.latent_space.decode(latents).clamp(0, 1)

    def latent_shape_at(self, size: Size | None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of images of a size in pixels: a side, (H, W), or None for the training size.

        Raises:
            InputError: a size that the decoder's patches do not divide.
        """
        config, factor = self.config, self.latent_space.factor
        height, width = height_and_width(size, config.image_size)
        why = f"the decoder's patches; the model's own size is {config.image_size}"
        check_size(height, width, factor * config.decoder.patch, why)
        return self.latent_shape[0], height // factor, width // factor

"""Semanticist: ordered tokens, similar to principal components, that a diffusion decoder turns into images ("Principal
Components" Enable A New Language of Images, arXiv 2503.08685).

Encode: patches and K queries pass a causal ViT; the states of the queries are projected to D channels and standardised.
Drop: training keeps the first k ~ U{1..K} tokens and replaces the others by null tokens (section 4.3).
Decode: a DiT conditioned on the tokens denoises latents, as a discrete DDPM with learned variance (the paper) or as a
    continuous flow, which needs fewer steps.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from tok1d.bottleneck.normalised import Normalised
from tok1d.diffusion.ddpm import Chain, ancestral, ddim
from tok1d.diffusion.guidance import Guidance, as_guidance, guided
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Generators, Randn, euler, heun, randn_from, time_grid
from tok1d.errors import ConfigError, InputError
from tok1d.losses.alignment import alignment_loss
from tok1d.losses.features import Features, TeacherName, empty_features
from tok1d.losses.total import Batch, Tensors
from tok1d.tokenizers.base import Size, TokenSpec
from tok1d.tokenizers.bottlenecks import build_vq
from tok1d.tokenizers.checks import check_images, check_size, checked_tokens, height_and_width
from tok1d.tokenizers.latent_space import Autoencoder, latent_space
from tok1d.tokenizers.model import TokenizerModel
from tok1d.tokenizers.prefix import prefix_mask, resolve_keep, sample_keep
from tok1d.tokenizers.query_encoder import QueryEncoder
from tok1d.tokenizers.semanticist_config import FlowConfig, NestedConfig, SemanticistConfig
from tok1d.tokenizers.token_dit import TokenDiT

__all__ = ["FlowConfig", "NestedConfig", "Semanticist", "SemanticistConfig"]


# The first is the default.
SAMPLERS = {"ddpm": ("ancestral", "ddim"), "flow": ("euler", "heun")}


class Semanticist(TokenizerModel):
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
        self.latent_shape = (latent_channels, *[config.image_size // self.latent_space.factor] * 2)
        self.decoder = TokenDiT(
            config.decoder,
            channels=latent_channels,
            size=self.latent_shape[-1],
            num_tokens=config.num_tokens,
            token_dim=config.token_dim,
            out_channels=latent_channels * (2 if discrete else 1),
            time_scale=1.0 if discrete else 1000.0,
        )
        self.chain = Chain.named("linear")
        flow = config.flow
        self.objective = FlowObjective(Path(flow.path), flow.prediction, flow.weight_power)
        self.times = Times(flow.times, flow.times_mean, flow.times_std)
        self.teacher: Features | None = None  # set by zoo.pretrained.teachers.give_teachers
        if self.decoder.projector is not None and not config.alignment.teacher:
            # Converted weights have a projector. Without a teacher it gets no gradient, for which
            # DistributedDataParallel would wait.
            self.decoder.projector.requires_grad_(False)

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

    def entries(self, tokens: Tensor) -> Tensor:
        """The decoder's tokens (B, k, D): the codebook's entries for ids (B, k), continuous tokens themselves."""
        if self.quantiser is None or tokens.is_floating_point():
            return tokens
        return self.quantiser.embed(tokens)

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

    def denoising(
        self,
        latents: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The denoising losses, averaged over the batch; arguments as for `denoising_rows`."""
        rows = self.denoising_rows(latents, tokens, mask, t=t, noise=noise, features=features)
        return {name: values.mean() for name, values in rows.items()}

    def denoising_rows(
        self,
        latents: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The denoising losses of each sample, (B,) each.

        DDPM: "loss_mse", the squared error of the noise, and "loss_vb", the variational bound in bits, which trains the
        variance (arXiv 2102.09672, section 3.1). Flow: "loss_flow".

        Args:
            latents: (B, C, S, S).
            tokens: (B, K, D), or ids (B, K).
            mask: (B, K) bool, False for tokens that are replaced by null tokens; None: all are kept.
            t: times (B,), step indices 0..999 (DDPM) or in [0, 1] with 1 = data (flow); default: random.
            noise: standard normal, of the latents' shape; default: random.
            features: a teacher's (B, N, align_dim); adds "loss_align", times its weight, from the same forward pass.
        """
        filled = self.decoder.fill(self.entries(tokens), mask)
        noise = torch.randn_like(latents) if noise is None else noise
        states: list[Tensor] = []

        def network(x: Tensor, t: Tensor) -> Tensor:
            if features is None:
                return self.decoder(x, t, filled)
            out, aligned = self.decoder.forward_aligned(x, t, filled)
            states.append(aligned)
            return out

        if self.config.objective == "ddpm":
            t = torch.randint(len(self.chain), latents.shape[:1], device=latents.device) if t is None else t
            rows = {f"loss_{k}": v for k, v in self.chain.losses(network, latents, noise, t).items()}
        else:
            t = self.times.sample(latents.shape[0], latents.device) if t is None else t
            rows = {"loss_flow": self.objective.loss(network, latents, noise, t)}
        if features is not None:
            rows["loss_align"] = self.config.alignment.weight * alignment_loss(states[0], features)
        return rows

    def prediction_error(
        self, latents: Tensor, tokens: Tensor, mask: Tensor | None = None, *, t: Tensor, noise: Tensor
    ) -> Tensor:
        """The unweighted mean squared error (B,) of the network's prediction; times t (B,) as in `denoising_rows`."""
        if self.config.objective == "ddpm":
            return self.denoising_rows(latents, tokens, mask, t=t, noise=noise)["loss_mse"]
        filled = self.decoder.fill(self.entries(tokens), mask)
        plain = replace(self.objective, weight_power=0.0)
        return plain.loss(lambda x, t: self.decoder(x, t, filled), latents, noise, t)

    def predictions(
        self, latents: Tensor, tokens: Tensor, mask: Tensor | None = None, *, t: Tensor, noise: Tensor
    ) -> Tensor:
        """The network's prediction (B, C, S, S) for noisy latents: the noise (DDPM), or `flow.prediction` (flow)."""
        filled = self.decoder.fill(self.entries(tokens), mask)
        if self.config.objective == "ddpm":
            return self.decoder(self.chain.noised(latents, noise, t), t, filled)[:, : latents.shape[1]]
        return self.decoder(self.objective.path.interpolate(latents, noise, t), t, filled)

    def prediction_target(self, latents: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        """What `predictions` are trained to equal, (B, C, S, S): the noise (DDPM), or the target of the flow."""
        return noise if self.config.objective == "ddpm" else self.objective.target(latents, noise, t)

    def uniform_times(self, num: int) -> Tensor:
        """(num,) midpoints of equal intervals of time: step indices (DDPM) or in [0, 1] (flow)."""
        times = (torch.arange(num) + 0.5) / num
        return (times * len(self.chain)).long() if self.config.objective == "ddpm" else times

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

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the first of `SAMPLERS`; raises InputError if the objective lacks it."""
        known = SAMPLERS[self.config.objective]
        if name not in (None, *known):
            kind = "DDPM" if self.config.objective == "ddpm" else "flow"
            raise InputError(f"sampler: expected {known[0]!r} or {known[1]!r} for a {kind} decoder, got {name!r}")
        return name or known[0]

    def decode_latents(
        self,
        tokens: Tensor,
        start: Tensor,
        randn: Randn,
        *,
        keep: int | Tensor | None = None,
        steps: int | str | None = None,
        guidance: Guidance | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """Tokens and initial noise `start` (B, C, H, W) -> latents of that shape; arguments and errors as `decode`."""
        steps, sampler = self.config.steps if steps is None else steps, self.sampler(sampler)
        field = self.field(tokens, keep, guidance or Guidance())
        if self.config.objective == "ddpm":
            if isinstance(steps, int) and steps < 2:  # the single step left would be t = 0: the output would be noise
                raise InputError(f"DDPM decoder: expected at least 2 steps, got {steps}")
            chain = self.chain.respace(steps)
            return ddim(field, start, chain) if sampler == "ddim" else ancestral(field, start, chain, randn)
        return (heun if sampler == "heun" else euler)(field, start, self.flow_times(int(steps), start.device))

    def flow_times(self, steps: int, device: torch.device | None = None) -> Tensor:
        """The times (steps + 1,) of a sampler of objective=flow, from noise to data."""
        times = time_grid(steps, shift=self.config.flow.shift, device=device)
        if self.config.flow.prediction == "noise":  # at t = 0, where alpha = 0, predicted noise implies no velocity
            times[0] = times[1].clamp(max=0.02) / 2
        return times

    def field(self, tokens: Tensor, keep: int | Tensor | None, guidance: Guidance) -> Field:
        """The function that samplers evaluate: guided noise and conditional variance (DDPM), or guided velocity (flow).

        Raises:
            InputError: tokens or `keep` that do not fit, or guidance with a weak model or a schedule.
        """
        tokens, length = self._checked(self.entries(tokens)), self.spec.length
        if guidance.weak_model is not None:
            raise InputError("guidance: expected no weak_model; a Semanticist decoder is guided by its null tokens")
        if guidance.schedule != "constant":
            raise InputError(f"guidance: expected schedule='constant' for a decoder, got {guidance.schedule!r}")
        batch, available, _ = tokens.shape
        counts = resolve_keep(keep, batch, available, tokens.device)
        padded = torch.nn.functional.pad(tokens, (0, 0, 0, length - available))
        filled = self.decoder.fill(padded, prefix_mask(counts, length))
        null = self.decoder.nulls(batch).to(filled.dtype)
        discrete = self.config.objective == "ddpm"
        channels = self.latent_shape[0]

        def evaluate(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            t = t.expand(x.shape[0]) if discrete and t.shape[0] == 1 else t
            # Samplers of a model in half precision compute in single precision.
            return self.decoder(x.to(cond.dtype), t, cond)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            t2 = t if t.shape[0] == 1 else t.repeat(2)
            cond, uncond = evaluate(x.repeat(2, 1, 1, 1), t2, torch.cat([filled, null])).chunk(2)
            if not discrete:
                return cond, uncond
            # Guidance acts on the noise only: both predictions get the conditional variance.
            return cond, torch.cat([uncond[:, :channels], cond[:, channels:]], dim=1)

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return evaluate(x, t, filled)

        if discrete:
            # Guidance intervals are in times with 1 = data, step indices increase towards the noise.
            return guided(both, conditional, guidance, lambda t: 1 - t / len(self.chain))
        return self.objective.velocity_field(guided(both, conditional, guidance))

    def _checked(self, tokens: Tensor, vocab_size: int | None = None) -> Tensor:
        """Checked tokens in the precision of the weights (caches may store them in half precision), or ids."""
        config, dtype = self.config, self.decoder.null_tokens.dtype
        return checked_tokens(
            tokens, config.num_tokens, dim=config.token_dim, vocab_size=vocab_size, dtype=dtype, prefixes=True
        )

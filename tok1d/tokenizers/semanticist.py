"""Semanticist: PCA-like causal tokens decoded by diffusion ("Principal Components" Enable A New Language of Images,
arXiv 2503.08685).

Encode: patches and K queries through a causal ViT, projected to D numbers a token, each token standardised.
Drop: in training keep the first k ~ U{1..K} tokens, the others become null tokens (nested guidance).
Decode: a DiT denoises latents given the tokens, either with discrete DDPM and learned variance (the paper)
or along a continuous flow (few steps).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tok1d.bottleneck.normalised import Normalised
from tok1d.config.fields import option
from tok1d.diffusion.ddpm import Chain, ancestral, ddim
from tok1d.diffusion.guidance import Guidance, as_guidance, guided
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Generators, Randn, euler, heun, randn_from, time_grid
from tok1d.errors import ConfigError, InputError
from tok1d.losses.alignment import AlignmentConfig, alignment_loss
from tok1d.losses.features import Teacher, TeacherName
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.latent_space import LatentConfig, latent_space
from tok1d.tokenizers.prefix import draw_keep, prefix_mask, resolve_keep
from tok1d.tokenizers.query_encoder import EncoderConfig, QueryEncoder
from tok1d.tokenizers.token_dit import DecoderConfig, TokenDiT


@dataclass
class FlowConfig:
    """The continuous objective; read when `objective` is "flow"."""

    path: Literal["linear", "cosine"] = option("linear", "path from noise (t = 0) to data (t = 1)")
    prediction: Literal["data", "noise", "velocity"] = option("data", "what the network outputs")
    times: Literal["uniform", "logit_normal"] = option("logit_normal", "distribution of training times")
    times_mean: float = option(-1.0, "mean of the normal behind logit_normal; negative favours noise")
    times_std: float = option(1.0, "its standard deviation", gt=0)
    weight_power: float = option(1.0, "loss weight sigma(t)^-power; 2 with data prediction is the velocity loss", ge=0)
    shift: float = option(1.0, "sampling grid; above 1 spends more steps near the noise", gt=0)
    temperature: float = option(1.0, "scale of the starting noise in decoding; 0 is nearest to an average", ge=0)


@dataclass
class NestedConfig:
    """Prefix dropping (section 3.2) and the dropping of all tokens that guidance needs."""

    after: float = option(
        0.125,
        "share of the training after which prefixes are dropped (release: 50 of 400 epochs); 1: never",
        ge=0,
        le=1,
    )
    drop_before: float = option(0.1, "before that: probability of dropping all tokens", ge=0, le=1)
    drop_after: float = option(
        0.0, "after that: probability of dropping all tokens (the release trains none)", ge=0, le=1
    )
    enabled: bool = option(True, "off trains with all tokens, dropped together with probability drop_before")


@dataclass
class SemanticistConfig:
    """A Semanticist tokenizer. The defaults are the paper's ViT-B/16 + DiT-L/2 in KL-16 at 256 px, but in pixels."""

    name: str = option("semanticist", "which model this is")
    image_size: int = option(256, "side of the square images, in pixels", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(256, "tokens K an image becomes", ge=1)
    token_dim: int = option(16, "numbers D of a token", ge=1)
    normalise: bool = option(True, "standardise every token over its channels")
    normalise_eps: float = option(0.0, "added to the standard deviation", ge=0)
    encoder: EncoderConfig = option(EncoderConfig())
    decoder: DecoderConfig = option(DecoderConfig())
    latents: LatentConfig = option(LatentConfig())
    objective: Literal["ddpm", "flow"] = option("ddpm", "the paper's DDPM with learned variance, or a continuous flow")
    flow: FlowConfig = option(FlowConfig())
    nested: NestedConfig = option(NestedConfig())
    alignment: AlignmentConfig = option(AlignmentConfig())
    steps: int = option(250, "default number of decoding steps", ge=1)

    def check(self) -> None:
        """Contradictions between the fields."""
        factor = self.latents.factor or 1
        if self.image_size % factor:
            raise ConfigError(f"latents.factor: {factor} does not divide image_size {self.image_size}")
        if self.image_size % self.encoder.patch:
            raise ConfigError(f"encoder.patch: {self.encoder.patch} does not divide image_size {self.image_size}")
        side = self.image_size // factor
        if side % self.decoder.patch:
            what = f"image_size {side}" if factor == 1 else f"image_size / latents.factor = {side}"
            raise ConfigError(f"decoder.patch: {self.decoder.patch} does not divide {what}")
        for part, net in (("encoder", self.encoder), ("decoder", self.decoder)):
            if net.dim % net.heads:
                raise ConfigError(f"{part}.heads: {net.heads} does not divide {part}.dim {net.dim}")
        if self.objective == "ddpm" and not 2 <= self.steps <= 1000:
            raise ConfigError(f"steps: a DDPM decoder takes 2 to 1000 steps, got {self.steps}")
        if self.normalise and self.token_dim < 2:
            raise ConfigError("token_dim: a normalised token needs at least 2 numbers, got 1 (or set normalise=false)")
        if self.decoder.dim % 4:
            raise ConfigError(f"decoder.dim: expected a multiple of 4 for its position table, got {self.decoder.dim}")
        if self.decoder.align_depth > self.decoder.depth:
            raise ConfigError(
                f"decoder.align_depth: block {self.decoder.align_depth} does not exist in {self.decoder.depth} blocks"
            )
        if self.alignment.teacher and not self.decoder.align_depth:
            raise ConfigError("decoder.align_depth: alignment.teacher needs a block to act on (released: 8), got 0")


# The first is the default.
SAMPLERS = {"ddpm": ("ancestral", "ddim"), "flow": ("euler", "heun")}


class Semanticist(nn.Module):
    """The tokenizer; see the module's text. Images are (B, C, H, W) in [0, 1], tokens (B, K, D) float."""

    def __init__(self, config: SemanticistConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = TokenSpec(config.num_tokens, config.token_dim, ordered=True)
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
        self.teacher: Teacher | None = None  # given by what builds the training, see `teacher_name`
        if self.decoder.projector is not None and not config.alignment.teacher:
            # Converted weights have a projector. No loss reaches it, and several processes would wait for its gradient.
            self.decoder.projector.requires_grad_(False)

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> standardised tokens (B, K, D). `cond` is not used.

        Images need not have the size of the training: the encoder resamples its patch positions.

        Raises:
            InputError: another number of channels than the model's, or a size that the patches do not divide.
        """
        channels, patch = self.config.channels, self.config.encoder.patch
        if images.dim() != 4 or images.shape[1] != channels:
            raise InputError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
        self._check_size(images.shape[2], images.shape[3], patch, "encoder")
        return self.bottleneck(self.encoder(images))

    def _check_size(self, height: int, width: int, unit: int, part: str) -> None:
        if min(height, width) < 1 or height % unit or width % unit:
            native = self.config.image_size
            raise InputError(
                f"image size: expected a height and a width that are multiples of {unit} (the {part}'s patches; "
                f"the model's own size is {native}), got {height}x{width}"
            )

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        """The denoising loss of one batch (images, labels) at training progress in [0, 1] (section 3.3).

        With `config.alignment` also "loss_align"; all of them are added up.
        """
        images = batch[0]
        tokens = self.encode(images)
        mask = self.training_mask(images.shape[0], progress, images.device)
        latents = self.latent_space.encode(images)
        features = self.teacher_features(images) if self.config.alignment.teacher else None
        return self.denoising(latents, tokens, mask, features=features)

    @property
    def teacher_name(self) -> TeacherName | None:
        """The teacher that the alignment needs; None without alignment."""
        config = self.config.alignment
        return TeacherName(config.teacher, config.weights, config.image_size) if config.teacher else None

    def teacher_features(self, images: Tensor) -> Tensor:
        """Features (B, N, align_dim) of images (B, C, H, W) in [0, 1] that alignment learns, without gradient.

        Raises:
            Tok1dError: the teacher cannot be had, or has another width than `decoder.align_dim`.
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

    def training_mask(self, batch: int, progress: float, device: torch.device, *, u: Tensor | None = None) -> Tensor:
        """(B, K) bool: prefixes once nested dropping has begun, all or nothing before; drawn from the global RNG.

        Args:
            u: (B,) in [0, 1); all tokens are dropped where it is below the probability of that. Default: drawn.
        """
        nested, length = self.config.nested, self.spec.length
        if nested.enabled and nested.after <= progress and nested.after < 1:
            keep, drop = draw_keep(batch, length, device=device), nested.drop_after
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
        """Mean losses of denoising latents (B, C, S, S) given tokens under a mask (B, K); t and noise may be given.

        DDPM: "loss_mse" of the noise and "loss_vb", the variational bound in bits. Flow: "loss_flow".
        With a teacher's features (B, N, align_dim) also "loss_align", times its weight, from the same forward pass.
        """
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
        """As `denoising`, per sample (B,). Times are step indices 0..999 (DDPM) or in [0, 1], 1 = data (flow)."""
        filled = self.decoder.fill(tokens, mask)
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
            t = self.times.draw(latents.shape[0], latents.device) if t is None else t
            rows = {"loss_flow": self.objective.loss(network, latents, noise, t)}
        if features is not None:
            rows["loss_align"] = self.config.alignment.weight * alignment_loss(states[0], features)
        return rows

    def prediction_error(
        self, latents: Tensor, tokens: Tensor, mask: Tensor | None = None, *, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Unweighted mean squared error (B,) of what the network predicts, at times t (B,) as `denoising_rows` has."""
        if self.config.objective == "ddpm":
            return self.denoising_rows(latents, tokens, mask, t=t, noise=noise)["loss_mse"]
        filled = self.decoder.fill(tokens, mask)
        plain = replace(self.objective, weight_power=0.0)
        return plain.loss(lambda x, t: self.decoder(x, t, filled), latents, noise, t)

    def predictions(
        self, latents: Tensor, tokens: Tensor, mask: Tensor | None = None, *, t: Tensor, noise: Tensor
    ) -> Tensor:
        """What the network outputs (B, C, S, S) for noisy latents: noise (DDPM), or what the flow predicts."""
        filled = self.decoder.fill(tokens, mask)
        if self.config.objective == "ddpm":
            return self.decoder(self.chain.noised(latents, noise, t), t, filled)[:, : latents.shape[1]]
        return self.decoder(self.objective.path.interpolate(latents, noise, t), t, filled)

    def uniform_times(self, num: int) -> Tensor:
        """(num,) midpoints of equal parts of the decoder's time: step indices (DDPM) or within [0, 1] (flow)."""
        times = (torch.arange(num) + 0.5) / num
        return (times * len(self.chain)).long() if self.config.objective == "ddpm" else times

    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: Generators | None = None,
        sampler: str | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of the first `keep` tokens; sequences shorter than K are taken as prefixes.

        Args:
            tokens: (B, k, D) with k <= K, in any float precision.
            keep: how many tokens to use, 0..k, an int or (B,); 0 is the unconditional model.
            steps: network evaluations; default: the model's `config.steps`.
            guidance: decoder guidance against the null tokens; 1 is off.
            generator: source of the starting noise (and of the sampler's), or one an image, which makes an image
                independent of its batch; default: one seeded with 0.
            sampler: "euler" or "heun" (flow), "ancestral" or "ddim" (DDPM).
            size: of the images in pixels, a side or (H, W); default: the size of the training.

        Raises:
            InputError: tokens of another shape, a count out of range, a sampler the objective does not have, too
                few steps for it, or a size that the patches do not divide.
        """
        tokens = self._checked(tokens)
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

    def latent_shape_at(self, size: int | tuple[int, int] | None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of images of a size in pixels: a side, (H, W), or None for the training's."""
        size = self.config.image_size if size is None else size
        height, width = (size, size) if isinstance(size, int) else size
        factor = self.latent_space.factor
        self._check_size(height, width, factor * self.config.decoder.patch, "decoder")
        return self.latent_shape[0], height // factor, width // factor

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the objective's first; InputError for one it does not have."""
        known = SAMPLERS[self.config.objective]
        if name not in (None, *known):
            kind = "DDPM" if self.config.objective == "ddpm" else "flow"
            raise InputError(f"sampler: a {kind} decoder samples with {known[0]!r} or {known[1]!r}, got {name!r}")
        return name or known[0]

    @torch.no_grad()
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
        """Latents (B, C, H, W) from starting noise `start` of that shape; see `decode`. Not clamped."""
        steps, sampler = self.config.steps if steps is None else steps, self.sampler(sampler)
        field = self.field(tokens, keep, guidance or Guidance())
        if self.config.objective == "ddpm":
            if isinstance(steps, int) and steps < 2:  # a chain of one step keeps the cleanest: noise would come out
                raise InputError(f"a DDPM decoder needs at least 2 steps, got {steps}")
            chain = self.chain.respace(steps)
            return ddim(field, start, chain) if sampler == "ddim" else ancestral(field, start, chain, randn)
        times = time_grid(int(steps), shift=self.config.flow.shift, device=start.device)
        if self.config.flow.prediction == "noise":  # it implies no velocity at t = 0, where alpha is 0
            times[0] = times[1].clamp(max=0.02) / 2
        return (heun if sampler == "heun" else euler)(field, start, times)

    def field(self, tokens: Tensor, keep: int | Tensor | None, guidance: Guidance) -> Field:
        """What the samplers follow for these tokens: guided noise and variance (DDPM) or velocity (flow).

        Guidance acts on the noise and leaves the variance conditional, or on the velocity.
        """
        tokens, length = self._checked(tokens), self.spec.length
        if guidance.weak_model is not None:
            raise InputError("a Semanticist decoder guides against its null tokens, not against a weak_model")
        if guidance.schedule != "constant":
            raise InputError(f"guidance of a decoder is constant over its tokens, got schedule={guidance.schedule!r}")
        batch, given, _ = tokens.shape
        counts = resolve_keep(keep, batch, given, tokens.device)
        padded = torch.nn.functional.pad(tokens, (0, 0, 0, length - given))
        filled = self.decoder.fill(padded, prefix_mask(counts, length))
        null = self.decoder.null_tokens.expand(batch, -1, -1).to(filled.dtype)
        discrete = self.config.objective == "ddpm"
        channels = self.latent_shape[0]

        def evaluate(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            t = t.expand(x.shape[0]) if discrete and t.shape[0] == 1 else t
            return self.decoder(x, t, cond)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            t2 = t if t.shape[0] == 1 else t.repeat(2)
            cond, uncond = evaluate(x.repeat(2, 1, 1, 1), t2, torch.cat([filled, null])).chunk(2)
            if not discrete:
                return cond, uncond
            # Guidance leaves the variance alone: give both halves the conditional one.
            return cond, torch.cat([uncond[:, :channels], cond[:, channels:]], dim=1)

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return evaluate(x, t, filled)

        if discrete:
            # Steps count noise upward; guidance intervals are in data time.
            return guided(both, conditional, guidance, lambda t: 1 - t / len(self.chain))
        return self.objective.velocity_field(guided(both, conditional, guidance))

    def _checked(self, tokens: Tensor) -> Tensor:
        """Tokens in the precision of the weights: those of a cache may be stored in half of it."""
        length, dim = self.spec.length, self.spec.dim
        if tokens.dim() != 3 or tokens.shape[1] > length or tokens.shape[2] != dim or not tokens.is_floating_point():
            raise InputError(
                f"expected tokens of shape (B, at most {length}, {dim}), got {tuple(tokens.shape)} of {tokens.dtype}"
            )
        return tokens.to(self.decoder.null_tokens.dtype)

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
from tok1d.config import option
from tok1d.diffusion.ddpm import Chain, ancestral, ddim
from tok1d.diffusion.guidance import Guidance, as_guidance, guided
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Randn, euler, heun, randn_from, time_grid
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.latent_space import Pixels
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

    after: float = option(0.125, "share of the training after which prefixes are dropped (release: 50 of 400 epochs)")
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
    objective: Literal["ddpm", "flow"] = option("ddpm", "the paper's DDPM with learned variance, or a continuous flow")
    flow: FlowConfig = option(FlowConfig())
    nested: NestedConfig = option(NestedConfig())
    steps: int = option(250, "default number of decoding steps", ge=1)

    def check(self) -> None:
        """Contradictions between the fields."""
        for part, patch in (("encoder", self.encoder.patch), ("decoder", self.decoder.patch)):
            if self.image_size % patch:
                raise ConfigError(f"{part}.patch: {patch} does not divide image_size {self.image_size}")
        for part, net in (("encoder", self.encoder), ("decoder", self.decoder)):
            if net.dim % net.heads:
                raise ConfigError(f"{part}.heads: {net.heads} does not divide {part}.dim {net.dim}")
        if self.normalise and self.token_dim < 2:
            raise ConfigError("token_dim: a normalised token needs at least 2 numbers, got 1 (or set normalise=false)")
        if self.decoder.dim % 4:
            raise ConfigError(f"decoder.dim: expected a multiple of 4 for its position table, got {self.decoder.dim}")
        if self.decoder.align_depth > self.decoder.depth:
            raise ConfigError(
                f"decoder.align_depth: block {self.decoder.align_depth} does not exist in {self.decoder.depth} blocks"
            )


class Semanticist(nn.Module):
    """The tokenizer; see the module's text. Images are (B, C, H, W) in [0, 1], tokens (B, K, D) float."""

    def __init__(self, config: SemanticistConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = TokenSpec(config.num_tokens, config.token_dim, ordered=True)
        self.latent_space = Pixels(config.channels)
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

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> standardised tokens (B, K, D). `cond` is not used.

        Raises:
            InputError: images of another size or number of channels than the model's.
        """
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise InputError(
                f"expected images of shape (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}"
            )
        return self.bottleneck(self.encoder(images))

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        """The denoising loss of one batch (images, labels) at training progress in [0, 1] (section 3.3)."""
        images = batch[0]
        tokens = self.encode(images)
        mask = self.training_mask(images.shape[0], progress, images.device)
        latents = self.latent_space.encode(images)
        return self.denoising(latents, tokens, mask)

    def training_mask(self, batch: int, progress: float, device: torch.device) -> Tensor:
        """(B, K) bool: prefixes once nested dropping has begun, all or nothing before; drawn from the global RNG."""
        nested, length = self.config.nested, self.spec.length
        if nested.enabled and progress >= nested.after:
            keep, drop = draw_keep(batch, length, device=device), nested.drop_after
        else:
            keep, drop = torch.full((batch,), length, device=device), nested.drop_before
        dropped = torch.rand(batch, device=device) < drop
        return prefix_mask(keep.masked_fill(dropped, 0), length)

    def denoising(
        self,
        latents: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean losses of denoising latents (B, C, S, S) given tokens under a mask (B, K); t and noise may be given.

        DDPM: "loss_mse" of the noise and "loss_vb", the variational bound in bits. Flow: "loss_flow".
        """
        return {
            name: rows.mean() for name, rows in self.denoising_rows(latents, tokens, mask, t=t, noise=noise).items()
        }

    def denoising_rows(
        self,
        latents: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As `denoising`, per sample (B,). Times are step indices 0..999 (DDPM) or in [0, 1], 1 = data (flow)."""
        filled = self.decoder.fill(tokens, mask)
        noise = torch.randn_like(latents) if noise is None else noise

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self.decoder(x, t, filled)

        if self.config.objective == "ddpm":
            t = torch.randint(len(self.chain), latents.shape[:1], device=latents.device) if t is None else t
            return {f"loss_{k}": v for k, v in self.chain.losses(network, latents, noise, t).items()}
        t = self.times.draw(latents.shape[0], latents.device) if t is None else t
        return {"loss_flow": self.objective.loss(network, latents, noise, t)}

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
        generator: torch.Generator | None = None,
        solver: str | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of the first `keep` tokens; sequences shorter than K are taken as prefixes.

        Args:
            tokens: (B, k, D) with k <= K.
            keep: how many tokens to use, 0..k, an int or (B,); 0 is the unconditional model.
            steps: network evaluations; default: the model's `config.steps`.
            guidance: decoder guidance against the null tokens; 1 is off.
            generator: source of the starting noise (and of the sampler's); default: one seeded with 0.
            solver: "euler" or "heun" (flow), "ancestral" or "ddim" (DDPM).

        Raises:
            InputError: tokens of another shape, a count out of range, a solver the objective does not have, or too
                few steps for it.
        """
        if generator is None:
            generator = torch.Generator(tokens.device).manual_seed(0)
        randn = randn_from(generator)
        start = randn(tokens.new_empty(tokens.shape[0], *self.latent_shape))
        if self.config.objective == "flow":
            start = start * self.config.flow.temperature
        latents = self.decode_latents(
            tokens, start, randn, keep=keep, steps=steps, guidance=as_guidance(guidance), solver=solver
        )
        return self.latent_space.decode(latents).clamp(0, 1)

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
        solver: str | None = None,
    ) -> Tensor:
        """Latents (B, C, S, S) from starting noise `start` of that shape; see `decode`. Not clamped."""
        steps = self.config.steps if steps is None else steps
        field = self.field(tokens, keep, guidance or Guidance())
        if self.config.objective == "ddpm":
            if isinstance(steps, int) and steps < 2:  # a chain of one step keeps the cleanest: noise would come out
                raise InputError(f"a DDPM decoder needs at least 2 steps, got {steps}")
            chain = self.chain.respace(steps)
            if solver in (None, "ancestral"):
                return ancestral(field, start, chain, randn)
            if solver == "ddim":
                return ddim(field, start, chain)
            raise InputError(f"a DDPM decoder samples with 'ancestral' or 'ddim', got {solver!r}")
        times = time_grid(int(steps), shift=self.config.flow.shift, device=start.device)
        if solver not in (None, "euler", "heun"):
            raise InputError(f"a flow decoder samples with 'euler' or 'heun', got {solver!r}")
        if self.config.flow.prediction == "noise":  # it implies no velocity at t = 0, where alpha is 0
            times[0] = times[1].clamp(max=0.02) / 2
        return (heun if solver == "heun" else euler)(field, start, times)

    def field(self, tokens: Tensor, keep: int | Tensor | None, guidance: Guidance) -> Field:
        """What the solvers integrate for these tokens: guided noise and variance (DDPM) or velocity (flow).

        Guidance acts on the noise and leaves the variance conditional, or on the velocity.
        """
        length, dim = self.spec.length, self.spec.dim
        if tokens.dim() != 3 or tokens.shape[1] > length or tokens.shape[2] != dim:
            raise InputError(f"expected tokens of shape (B, at most {length}, {dim}), got {tuple(tokens.shape)}")
        if guidance.weak_model is not None:
            raise InputError("a Semanticist decoder guides against its null tokens, not against a weak_model")
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

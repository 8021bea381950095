"""The diffusion decoder of Semanticist: from tokens to denoising losses in training, and to latents by a sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from tok1d.bottleneck.residual import ResidualVQ
from tok1d.bottleneck.vq import VQ
from tok1d.diffusion.ddpm import Chain, ancestral, ddim
from tok1d.diffusion.few_step import FewStepModel, Intervals, Velocity, guided_velocity, rows_of
from tok1d.diffusion.guidance import Guidance, guided
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.solver import Field, Randn, euler, heun, time_grid
from tok1d.errors import InputError
from tok1d.losses.alignment import alignment_loss
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.checks import checked_tokens
from tok1d.tokenizers.model import TokenizerModel
from tok1d.tokenizers.prefix import prefix_mask, resolve_keep
from tok1d.tokenizers.semanticist_config import SemanticistConfig
from tok1d.tokenizers.token_dit import TokenDiT

# The first is the default.
SAMPLERS = {"ddpm": ("ancestral", "ddim"), "flow": ("euler", "heun")}
ALL = slice(None)


class DiffusionDecoding(FewStepModel, TokenizerModel):
    """The part of `Semanticist` between tokens and latents, whose modules that class makes.

    The objective is discrete DDPM with learned variance, or a continuous flow; with `flow.few_step` the decoder
    predicts average velocities (`diffusion.few_step`).
    """

    same_as_teacher: ClassVar[tuple[str, ...]] = (
        *("image_size", "channels", "num_tokens", "token_dim", "quantiser", "latents", "objective", "flow.path"),
    )
    weights_of_teacher: ClassVar[tuple[str, ...]] = ("encoder.", "bottleneck.", "quantiser.")

    config: SemanticistConfig
    spec: TokenSpec
    decoder: TokenDiT
    quantiser: VQ | ResidualVQ | None
    latent_shape: tuple[int, int, int]
    chain: Chain
    objective: FlowObjective
    times: Times

    def entries(self, tokens: Tensor) -> Tensor:
        """The decoder's tokens (B, k, D): the codebook's entries for ids (B, k), continuous tokens themselves."""
        if self.quantiser is None or tokens.is_floating_point():
            return tokens
        return self.quantiser.embed(tokens)

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
        variance (arXiv 2102.09672, section 3.1). Flow: "loss_flow", with `flow.few_step` and no given times that of the
        average velocity.

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

        def network(x: Tensor, t: Tensor, d: Tensor | None = None, rows: slice = ALL) -> Tensor:
            length = () if d is None else (d,)
            if features is None or states:  # alignment is of the first call alone
                return self.decoder(x, t, rows_of(filled, rows), *length)
            out, aligned = self.decoder.forward_aligned(x, t, filled, *length)
            states.append(aligned)
            return out

        if self.config.objective == "ddpm":
            t = torch.randint(len(self.chain), latents.shape[:1], device=latents.device) if t is None else t
            rows = {f"loss_{k}": v for k, v in self.chain.losses(network, latents, noise, t).items()}
        elif self.few_step is not None and t is None:
            velocity = self.learned_velocity(tokens, mask)
            rows = {"loss_flow": self.few_step.loss(network, latents, noise, velocity=velocity)}
        else:
            t = self.times.sample(latents.shape[0], latents.device) if t is None else t
            rows = {"loss_flow": self.objective.loss(network, latents, noise, t)}
        if features is not None:
            rows["loss_align"] = self.config.alignment.weight * alignment_loss(states[0], features)
        return rows

    def learned_velocity(self, tokens: Tensor, mask: Tensor | None) -> Velocity | None:
        """The guided velocity that few-step training learns for tokens (B, K, D) and a mask; None: the data's.

        Raises:
            InputError: the teacher is not loaded.
        """
        assert self.few_step is not None
        teacher, scale = self.taught_by(), self.few_step.config.guidance
        if teacher is not None:
            keep = None if mask is None else mask.sum(1)
            field: Field = teacher.field(tokens.detach(), keep, Guidance(scale))
            return lambda x, t, v: field(x, t)
        return None if scale == 1 else guided_velocity(self.field(tokens.detach(), 0, Guidance()), scale)

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
        if self.config.objective == "ddpm":
            if isinstance(steps, int) and steps < 2:  # the single step left would be t = 0: the output would be noise
                raise InputError(f"DDPM decoder: expected at least 2 steps, got {steps}")
            chain = self.chain.respace(steps)
            field = self.field(tokens, keep, guidance or Guidance())
            return ddim(field, start, chain) if sampler == "ddim" else ancestral(field, start, chain, randn)
        times = self.flow_times(int(steps), start.device)
        intervals = Intervals(times) if self.few_step is not None and sampler == "euler" else None
        field = self.field(tokens, keep, guidance or Guidance(), intervals)
        return (heun if sampler == "heun" else euler)(field, start, times)

    def flow_times(self, steps: int, device: torch.device | None = None) -> Tensor:
        """The times (steps + 1,) of a sampler of objective=flow, from noise to data."""
        times = time_grid(steps, shift=self.config.flow.shift, device=device)
        if self.config.flow.prediction == "noise":  # at t = 0, where alpha = 0, predicted noise implies no velocity
            times[0] = times[1].clamp(max=0.02) / 2
        return times

    def field(
        self, tokens: Tensor, keep: int | Tensor | None, guidance: Guidance, intervals: Intervals | None = None
    ) -> Field:
        """The function that samplers evaluate: guided noise and conditional variance (DDPM), or guided velocity (flow).

        Args:
            intervals: with `flow.few_step`: it is the average velocity over these steps; None: the velocity.

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
            return self.decoder(x.to(cond.dtype), t, cond, *(() if intervals is None else (intervals(t),)))

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

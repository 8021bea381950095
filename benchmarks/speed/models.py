"""Models of the benchmark, and the amount of work of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from speed.common import Inputs
from torch import Tensor

from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.head import HeadConfig
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig, TokenDiT

# Seconds per unit of the release on a similar CPU, as reported: 3.2 images/s in training, 20 encoded images/s, 53 ms
# per decoder call, 0.045 autoregressive images/s. "image" is computed: 250 calls.
RELEASE = {"train": 1 / 3.2, "encode": 1 / 20, "call": 0.053, "image": 250 * 0.053, "ar": 1 / 0.045}


@dataclass(frozen=True)
class Sizes:
    """Model sizes (default: the small ones for which the speed of the release is known) and the work of a run."""

    name: str = "small"
    image_size: int = 128
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(patch=16, dim=384, depth=12, heads=6))
    num_tokens: int = 64
    token_dim: int = 16
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(patch=2, dim=384, depth=12, heads=6))
    latent: tuple[int, int] = (16, 16)  # channels, side
    ar_dim: int = 384
    ar_depth: int = 6
    ar_heads: int = 6
    ar_tokens: int = 32
    head: HeadConfig = field(default_factory=lambda: HeadConfig(width=512, depth=6))
    published_steps: int = 250  # of the decoder and of the head, as in the release
    measured_steps: int = 10  # of these decoder steps; the time is extrapolated
    train_batch: int = 4
    encode_batch: int = 8
    batch: int = 16  # rows with the same time, or images sampled at once
    few_tokens: int = 8  # tokens sampled in rows that do not need all
    gemm: int = 2048
    min_seconds: float = 0.1


QUICK = replace(
    Sizes(),
    name="quick",
    ar_tokens=2,
    measured_steps=2,
    train_batch=1,
    encode_batch=2,
    batch=4,
    few_tokens=1,
    gemm=1024,
    min_seconds=0.02,
)


@dataclass(frozen=True)
class Bench(Inputs):
    """Models and inputs on one device, built on first use.

    Args:
        decoder_steps, head_steps, euler_steps: steps of the decoder, and of the head with the SDE and the Euler sampler
            (the quality tables show which numbers give equal quality).
        interval: times (0 = noise, 1 = data) with guidance.
    """

    sizes: Sizes
    decoder_steps: int = 25
    head_steps: tuple[int, ...] = (25, 50)
    euler_steps: tuple[int, ...] = (10,)
    interval: tuple[float, float] = (0.25, 0.75)
    scale: float = 3.0  # guidance scale; the value does not affect the cost

    def release(self, name: str) -> float | None:
        """Seconds per unit of the released system, for the sizes for which it is known."""
        return RELEASE[name] if self.sizes.name == "small" else None

    def latents(self, batch: int) -> Tensor:
        channels, side = self.sizes.latent
        return self.noise(batch, channels, side, side)

    def tokens(self, batch: int) -> Tensor:
        return self.noise(batch, self.sizes.num_tokens, self.sizes.token_dim)

    @cached_property
    def ddpm(self) -> Semanticist:
        """The tokenizer with the objective of the paper."""
        return self._tokenizer("ddpm")

    @cached_property
    def flow(self) -> Semanticist:
        """The same with a flow decoder."""
        return self._tokenizer("flow")

    def _tokenizer(self, objective: Literal["ddpm", "flow"]) -> Semanticist:
        """A Semanticist whose decoder works on given latents; the benchmark has no autoencoder."""
        sizes, (channels, side) = self.sizes, self.sizes.latent
        torch.manual_seed(0)
        config = SemanticistConfig(
            image_size=sizes.image_size,
            num_tokens=sizes.num_tokens,
            token_dim=sizes.token_dim,
            encoder=sizes.encoder,
            decoder=sizes.decoder,
            objective=objective,
        )
        model = Semanticist(config)
        model.latent_shape = (channels, side, side)
        model.decoder = TokenDiT(
            sizes.decoder,
            channels=channels,
            size=side,
            num_tokens=sizes.num_tokens,
            token_dim=sizes.token_dim,
            out_channels=channels * (2 if objective == "ddpm" else 1),
            time_scale=1.0 if objective == "ddpm" else 1000.0,
        )
        return self.ready(model)

    @cached_property
    def generator(self) -> EpsilonLlamaGen:
        """epsilon-LlamaGen on the first tokens."""
        sizes = self.sizes
        torch.manual_seed(0)
        config = EpsilonLlamaGenConfig(
            num_tokens=sizes.ar_tokens,
            token_dim=sizes.token_dim,
            dim=sizes.ar_dim,
            depth=sizes.ar_depth,
            heads=sizes.ar_heads,
            head=sizes.head,
        )
        return self.ready(EpsilonLlamaGen(config))

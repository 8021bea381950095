"""The configurations of bottlenecks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.bottleneck.base import Bottleneck
from tok1d.bottleneck.kl import KL
from tok1d.bottleneck.plain import Plain
from tok1d.bottleneck.residual import ResidualVQ
from tok1d.bottleneck.softvq import SoftVQ
from tok1d.bottleneck.vq import VQ
from tok1d.config.fields import option
from tok1d.errors import ConfigError


@dataclass
class PlainConfig:
    """A linear layer, as in a plain autoencoder and in MAETok."""

    name: str = option("plain", "which bottleneck: plain, kl, vq or softvq")


@dataclass
class KLConfig:
    """A diagonal normal distribution for every token, as in a variational autoencoder."""

    name: str = option("kl", "which bottleneck: plain, kl, vq or softvq")
    weight: float = option(1e-6, "weight of the KL divergence, summed over tokens and averaged over images", ge=0)
    initial_std: float = option(
        1.0,
        "standard deviation of the distributions at the start of a training, about (releases: 1); below 1 the decoder "
        "gets less noise at first and learns faster",
        gt=0,
    )


@dataclass
class VQConfig:
    """The nearest entry of a codebook; tokens are ids."""

    name: str = option("vq", "which bottleneck: plain, kl, vq or softvq")
    size: int = option(16384, "number of codebook entries; with several levels of each level", ge=1)
    levels: int = option(
        1, "residual levels: each quantises what the former ones left over; a token then has that many ids", ge=1
    )
    l2: bool = option(True, "normalise tokens and entries to length 1, for distances and for the decoder")
    beta: float = option(0.25, "weight of the commitment loss", ge=0)
    entropy: float = option(0.0, "weight of the entropy loss", ge=0)
    revival: bool = option(False, "move rarely used entries to their nearest token in training")
    decay: float = option(0.99, "revival: decay of the running usage of entries", ge=0, lt=1)

    def check(self) -> None:
        """Raise ConfigError on normalised tokens with residual levels."""
        if self.levels > 1 and self.l2:
            raise ConfigError("l2: expected false with residual levels, because a residual may have any length")


@dataclass
class SoftVQConfig:
    """Convex combinations of a codebook's entries; tokens are continuous."""

    name: str = option("softvq", "which bottleneck: plain, kl, vq or softvq")
    size: int = option(8192, "number of entries of a codebook", ge=1)
    num_codebooks: int = option(4, "number of codebooks, see grouping", ge=1)
    grouping: Literal["contiguous", "residual"] = option(
        "contiguous",
        "what a codebook is for: an equal part of the sequence, or in every token what the former ones left over",
    )
    tau: float = option(0.07, "temperature of the weights of entries", gt=0)
    l2: bool = option(True, "normalise tokens and entries to length 1 first")
    entropy: float = option(0.01, "weight of the entropy loss", ge=0)

    def parts_divide(self, length: int) -> bool:
        """Whether a sequence of `length` tokens has a part of equal length for each codebook, or needs none."""
        return self.grouping == "residual" or length % self.num_codebooks == 0

    def check(self) -> None:
        """Raise ConfigError on normalised tokens with residual codebooks."""
        if self.grouping == "residual" and self.l2:
            raise ConfigError("l2: expected false with grouping=residual, because a residual may have any length")


BottleneckConfig = PlainConfig | KLConfig | VQConfig | SoftVQConfig


def build_bottleneck(config: BottleneckConfig, dim: int, token_dim: int) -> Bottleneck:
    """The bottleneck of a configuration, from encoder states of width `dim` to tokens of `token_dim` channels."""
    if isinstance(config, KLConfig):
        return KL(dim, token_dim, weight=config.weight, initial_std=config.initial_std)
    if isinstance(config, VQConfig):
        return build_vq(config, dim, token_dim)
    if isinstance(config, SoftVQConfig):
        return SoftVQ(
            dim,
            token_dim,
            size=config.size,
            num_codebooks=config.num_codebooks,
            tau=config.tau,
            l2=config.l2,
            entropy=config.entropy,
            residual=config.grouping == "residual",
        )
    return Plain(dim, token_dim)


def build_vq(config: VQConfig, dim: int, token_dim: int) -> VQ | ResidualVQ:
    """As `build_bottleneck`, for a VQ bottleneck; with `dim` 0 its input are tokens, which pass no linear layer."""
    size, beta, entropy = config.size, config.beta, config.entropy
    revival, decay = config.revival, config.decay
    if config.levels > 1:
        return ResidualVQ(
            dim,
            token_dim,
            levels=config.levels,
            size=size,
            beta=beta,
            entropy=entropy,
            revival=revival,
            decay=decay,
        )
    return VQ(dim, token_dim, size=size, l2=config.l2, beta=beta, entropy=entropy, revival=revival, decay=decay)

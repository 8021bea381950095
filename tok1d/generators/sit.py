"""SiT (arXiv 2401.08740) and DiT (arXiv 2212.09748) on sequences of tokens, as MAETok and SoftVQ-VAE use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.ddpm import Chain, ancestral, ddim
from tok1d.diffusion.guidance import Guidance, guided
from tok1d.diffusion.solver import Field, NoiseSource
from tok1d.errors import ConfigError, InputError
from tok1d.generators.sequence import FlowConfig, FlowModel, SequenceConfig, SequenceModel, grid_side
from tok1d.nn.block import AdaLNBlock
from tok1d.nn.embed import IntervalEmbed, LabelEmbed, TimeEmbed, embed_times
from tok1d.nn.norm import Modulation, modulate
from tok1d.nn.position import sincos_2d, sincos_interleaved

_SIZES = {
    "S": {"dim": 384, "depth": 12, "heads": 6},
    "B": {"dim": 768, "depth": 12, "heads": 12},
    "L": {"dim": 1024, "depth": 24, "heads": 16},
    "XL": {"dim": 1152, "depth": 28, "heads": 16},
}


@dataclass
class SiTConfig(FlowConfig):
    """A SiT of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = _SIZES

    name: str = option("sit", "name of the model")
    positions: Literal["1d", "2d"] = option("1d", "fixed sine-cosine positions of a sequence, or of a square grid")
    qk_norm: bool = option(False, "LayerNorm of queries and keys")

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        super().check()
        position_table(self.positions, self.dim, self.num_tokens)


@dataclass
class DiTConfig(SequenceConfig):
    """A DiT of a named size, or of any width, depth and heads; trained as DDPM with learned variance."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {**_SIZES, "SL": {"dim": 1024, "depth": 16, "heads": 16}}

    name: str = option("dit", "name of the model")
    positions: Literal["1d", "2d"] = option("1d", "fixed sine-cosine positions of a sequence, or of a square grid")
    qk_norm: bool = option(False, "LayerNorm of queries and keys")
    schedule: Literal["linear", "cosine"] = option("linear", "noise levels of the 1000 steps")

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        super().check()
        position_table(self.positions, self.dim, self.num_tokens)


def position_table(kind: str, dim: int, num_tokens: int) -> Tensor:
    """Fixed positions (K, dim) of a sequence ("1d") or a square row-major grid ("2d").

    Raises:
        ConfigError: sizes that do not fit.
    """
    if kind == "1d":
        return sincos_interleaved(dim, num_tokens)
    if dim % 4:
        raise ConfigError(f"dim: expected a multiple of 4 for two-dimensional positions, got {dim}")
    side = grid_side(num_tokens)
    return sincos_2d(dim, side, side)


class SiTNetwork(nn.Module):
    """x (B, K, D), t (B,) or (1,), labels (B,) -> (B, K, out_dim): a transformer with adaLN-Zero of time and class.

    Args:
        out_dim: channels of an output token, D for a velocity and 2 D for noise and variance.
        with_beta: also condition on the strength beta of guidance-free training.
        intervals: also condition on the lengths of intervals, see `diffusion.few_step`.
    """

    positions: Tensor

    def __init__(
        self, config: SiTConfig | DiTConfig, out_dim: int, *, with_beta: bool = False, intervals: bool = False
    ) -> None:
        super().__init__()
        dim = config.dim
        table = position_table(config.positions, dim, config.num_tokens)
        self.register_buffer("positions", table, persistent=False)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.time_embed = TimeEmbed(dim)
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.beta_embed = TimeEmbed(dim) if with_beta else None
        self.interval_embed = IntervalEmbed(dim) if intervals else None
        qk_norm: Literal["layer", "none"] = "layer" if config.qk_norm else "none"
        self.blocks = nn.ModuleList(
            AdaLNBlock(dim, config.heads, config.mlp_ratio, qk_norm=qk_norm, eps=config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.out = nn.Linear(dim, out_dim)
        init_adaln_zero(self)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, beta: Tensor | None = None, d: Tensor | None = None
    ) -> Tensor:
        c = condition(self, t, labels, beta, d)
        x = self.token_embed(x) + self.positions
        for block in self.blocks:
            x = block(x, c)
        return self.out(modulate(self.norm(x), *self.modulation(c)))


class Embeds(Protocol):
    """The embeddings of a network: of times, of the lengths of intervals, of classes and of guidance strengths."""

    time_embed: TimeEmbed
    interval_embed: IntervalEmbed | None
    label_embed: LabelEmbed
    beta_embed: TimeEmbed | None


def condition(network: Embeds, t: Tensor, labels: Tensor, beta: Tensor | None, d: Tensor | None) -> Tensor:
    """The condition (B, 1, dim) of adaLN: the sum of the network's embeddings.

    Args:
        beta: strengths (B,) of guidance-free training; None means 1.
        d: lengths of intervals (B,); None means 0.
    """
    c = embed_times(network.time_embed, network.interval_embed, t, d) + network.label_embed(labels)
    if network.beta_embed is not None:
        c = c + network.beta_embed(torch.ones_like(t) if beta is None else beta)
    return c[:, None]


def init_adaln_zero(network: nn.Module) -> None:
    """DiT's initialisation: Xavier weights, normal(0.02) embeddings, every block the identity, the output zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in network.modules():
        if isinstance(module, Modulation):
            module.zero_init()
        elif isinstance(module, TimeEmbed):
            module.init_weights()
    beta_embed, out = getattr(network, "beta_embed", None), network.out
    if isinstance(beta_embed, TimeEmbed):  # weights trained without beta give the same outputs
        nn.init.zeros_(beta_embed.fc2.weight)
    assert isinstance(out, nn.Linear)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)


class SiT(FlowModel):
    """Generates tokens (B, K, D) for class ids (B,) along a learned velocity."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        intervals = config.few_step is not None
        self.net = SiTNetwork(config, config.token_dim, with_beta=config.guidance_free, intervals=intervals)


class DiT(SequenceModel):
    """Generates tokens (B, K, D) for class ids (B,), as a DDPM with noise prediction and learned variance."""

    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.net = SiTNetwork(config, 2 * config.token_dim)
        self.chain = Chain.named(config.schedule)

    def loss_rows(
        self, tokens: Tensor, labels: Tensor, *, t: Tensor | None = None, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Squared error of the noise and variational bound, (B,) each.

        Args:
            tokens: (B, K, D), normalised.
            labels: (B,), the null class included.
            t: steps (B,) in 0..999, of which the last is noise; noise: (B, K, D); None: random ones.
        """
        t = torch.randint(len(self.chain), tokens.shape[:1], device=tokens.device) if t is None else t
        noise = torch.randn_like(tokens) if noise is None else noise

        def network(x: Tensor, t: Tensor) -> Tensor:
            return swap(self.net(swap(x), t, labels))

        terms = self.chain.losses(network, swap(tokens), swap(noise), t)
        return {"loss_mse": terms["mse"], "loss_vb": terms["vb"]}

    def field(self, labels: Tensor, guidance: Guidance) -> Field:
        """Guided noise and the conditional variance, f(x (B, K, D), t (B,)) -> (B, K, 2 D), with t in 0..999.

        The interval of the guidance is in 1 - t / 1000, where 0 is noise and 1 the tokens.
        """
        dim, weak = self.config.token_dim, guidance.weak_model

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t, labels)

        def autoguided(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x, t, labels), weak.net(x, t, labels)

        if guidance.scale == 1:
            return conditional
        both = self.both(labels) if weak is None else autoguided

        def with_variance(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            conditional, unconditional = both(x, t)
            # Both predictions get the same variance, so guidance does not change it.
            return conditional, torch.cat([unconditional[..., :dim], conditional[..., dim:]], dim=-1)

        return guided(with_variance, conditional, guidance, lambda t: 1 - t / len(self.chain))

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default "ancestral"; raises InputError for an unknown one."""
        if name not in (None, "ancestral", "ddim"):
            raise InputError(f"sampler: expected 'ancestral' or 'ddim', got {name!r}")
        return name or "ancestral"

    def make_tokens(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> Tensor:
        """Raw tokens (B, K, D) by "ancestral" (DDPM) or "ddim", with 2..1000 steps.

        Raises:
            InputError: fewer than 2 steps: a chain of one keeps the cleanest step alone and would return noise.
        """
        steps = self.config.steps if settings.steps is None else settings.steps
        if steps < 2:
            raise InputError(f"steps: a DDPM needs at least 2, got {steps}")
        name, field, chain = self.sampler(settings.sampler), self.field(cond, guidance), self.chain.respace(steps)

        def swapped(x: Tensor, t: Tensor) -> Tensor:
            return swap(field(swap(x), t))

        x = swap(self.initial_noise(len(cond), noise))
        if name == "ddim":
            x = ddim(swapped, x, chain)
        else:
            x = ancestral(swapped, x, chain, lambda x: swap(noise(swap(x))), temperature=settings.temperature)
        return self.denormalise(swap(x))


def swap(x: Tensor) -> Tensor:
    """(B, K, D) <-> (B, D, K): the DDPM chain has noise and variance as channels on axis 1."""
    return x.transpose(1, 2)

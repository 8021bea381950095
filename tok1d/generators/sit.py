"""SiT and DiT on sequences of tokens (MAETok and SoftVQ-VAE; arXiv 2401.08740, arXiv 2212.09748), patch 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.diffusion.ddpm import Chain, ancestral, ddim
from tok1d.diffusion.guidance import Guidance, guided
from tok1d.diffusion.solver import Field, Randn
from tok1d.errors import ConfigError, InputError
from tok1d.generators.sequence import FlowConfig, FlowModel, SequenceConfig, SequenceModel, grid_side
from tok1d.nn.block import AdaLNBlock
from tok1d.nn.embed import LabelEmbed, TimeEmbed
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

    name: str = option("sit", "which model this is")
    positions: Literal["1d", "2d"] = option("1d", "fixed sine-cosine positions of a sequence, or of a square grid")
    qk_norm: bool = option(False, "LayerNorm of queries and keys")

    def check(self) -> None:
        """Contradictions between the fields."""
        super().check()
        position_table(self.positions, self.dim, self.num_tokens)


@dataclass
class DiTConfig(SequenceConfig):
    """A DiT of a named size, or of any width, depth and heads; trained as DDPM with learned variance."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {**_SIZES, "SL": {"dim": 1024, "depth": 16, "heads": 16}}

    name: str = option("dit", "which model this is")
    positions: Literal["1d", "2d"] = option("1d", "fixed sine-cosine positions of a sequence, or of a square grid")
    qk_norm: bool = option(False, "LayerNorm of queries and keys")
    schedule: Literal["linear", "cosine"] = option("linear", "noise levels of the 1000 steps")

    def check(self) -> None:
        """Contradictions between the fields."""
        super().check()
        position_table(self.positions, self.dim, self.num_tokens)


def position_table(kind: str, dim: int, num_tokens: int) -> Tensor:
    """The fixed positions (K, dim) of a sequence ("1d") or a square row-major grid ("2d"); ConfigError if none fits."""
    if kind == "1d":
        return sincos_interleaved(dim, num_tokens)
    if dim % 4:
        raise ConfigError(f"dim: two-dimensional positions need a multiple of 4, got {dim}")
    side = grid_side(num_tokens)
    return sincos_2d(dim, side, side)


class SiTNetwork(nn.Module):
    """x (B, K, D), t (B,) or (1,), labels (B,) -> (B, K, out): a transformer under adaLN-Zero of time and class.

    Args:
        out_dim: numbers of an output token, D for a velocity and 2 D for noise and variance.
        told_beta: also condition on the strength beta of guidance-free training.
    """

    positions: Tensor

    def __init__(self, config: SiTConfig | DiTConfig, out_dim: int, *, told_beta: bool = False) -> None:
        super().__init__()
        dim = config.dim
        table = position_table(config.positions, dim, config.num_tokens)
        self.register_buffer("positions", table, persistent=False)
        self.token_embed = nn.Linear(config.token_dim, dim)
        self.time_embed = TimeEmbed(dim)
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout)
        self.beta_embed = TimeEmbed(dim) if told_beta else None
        qk_norm: Literal["layer", "none"] = "layer" if config.qk_norm else "none"
        self.blocks = nn.ModuleList(
            AdaLNBlock(dim, config.heads, config.mlp_ratio, qk_norm=qk_norm) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.out = nn.Linear(dim, out_dim)
        init_adaln_zero(self)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, beta: Tensor | None = None) -> Tensor:
        c = condition(self.time_embed, self.label_embed, self.beta_embed, t, labels, beta)
        x = self.token_embed(x) + self.positions
        for block in self.blocks:
            x = block(x, c)
        return self.out(modulate(self.norm(x), *self.modulation(c)))


def condition(
    time_embed: TimeEmbed,
    label_embed: LabelEmbed,
    beta_embed: TimeEmbed | None,
    t: Tensor,
    labels: Tensor,
    beta: Tensor | None,
) -> Tensor:
    """The sum (B, 1, dim) of what adaLN is told: time, class and, where there is one, beta (None: 1)."""
    c = time_embed(t) + label_embed(labels)
    if beta_embed is not None:
        c = c + beta_embed(torch.ones_like(t) if beta is None else beta)
    return c[:, None]


def init_adaln_zero(network: nn.Module) -> None:
    """DiT's initialisation: Xavier, normal(0.02) embeddings; every block starts as the identity, the output at zero."""
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
    if isinstance(beta_embed, TimeEmbed):  # a model that was trained without beta keeps its outputs
        nn.init.zeros_(beta_embed.fc2.weight)
    assert isinstance(out, nn.Linear)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)


class SiT(FlowModel):
    """Tokens (B, K, D) float given classes (B,) int64, along a velocity."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        self.net = SiTNetwork(config, config.token_dim, told_beta=config.guidance_free)


class DiT(SequenceModel):
    """Tokens (B, K, D) float given classes (B,) int64, by DDPM with noise prediction and learned variance."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.net = SiTNetwork(config, 2 * config.token_dim)
        self.chain = Chain.named(config.schedule)

    def loss_rows(
        self, tokens: Tensor, labels: Tensor, *, t: Tensor | None = None, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Per-sample squared error of the noise and variational bound (B,).

        Args:
            tokens: (B, K, D), normalised. labels: (B,), the null class included.
            t, noise: steps (B,) of 1000 with noise upward, and (B, K, D), else drawn.
        """
        t = torch.randint(len(self.chain), tokens.shape[:1], device=tokens.device) if t is None else t
        noise = torch.randn_like(tokens) if noise is None else noise

        def network(x: Tensor, t: Tensor) -> Tensor:
            return swap(self.net(swap(x), t, labels))

        terms = self.chain.losses(network, swap(tokens), swap(noise), t)
        return {"loss_mse": terms["mse"], "loss_vb": terms["vb"]}

    def field(self, labels: Tensor, guidance: Guidance) -> Field:
        """Guided noise and the conditional variance, f(x (B, K, D), t (B,)) -> (B, K, 2 D); t are steps of 1000.

        The interval of the guidance is in 1 - t / 1000: 0 is noise, 1 the tokens.
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
            yes, no = both(x, t)
            # combine(yes, yes, scale) is yes: the learned variance is not guided.
            return yes, torch.cat([no[..., :dim], yes[..., dim:]], dim=-1)

        return guided(with_variance, conditional, guidance, lambda t: 1 - t / len(self.chain))

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default "ancestral"; InputError for one there is not."""
        if name not in (None, "ancestral", "ddim"):
            raise InputError(f"sampler: this model samples with 'ancestral' or 'ddim', got {name!r}")
        return name or "ancestral"

    def sample_from(
        self,
        labels: Tensor,
        x: Tensor,
        randn: Randn,
        *,
        guidance: Guidance,
        steps: int,
        sampler: str | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """As `SequenceModel.sample_from`, by "ancestral" (DDPM) or "ddim", with 2..1000 calls."""
        if steps < 2:
            raise InputError(f"steps: a DDPM chain needs at least 2, got {steps}")  # a single one is almost clean
        name, field, chain = self.sampler(sampler), self.field(labels, guidance), self.chain.respace(steps)

        def swapped(x: Tensor, t: Tensor) -> Tensor:
            return swap(field(swap(x), t))

        if name == "ddim":
            return self.denormalise(swap(ddim(swapped, swap(x), chain)))
        out = ancestral(swapped, swap(x), chain, lambda x: swap(randn(swap(x))), temperature=temperature)
        return self.denormalise(swap(out))


def swap(x: Tensor) -> Tensor:
    """(B, K, D) <-> (B, D, K): the chain splits noise from variance on axis 1."""
    return x.transpose(1, 2)

"""The diffusion head: a small MLP that denoises one token given a condition vector.

MAR's per-token diffusion (arXiv 2406.11838) in the two forms Semanticist uses: trained on the linear interpolant
or as DDPM, and conditioned through AdaLN ("adaln", MAR) or by concatenation ("concat", Semanticist).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config import option
from tok1d.diffusion.ddpm import Chain, ancestral
from tok1d.diffusion.guidance import combine
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Randn, euler, heun, interpolant_sde, time_grid
from tok1d.errors import InputError
from tok1d.nn.embed import TimeEmbed
from tok1d.nn.norm import Modulation, modulate


@dataclass
class HeadConfig:
    """The diffusion head; the paper's is 12 blocks of width 1536."""

    width: int = option(1536, "width", ge=1)
    depth: int = option(12, "number of residual blocks", ge=1)
    condition: Literal["concat", "adaln"] = option("concat", "how the condition enters")
    objective: Literal["interpolant", "ddpm"] = option("interpolant", "what the head is trained on")
    batch_mul: int = option(4, "noisy copies of every token in a training step", ge=1)
    times: Literal["uniform", "logit_normal"] = option("uniform", "training times of the interpolant")
    time_scale: float = option(
        1.0, "times of the interpolant are multiplied by it before their sinusoids; 1000 is the range of DDPM's", gt=0
    )
    sampler: Literal["sde", "euler", "heun"] = option("sde", "default sampler of the interpolant")
    steps: int = option(250, "default network evaluations a token", ge=2)
    last_step: float = option(0.04, "length in time of the SDE sampler's last step, without noise", gt=0, lt=1)


class ResidualBlock(nn.Module):
    """x + gate * MLP(modulated LayerNorm(x) [, condition])."""

    def __init__(self, width: int, *, concat: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.modulation = Modulation(width, 3)
        self.fc1 = nn.Linear(width * (1 + concat), width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor, context: Tensor | None) -> Tensor:
        shift, scale, gate = self.modulation(c)
        h = apply_split(self.fc1, modulate(self.norm(x), shift, scale), context)
        return x + gate * self.fc2(F.silu(h))


def apply_split(linear: nn.Linear, x: Tensor, context: Tensor | None) -> Tensor:
    """linear(x), or linear(concat[x, condition]) where `context` already holds the condition's half and the bias."""
    if context is None:
        return linear(x)
    return F.linear(x, linear.weight[:, : x.shape[-1]]) + context


class HeadNetwork(nn.Module):
    """x (R, D) noisy tokens, t (R,) or (1,), cond (R, C) -> (R, out).

    With "concat" the modulation depends on the time alone and the condition's half of every concatenated linear
    is constant while a token is sampled: `prepare` computes it once a token, `evaluate` reuses it.
    """

    def __init__(self, config: HeadConfig, token_dim: int, cond_dim: int) -> None:
        super().__init__()
        width, self.concat = config.width, config.condition == "concat"
        self.input = nn.Linear(token_dim, width)
        self.cond_embed = nn.Linear(cond_dim, width)
        self.time_embed = TimeEmbed(width, scale=config.time_scale if config.objective == "interpolant" else 1.0)
        self.blocks = nn.ModuleList(ResidualBlock(width, concat=self.concat) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(width, 2)
        self.out = nn.Linear(width * (1 + self.concat), token_dim * (2 if config.objective == "ddpm" else 1))
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.time_embed.init_weights()
        for module in self.modules():
            if isinstance(module, Modulation):
                module.zero_init()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def prepare(self, cond: Tensor) -> list[Tensor]:
        """What depends on the condition alone: one (R, ...) tensor per linear ("concat"), or the embedding."""
        c = self.cond_embed(cond)
        if not self.concat:
            return [c]
        linears: list[Any] = [*(block.fc1 for block in self.blocks), self.out]
        return [F.linear(c, linear.weight[:, -c.shape[-1] :], linear.bias) for linear in linears]

    def evaluate(self, x: Tensor, t: Tensor, prepared: list[Tensor]) -> Tensor:
        """The network with the condition's share already computed."""
        x = self.input(x)
        c = self.time_embed(t)
        contexts: list[Tensor | None] = [*prepared] if self.concat else [None] * (len(self.blocks) + 1)
        if not self.concat:
            c = c + prepared[0]
        for block, context in zip(self.blocks, contexts):
            x = block(x, c, context)
        shift, scale = self.modulation(c)
        return apply_split(self.out, modulate(self.norm(x), shift, scale), contexts[-1])

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.evaluate(x, t, self.prepare(cond))


class DiffusionHead(nn.Module):
    """Losses and samples of one token given its condition.

    Args:
        token_dim: D numbers of a token.
        cond_dim: width of the condition vector.
    """

    def __init__(self, config: HeadConfig, token_dim: int, cond_dim: int) -> None:
        super().__init__()
        self.config = config
        self.token_dim = token_dim
        self.net = HeadNetwork(config, token_dim, cond_dim)
        self.chain = Chain.named("cosine")
        self.objective = FlowObjective(Path("linear"), "velocity")

    def loss_rows(
        self, target: Tensor, cond: Tensor, *, t: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Per-row loss (R * batch_mul,) of tokens (R, D) given conditions (R, C).

        Every row is repeated batch_mul times, copy-major, with its own time and noise; the condition's share of
        the network is computed once a row. `t` and `noise` may be given, with R * batch_mul rows.
        """
        copies = self.config.batch_mul if t is None else t.shape[0] // target.shape[0]
        prepared = [part.repeat(copies, 1) for part in self.net.prepare(cond)]
        target = target.repeat(copies, 1)
        noise = torch.randn_like(target) if noise is None else noise

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self.net.evaluate(x, t, prepared)

        if self.config.objective == "ddpm":
            t = torch.randint(len(self.chain), target.shape[:1], device=target.device) if t is None else t
            terms = self.chain.losses(network, target, noise, t)
            return terms["mse"] + terms["vb"]
        t = Times(self.config.times).draw(target.shape[0], target.device) if t is None else t
        return self.objective.loss(network, target, noise, t)

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the configuration's; InputError for one the objective does not have."""
        if self.config.objective == "ddpm":
            if name not in (None, "ancestral"):
                raise InputError(f"a DDPM head samples with 'ancestral', got {name!r}")
            return "ancestral"
        if name not in (None, "sde", "euler", "heun"):
            raise InputError(f"the head samples with 'sde', 'euler' or 'heun', got {name!r}")
        return name or self.config.sampler

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor,
        start: Tensor,
        randn: Randn,
        *,
        uncond: Tensor | None = None,
        scale: float = 1.0,
        steps: int | None = None,
        sampler: str | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """One token a row (R, D) from starting noise `start` (R, D).

        Args:
            cond: (R, C) conditions; `uncond` (R, C) the unconditional ones, needed where scale != 1.
            steps: network evaluations. sampler: "sde", "euler" or "heun" (interpolant); DDPM is ancestral.
            temperature: multiplies the sampler's noise (no effect on the ODE samplers).

        Raises:
            InputError: a sampler the objective does not have, or too few steps for it.
        """
        steps, sampler = self.config.steps if steps is None else steps, self.sampler(sampler)
        # A chain of one step keeps the cleanest: noise would come out.
        if self.config.objective == "ddpm" and steps < 2:
            raise InputError(f"a DDPM head needs at least 2 steps, got {steps}")
        field = self.field(cond, uncond, scale)
        if self.config.objective == "ddpm":
            return ancestral(field, start, self.chain.respace(steps), randn, temperature=temperature)
        if sampler == "sde":
            return interpolant_sde(field, start, steps, randn, last_step=self.config.last_step, temperature=temperature)
        times = time_grid(steps, device=start.device)
        return (heun if sampler == "heun" else euler)(field, start, times)

    def field(self, cond: Tensor, uncond: Tensor | None = None, scale: float = 1.0) -> Field:
        """What the samplers follow for these conditions: guided velocity, or guided noise and its variance.

        The share of the network that depends on the conditions alone is computed here, once.
        """
        is_guided = scale != 1
        if is_guided:
            assert uncond is not None, "guidance needs the unconditional condition"
            cond = torch.cat([cond, uncond])
        prepared = self.net.prepare(cond)
        dim = self.token_dim

        def field(x: Tensor, t: Tensor) -> Tensor:
            if not is_guided:
                return self.net.evaluate(x, t, prepared)
            t2 = t if t.shape[0] == 1 else t.repeat(2)
            yes, no = self.net.evaluate(x.repeat(2, 1), t2, prepared).chunk(2)
            # A learned variance stays the conditional one.
            return torch.cat([combine(yes[:, :dim], no[:, :dim], scale), yes[:, dim:]], dim=1)

        return field

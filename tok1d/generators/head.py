"""The diffusion head: a small MLP that denoises one token given a condition vector.

MAR's per-token diffusion (arXiv 2406.11838, section 3.3) in the forms that Semanticist uses: trained on the linear
interpolant or as DDPM, and conditioned through AdaLN ("adaln", as in MAR) or by concatenation ("concat").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.diffusion.ddpm import Chain, ancestral
from tok1d.diffusion.guidance import combine
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Randn, euler, heun, interpolant_sde, sde_times, time_grid
from tok1d.errors import InputError
from tok1d.nn.embed import TimeEmbed
from tok1d.nn.norm import Modulation, gated, modulate


@dataclass
class HeadConfig:
    """The diffusion head; the defaults are those of the Semanticist paper."""

    width: int = option(1536, "width", ge=1)
    depth: int = option(12, "number of residual blocks", ge=1)
    condition: Literal["concat", "adaln"] = option(
        "concat", "conditioning: concatenated to the input of every MLP, or by AdaLN"
    )
    class_token: bool = option(
        False,
        "concatenate the class token to the head's input and project back to the width (Semanticist's appendix C.2; "
        "its release: false); the states of the stack enter as condition says",
    )
    objective: Literal["interpolant", "ddpm"] = option(
        "interpolant", "training objective: velocity of the linear interpolant, or DDPM with learned variance"
    )
    batch_mul: int = option(4, "noised copies of every token in a training step", ge=1)
    times: Literal["uniform", "logit_normal"] = option("uniform", "distribution of the interpolant's training times")
    time_scale: float = option(
        1.0,
        "factor of the interpolant's times in the time embedding; 1000 gives the range of DDPM's steps",
        gt=0,
    )
    sampler: Literal["sde", "euler", "heun"] = option("sde", "default sampler of the interpolant")
    steps: int = option(250, "default number of network evaluations per token", ge=2)
    last_step: float = option(0.04, "length in time of the SDE sampler's last step, which adds no noise", gt=0, lt=1)


class ResidualBlock(nn.Module):
    """x + gate * MLP(modulated LayerNorm(x) [, condition])."""

    def __init__(self, width: int, *, concat: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.modulation = Modulation(width, 3)
        self.fc1 = nn.Linear(width * (1 + concat), width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor, time: Sequence[Tensor], context: Tensor | None, half: Tensor | None) -> Tensor:
        """(R, width) -> (R, width).

        Args:
            time: shift, scale and gate of the modulation, (R or 1, width) each.
            context: the condition's part of the output of `fc1`, see `apply_split`; None with AdaLN.
            half: see `apply_split`.
        """
        shift, scale, gate = time
        h = apply_split(self.fc1, modulate(self.norm(x), shift, scale), context, half)
        return gated(x, gate, self.fc2(F.silu(h)))


def condition_part(linear: nn.Linear, condition: Tensor) -> Tensor:
    """The condition's part (R, out) of linear(concat[x, condition]), plus the bias."""
    return F.linear(condition, linear.weight[:, -condition.shape[-1] :], linear.bias)


def x_half(linear: nn.Linear, width: int) -> Tensor:
    """The transposed weights of x (R, width) in linear(concat[x, condition]), a view (width, out)."""
    return linear.weight[:, :width].t()


def apply_split(linear: nn.Linear, x: Tensor, context: Tensor | None, half: Tensor | None = None) -> Tensor:
    """linear(x), or linear(concat[x, condition]) with the condition's part already computed.

    Args:
        context: (R, out), the condition's weights times the condition, plus the bias; None: no condition.
        half: `x_half` of the layer in contiguous memory, which is faster; default: computed here.
    """
    if context is None:
        return linear(x)
    return torch.addmm(context, x, x_half(linear, x.shape[-1]) if half is None else half)


class HeadNetwork(nn.Module):
    """x (R, D) noisy tokens, t (R,) or (1,), cond (R, C) -> (R, out).

    With `class_token` cond is (R, 2 C): the condition, then the vector of the class.

    The call is split so that sampling can reuse results. `time_features` depends on the time alone (with "concat": all
    modulations) and is the same for all tokens sampled on one grid of times. `prepare` depends on the condition alone
    (with "concat": the condition's part of every linear layer that has it as input) and is the same for all steps of a
    token. `evaluate` computes the rest.
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
        self.class_embed = nn.Linear(cond_dim, width) if config.class_token else None
        self.join = nn.Linear(2 * width, width) if config.class_token else None
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
        """What depends on cond alone: one (R, out) tensor per layer of `split_linears`, or the embedding.

        With `class_token` then the part of the class in the layer after the input.
        """
        joined: list[Tensor] = []
        if self.class_embed is not None and self.join is not None:
            cond, classes = cond.chunk(2, dim=-1)
            joined = [condition_part(self.join, self.class_embed(classes))]
        c = self.cond_embed(cond)
        return [*([condition_part(linear, c) for linear in self.split_linears()] if self.concat else [c]), *joined]

    def split_linears(self) -> list[nn.Linear]:
        """The layers whose input is concat[x, condition] ("concat")."""
        return [*(cast(ResidualBlock, block).fc1 for block in self.blocks), self.out]

    def modulations(self, c: Tensor) -> list[Tensor]:
        """Shift, scale, gate of every block, shift and scale of the last layer, (R, width) each, from c (R, width)."""
        c = F.silu(c)
        modules = [*(cast(ResidualBlock, block).modulation for block in self.blocks), self.modulation]
        return [part for module in modules for part in module.linear(c).chunk(module.parts, dim=-1)]

    def time_features(self, t: Tensor) -> list[Tensor]:
        """What depends on times (T,) alone: the `modulations` ("concat"), or the embedding; (T, width) each."""
        c = self.time_embed(t)
        return self.modulations(c) if self.concat else [c]

    def evaluate(
        self, x: Tensor, time: Sequence[Tensor], prepared: list[Tensor], halves: list[Tensor] | None = None
    ) -> Tensor:
        """The output (R, out) for x (R, D).

        Args:
            time: `time_features` of (R,) or (1,) times.
            prepared: `prepare` of R conditions.
            halves: `x_half` of every layer of `split_linears` in contiguous memory; default: computed here.
        """
        x, nothing = self.input(x), [None] * (len(self.blocks) + 1)
        if self.join is not None:
            x, prepared = apply_split(self.join, x, prepared[-1]), prepared[:-1]
        contexts = prepared if self.concat else nothing
        time = time if self.concat else self.modulations(time[0] + prepared[0])
        for i, (block, context, half) in enumerate(zip(self.blocks, contexts, halves or nothing)):
            x = block(x, time[3 * i : 3 * i + 3], context, half)
        last = modulate(self.norm(x), *time[-2:])
        return apply_split(self.out, last, contexts[-1], halves[-1] if halves else None)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.evaluate(x, self.time_features(t), self.prepare(cond))


class SamplingTable:
    """Results that all tokens sampled on one grid of times share: time features and contiguous weight halves.

    Looking up a time does not synchronise a GPU with the CPU.

    Args:
        times: (T,), all times at which the sampler calls the network.
    """

    def __init__(self, net: HeadNetwork, times: Tensor) -> None:
        self.times, self.width = times.sort().values, net.out.in_features // (1 + net.concat)
        self.features = torch.cat(net.time_features(self.times), dim=1)
        linears = net.split_linears() if net.concat else []
        self.halves = [x_half(linear, self.width).contiguous() for linear in linears] or None

    def __call__(self, t: Tensor) -> Sequence[Tensor]:
        """The time features of times (1,) or (R,) out of the grid."""
        return self.features[torch.searchsorted(self.times, t)].split(self.width, dim=1)


class DiffusionHead(nn.Module):
    """Losses and samples of one token given its condition.

    Args:
        token_dim: channels D of a token.
        cond_dim: width C of the condition vector; with `class_token` conditions are (R, 2 C), see `HeadNetwork`.
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
        """Loss (R * batch_mul,) of every row of tokens (R, D) given conditions (R, C).

        The batch is repeated `batch_mul` times, each copy with its own times and noise; the part of the network that
        depends on the condition alone is computed once.

        Args:
            t: (R * batch_mul,), times or steps; None: random ones.
            noise: (R * batch_mul, D); None: random.
        """
        copies = self.config.batch_mul if t is None else t.shape[0] // target.shape[0]
        prepared = [part.repeat(copies, 1) for part in self.net.prepare(cond)]
        target = target.repeat(copies, 1)
        noise = torch.randn_like(target) if noise is None else noise

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self.net.evaluate(x, self.net.time_features(t), prepared)

        if self.config.objective == "ddpm":
            t = torch.randint(len(self.chain), target.shape[:1], device=target.device) if t is None else t
            terms = self.chain.losses(network, target, noise, t)
            return terms["mse"] + terms["vb"]
        t = Times(self.config.times).sample(target.shape[0], target.device) if t is None else t
        return self.objective.loss(network, target, noise, t)

    def sampler(self, name: str | None = None) -> str:
        """The sampler of that name, by default the configured one; raises InputError if the objective lacks it."""
        if self.config.objective == "ddpm":
            if name not in (None, "ancestral"):
                raise InputError(f"sampler: expected 'ancestral' for a DDPM head, got {name!r}")
            return "ancestral"
        if name not in (None, "sde", "euler", "heun"):
            raise InputError(f"sampler: expected 'sde', 'euler' or 'heun', got {name!r}")
        return name or self.config.sampler

    @torch.no_grad()
    def table(self, steps: int | str | None = None, sampler: str | None = None) -> SamplingTable:
        """The results that `sample` shares between tokens with these steps and this sampler.

        Raises:
            InputError: as `sample`.
        """
        steps, sampler = self.config.steps if steps is None else steps, self.sampler(sampler)
        device = self.net.out.weight.device
        if sampler == "ancestral":
            # A chain of one step would keep the cleanest step and return noise.
            chain = self.chain.respace(steps)
            if len(chain) < 2 or (isinstance(steps, Integral) and steps < 2):  # "0" means all steps to `respace`
                raise InputError(f"DDPM head: expected at least 2 steps, got {steps}")
            return SamplingTable(self.net, torch.tensor(chain.step_map, device=device))
        if not isinstance(steps, Integral):
            raise InputError(f"steps: expected a number for sampler={sampler}, got {steps!r}")
        if sampler == "sde":
            return SamplingTable(self.net, sde_times(steps, last_step=self.config.last_step, device=device))
        return SamplingTable(
            self.net, time_grid(steps, device=device)[:-1]
        )  # neither ODE sampler calls the network at t = 1

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor,
        start: Tensor,
        randn: Randn,
        *,
        uncond: Tensor | None = None,
        scale: float = 1.0,
        steps: int | str | None = None,
        sampler: str | None = None,
        temperature: float = 1.0,
        table: SamplingTable | None = None,
    ) -> Tensor:
        """One token per row (R, D) from initial noise `start` (R, D).

        Args:
            cond: conditions (R, C).
            randn: source of the sampler's noise (R, D).
            uncond: conditions (R, C) of the null condition; needed where scale is not 1.
            scale: guidance scale.
            steps: network evaluations, default `config.steps`; for DDPM also "ddimN" or "a,b,c", see `respaced_steps`.
            sampler: "sde", "euler" or "heun" (interpolant), "ancestral" (DDPM); default: see `sampler`.
            temperature: multiplies the sampler's noise; without effect on the ODE samplers.
            table: `table` of these steps and this sampler; default: made here.

        Raises:
            InputError: a sampler the objective does not have, or too few steps for it.
        """
        table = self.table(steps, sampler) if table is None else table
        steps, sampler = self.config.steps if steps is None else steps, self.sampler(sampler)
        field = self.field(cond, uncond, scale, table)
        if self.config.objective == "ddpm":
            return ancestral(field, start, self.chain.respace(steps), randn, temperature=temperature)
        assert isinstance(steps, Integral), "as `table` has checked"
        steps = int(steps)
        if sampler == "sde":
            return interpolant_sde(field, start, steps, randn, last_step=self.config.last_step, temperature=temperature)
        times = time_grid(steps, device=start.device)
        return (heun if sampler == "heun" else euler)(field, start, times)

    def field(
        self, cond: Tensor, uncond: Tensor | None = None, scale: float = 1.0, table: SamplingTable | None = None
    ) -> Field:
        """The function f(x, t) that samplers evaluate: guided velocity, or guided noise and conditional variance.

        The part of the network that depends on the conditions alone is computed here, once.

        Args:
            table: looked up for the part that depends on the times alone; must hold all times of the calls.
        """
        features, halves = (self.net.time_features, None) if table is None else (table, table.halves)
        is_guided = scale != 1
        if is_guided:
            assert uncond is not None, "guidance needs the unconditional condition"
            cond = torch.cat([cond, uncond])
        prepared = self.net.prepare(cond)
        dim = self.token_dim

        def field(x: Tensor, t: Tensor) -> Tensor:
            if not is_guided:
                return self.net.evaluate(x, features(t), prepared, halves)
            t2 = t if t.shape[0] == 1 else t.repeat(2)
            given, null = self.net.evaluate(x.repeat(2, 1), features(t2), prepared, halves).chunk(2)
            # Guidance does not change a learned variance.
            return torch.cat([combine(given[:, :dim], null[:, :dim], scale), given[:, dim:]], dim=1)

        return field

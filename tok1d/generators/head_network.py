"""The network of the diffusion head: a small MLP from a noisy token, a time and a condition vector.

See `head.py`; conditioned through AdaLN ("adaln", as in MAR, arXiv 2406.11838) or by concatenation ("concat").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.diffusion.few_step import FewStepConfig, Intervals
from tok1d.errors import ConfigError
from tok1d.nn.embed import IntervalEmbed, TimeEmbed, embed_times
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
    steps: int = option(250, "default number of network evaluations per token", ge=1)
    last_step: float = option(0.04, "length in time of the SDE sampler's last step, which adds no noise", gt=0, lt=1)
    few_step: FewStepConfig | None = option(None, "sampling in few steps; null: a model of the velocity")

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        if self.steps < 2 and (self.objective == "ddpm" or self.sampler == "sde"):
            kind = "a DDPM head" if self.objective == "ddpm" else "sampler=sde"
            raise ConfigError(f"steps: expected at least 2 for {kind}, got {self.steps}")
        if self.few_step is not None and (self.objective, self.sampler) != ("interpolant", "euler"):
            raise ConfigError(
                f"few_step: expected objective=interpolant and sampler=euler, got {self.objective} and {self.sampler}"
            )


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
        self.interval_embed = None if config.few_step is None else IntervalEmbed(width)
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
        for module in self.modules():
            if isinstance(module, TimeEmbed):
                module.init_weights()
            elif isinstance(module, Modulation):
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

    def time_features(self, t: Tensor, d: Tensor | None = None) -> list[Tensor]:
        """What depends on times (T,) alone: the `modulations` ("concat"), or the embedding; (T, width) each.

        Args:
            d: lengths of intervals (T,), with `few_step` only; None: 0.
        """
        c = embed_times(self.time_embed, self.interval_embed, t, d)
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
        intervals: the lengths of the steps from these times; None: the network is called for the velocity.
    """

    def __init__(self, net: HeadNetwork, times: Tensor, intervals: Intervals | None = None) -> None:
        self.times, self.width = times.sort().values, net.out.in_features // (1 + net.concat)
        lengths = None if intervals is None else intervals(self.times)
        self.features = torch.cat(net.time_features(self.times, lengths), dim=1)
        linears = net.split_linears() if net.concat else []
        self.halves = [x_half(linear, self.width).contiguous() for linear in linears] or None

    def __call__(self, t: Tensor) -> Sequence[Tensor]:
        """The time features of times (1,) or (R,) out of the grid."""
        return self.features[torch.searchsorted(self.times, t)].split(self.width, dim=1)

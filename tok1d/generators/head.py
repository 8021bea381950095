"""The diffusion head: a small MLP that denoises one token given a condition vector.

MAR's per-token diffusion (arXiv 2406.11838, section 3.3) in the forms that Semanticist uses: trained on the linear
interpolant or as DDPM, and conditioned through AdaLN ("adaln", as in MAR) or by concatenation ("concat").
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor, nn

from tok1d.diffusion.ddpm import Chain, ancestral
from tok1d.diffusion.few_step import FewStepObjective, Intervals, Velocity, rows_of
from tok1d.diffusion.guidance import combine
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Randn, euler, heun, interpolant_sde, sde_times, time_grid
from tok1d.errors import InputError
from tok1d.generators.head_network import HeadConfig, HeadNetwork, SamplingTable

__all__ = ["DiffusionHead", "HeadConfig", "HeadNetwork", "SamplingTable"]


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
        few = config.few_step
        self.few_step = None if few is None else FewStepObjective(few, self.objective, Times(config.times))

    def loss_rows(
        self,
        target: Tensor,
        cond: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        velocity: Velocity | None = None,
    ) -> Tensor:
        """Loss (R * batch_mul,) of every row of tokens (R, D) given conditions (R, C).

        The batch is repeated `batch_mul` times, each copy with its own times and noise; the part of the network that
        depends on the condition alone is computed once.

        Args:
            t: (R * batch_mul,), times or steps; None: random ones.
            noise: (R * batch_mul, D); None: random.
            velocity: what `few_step` learns, see `FewStepObjective.loss`, for the rows of the repeated batch.
        """
        copies = self.config.batch_mul if t is None else t.shape[0] // target.shape[0]
        prepared = [part.repeat(copies, 1) for part in self.net.prepare(cond)]
        target = target.repeat(copies, 1)
        noise = torch.randn_like(target) if noise is None else noise

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self.net.evaluate(x, self.net.time_features(t), prepared)

        def average(x: Tensor, t: Tensor, d: Tensor, rows: slice) -> Tensor:
            return self.net.evaluate(x, self.net.time_features(t, d), [rows_of(part, rows) for part in prepared])

        if self.few_step is not None:
            return self.few_step.loss(average, target, noise, velocity=velocity)
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
        times = time_grid(steps, device=device)
        intervals = Intervals(times) if self.few_step is not None and sampler == "euler" else None
        return SamplingTable(self.net, times[:-1], intervals)  # neither ODE sampler calls the network at t = 1

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
        self,
        cond: Tensor,
        uncond: Tensor | None = None,
        scale: float | Tensor = 1.0,
        table: SamplingTable | None = None,
        copies: int = 1,
    ) -> Field:
        """The function f(x, t) that samplers evaluate: guided velocity, or guided noise and conditional variance.

        The part of the network that depends on the conditions alone is computed here, once.

        Args:
            scale: guidance scale, or one for each row of x, (R * copies, 1).
            table: looked up for the part that depends on the times alone; must hold all times of the calls.
            copies: x is (R * copies, D), the rows of the conditions repeated.
        """
        features, halves = (self.net.time_features, None) if table is None else (table, table.halves)
        is_guided = isinstance(scale, Tensor) or scale != 1
        if is_guided:
            assert uncond is not None, "guidance needs the unconditional condition"
            cond = torch.cat([cond, uncond])
        prepared, dim = self.net.prepare(cond), self.token_dim
        if copies > 1:  # of the conditional and of the unconditional rows
            parts = 1 + is_guided
            prepared = [torch.cat([each.repeat(copies, 1) for each in part.chunk(parts)]) for part in prepared]

        def field(x: Tensor, t: Tensor) -> Tensor:
            if not is_guided:
                return self.net.evaluate(x, features(t), prepared, halves)
            t2 = t if t.shape[0] == 1 else t.repeat(2)
            given, null = self.net.evaluate(x.repeat(2, 1), features(t2), prepared, halves).chunk(2)
            # Guidance does not change a learned variance.
            return torch.cat([combine(given[:, :dim], null[:, :dim], scale), given[:, dim:]], dim=1)

        return field

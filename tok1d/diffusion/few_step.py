"""Sampling in few steps: networks of the average velocity over an interval of time, and their training objectives.

Where v is the velocity of a flow, the average velocity u(x, t, d) is the mean of v along the flow from x at time t to
time t + d. One call then takes a step of any length: x at t + d is x + d u(x, t, d). At d = 0 it is the velocity.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tok1d.config.fields import option
from tok1d.diffusion.guidance import combine
from tok1d.diffusion.objective import FlowObjective, Times
from tok1d.diffusion.path import expand
from tok1d.diffusion.solver import Field, shifted_time
from tok1d.errors import ConfigError, InputError
from tok1d.nn.precision import single

LAST = 0.999  # latest start of an interval: at t = 1 a data prediction has no velocity
SMALL = 1e-3  # added to the error in MeanFlow's weight (arXiv 2505.13447, section 4.3)

Network = Callable[[Tensor, Tensor, Tensor, slice], Tensor]  # f(x (B, ...), t (B,), d (B,), rows of the conditions)
Average = Callable[[Tensor, Tensor, Tensor], Tensor]  # u(x (B, ...), t (B,), d (B,)) -> (B, ...)
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # v(x (B, ...), t (B,), the data's velocity) -> (B, ...)


@dataclass
class FewStepConfig:
    """Training of the average velocity, with which 1, 2 or 4 sampling steps suffice."""

    objective: Literal["shortcut", "meanflow"] = option(
        "shortcut",
        "how intervals are trained: one step equals two of half its length (shortcut, arXiv 2410.12557), or the "
        "identity of MeanFlow (arXiv 2505.13447), with derivatives in time",
    )
    share: float = option(0.25, "share of a batch that is trained on intervals; the others on the velocity", gt=0, lt=1)
    finest: int = option(
        128,
        "shortcut: steps of the finest grid, a power of 2; intervals are 1, 1/2, 1/4, ... of the sampler's time",
        ge=2,
    )
    teacher: str = option(
        "",
        "model folder, bundled or hub name of a trained model of the same kind whose velocity is learned in place of "
        "the data's (distillation); only training needs it",
        path="path",
    )
    guidance: float = option(
        1.0, "scale of the guidance that the learned velocity includes, so that sampling needs none; 1: none", ge=0
    )

    def check(self) -> None:
        """Raise ConfigError on a grid that cannot be halved down to one step."""
        if self.finest & (self.finest - 1):
            raise ConfigError(f"finest: expected a power of 2, got {self.finest}")


class Spans(NamedTuple):
    """Intervals of time of a batch: starts and ends (B,), equal but in the first `num` rows."""

    start: Tensor
    end: Tensor
    num: int


class Intervals:
    """The steps of a sampler: a time of its grid -> the length of the step that starts there, of the same shape.

    Args:
        times: the grid (n + 1,), increasing.
    """

    def __init__(self, times: Tensor) -> None:
        self.times = times

    def __call__(self, t: Tensor) -> Tensor:
        return self.times[torch.searchsorted(self.times, t, right=True)] - t


@dataclass(frozen=True)
class FewStepObjective:
    """The loss of a network of the average velocity.

    The network predicts what `flow` says (data or velocity); converted as if it were a prediction at time t, its output
    is the average velocity over [t, t + d]. With a data prediction one step from t = 0 to 1 is the prediction itself.

    Args:
        times: the distribution of times at which the velocity is trained.
        shift: of the sampler's times; the intervals of training are those of its grids. The papers have none.
    """

    config: FewStepConfig
    flow: FlowObjective
    times: Times
    shift: float = 1.0

    def spans(self, num: int, device: torch.device | None = None) -> Spans:
        """Random intervals of a batch of `num`, the first `share` of them longer than 0.

        shortcut: a step of a grid of 1, 2, 4, ... or finest / 2 steps, each grid as likely. meanflow: between two times
        that are uniform up to the shift.
        """
        start = self.times.sample(num, device).clamp(max=LAST)
        rows = math.ceil(self.config.share * num)
        if self.config.objective == "shortcut":
            steps = 2 ** torch.randint(self.config.finest.bit_length() - 1, (rows,), device=device)
            first = (torch.rand(rows, device=device) * steps).floor()
            low, high = first / steps, (first + 1) / steps
        else:
            low, high = torch.rand(2, rows, device=device).sort(0).values
        first = shifted_time(1 - low, self.shift).clamp(max=LAST)
        last = torch.maximum(first, shifted_time(1 - high, self.shift))
        return Spans(torch.cat([first, start[rows:]]), torch.cat([last, start[rows:]]), rows)

    def loss(
        self,
        network: Network,
        data: Tensor,
        noise: Tensor,
        *,
        spans: Spans | None = None,
        velocity: Velocity | None = None,
    ) -> Tensor:
        """Weighted squared error (B,) of the network for data and noise (B, ...); targets have no gradient.

        meanflow: each row is also divided by its own error, plus 0.001 (section 4.3 of its paper, with p = 1).

        Args:
            network: called on the whole batch, then without gradients on the first rows.
            spans: intervals; default: random ones.
            velocity: what is learned at d = 0; default: the velocity of the data.
        """
        t, s, num = self.spans(len(data), data.device) if spans is None else spans
        path, kind = self.flow.path, self.flow.prediction
        x = path.interpolate(data, noise, t)
        # The pass with gradients is the first: autocast keeps the half-precision weights of the first for all.
        output = single(network(x, t, s - t, slice(None)))
        with torch.no_grad():
            target = path.velocity(data, noise, t)
            if velocity is not None:
                target = single(velocity(x, t, target))
            if num:
                target = torch.cat([self.average(network, x[:num], t[:num], s[:num], target[:num]), target[num:]])
            target = path.from_velocity(target, kind, x, t)
        loss = self.flow.weighted(output - target, t)
        return loss / (loss.detach() + SMALL) if self.config.objective == "meanflow" else loss

    def average(self, network: Network, x: Tensor, t: Tensor, s: Tensor, v: Tensor) -> Tensor:
        """The target of the average velocity (B, ...) over intervals from t to s > t, where v is the velocity at t."""
        path, kind, rows = self.flow.path, self.flow.prediction, slice(len(x))

        def average(x: Tensor, t: Tensor, d: Tensor) -> Tensor:
            return path.to_velocity(single(network(x, t, d, rows)), kind, x, t)

        if self.config.objective == "shortcut":
            return self._two_steps(average, x, t, s)
        return mean_flow(average, x, t, s, v)

    def _two_steps(self, average: Average, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The average velocity of two steps, which halve the interval in the sampler's time (shortcut, equation 5).

        On the finest grid the network is called with d = 0.
        """
        low, high = (self.shift * each / (1 + (self.shift - 1) * each) for each in (t, s))
        middle = shifted_time(1 - (low + high) / 2, self.shift)
        first, second = middle - t, s - middle
        coarse = high - low > 3 / self.config.finest  # halves longer than a step of the finest grid
        before = average(x, t, first * coarse)
        after = average(x + expand(first, x) * before, middle, second * coarse)
        return (expand(first, x) * before + expand(second, x) * after) / expand(s - t, x)


def mean_flow(average: Average, x: Tensor, t: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """MeanFlow's target v + (s - t) du/dt, with the derivative along the flow at a fixed end s.

    It is equation 6 of arXiv 2505.13447 for times that increase from noise to data. The derivative is computed in
    forward mode, which fused attention kernels do not have.
    """
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own decompositions, at the first call
        change = torch.func.jvp(lambda x, t: average(x, t, s - t), (x, t), (v, torch.ones_like(t)))[1]
    return v + expand(s - t, x) * change


def rows_of(x: Tensor, rows: slice) -> Tensor:
    """Rows of a network's condition; where no gradients are computed, detached, which hooks of modules rely on."""
    return x[rows] if torch.is_grad_enabled() else x[rows].detach()


def guided_velocity(unconditional: Field, scale: float | Tensor) -> Velocity:
    """The data's velocity, guided by a model's own unconditional one (arXiv 2505.13447, section 4.2).

    Where the condition is the null condition its expectation is not changed.
    """
    return lambda x, t, v: combine(v, unconditional(x, t), scale)


class FewStepModel(nn.Module):
    """A model of a flow that can be trained on average velocities.

    Attributes:
        few_step: the objective; None: an ordinary model of the velocity.
        velocity_teacher: see `FewStepConfig.teacher`; set by zoo.pretrained.teachers.give_teachers, no submodule.
        same_as_teacher: fields of the configuration that the teacher's has to equal.
        weights_of_teacher: prefixes of the names of weights that make or normalise tokens, which both share.
    """

    same_as_teacher: ClassVar[tuple[str, ...]]
    weights_of_teacher: ClassVar[tuple[str, ...]]

    few_step: FewStepObjective | None = None
    velocity_teacher: Any = None  # a model of the same class

    @property
    def velocity_teacher_name(self) -> str:
        """The model to load as teacher; "" without teacher."""
        return "" if self.few_step is None else self.few_step.config.teacher

    def taught_by(self) -> Any:
        """The teacher, on this model's device; None without teacher.

        Raises:
            InputError: the teacher is not loaded.
        """
        teacher, name = self.velocity_teacher, self.velocity_teacher_name
        if name and teacher is None:
            raise InputError(
                f"teacher {name}: expected the loaded model, got none; call "
                "tok1d.zoo.pretrained.teachers.give_teachers(model) before computing losses"
            )
        device = next(self.parameters()).device
        if teacher is not None and next(teacher.parameters()).device != device:
            teacher.to(device)
        return teacher

    def use_stand_ins(self, *, average: bool = False) -> None:
        """Count the cost of a teacher as that of this model."""
        if self.velocity_teacher_name:
            object.__setattr__(self, "velocity_teacher", self)

    @torch.no_grad()
    def take_teacher(self, teacher: Any, *, initialised: bool) -> None:
        """Set the teacher, and the statistics of the tokens to its own.

        Args:
            initialised: this model has its initial weights, so that those it shares with the teacher can be compared.

        Raises:
            ConfigError: a model of another kind, of other sizes or of other tokens.
        """
        what = f"few_step.teacher: {self.velocity_teacher_name}"
        for key in ("name", *self.same_as_teacher):
            ours, theirs = (_field(model, key) for model in (self, teacher))
            if ours != theirs:
                raise ConfigError(f"{what}: expected {key}={ours} as in this model, got {theirs}")
        found = teacher.state_dict()
        for key, value in self.state_dict().items() if initialised else ():
            if not key.startswith(self.weights_of_teacher):
                continue
            # Statistics of another order of the same tokens differ a little.
            if not torch.allclose(value, found[key], rtol=0.05, atol=0.05):
                raise ConfigError(
                    f"{what}: its {key} differs, so it has other tokens; expected the model of init_from, or one that "
                    "was trained on the same tokens"
                )
            value.copy_(found[key])
        object.__setattr__(self, "velocity_teacher", teacher.requires_grad_(False))  # no submodule


def _field(model: Any, key: str) -> object:
    """A field of a model's configuration by its dotted name; None if there is no such field."""
    found: Any = getattr(model, "config", None)
    for part in key.split("."):
        found = getattr(found, part, None)
    return found

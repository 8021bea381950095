"""Guidance of released code that differs from this package; needed to reproduce its samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from tok1d.config.sampling import Schedule
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import Field


def first_channels(guided: Field, conditional: Field, channels: int = 3) -> Field:
    """LightningDiT's guidance of the first channels of x (B, K, D); others use the conditional prediction."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([guided(x, t)[..., :channels], conditional(x, t)[..., channels:]], dim=-1)

    return field


def heun_held(field_at: Callable[[float], Field], x: Tensor, times: Tensor) -> Tensor:
    """SoftVQ-VAE's Heun sampler: both evaluations of a step use the guidance of its first time; the last step is Euler.

    Args:
        field_at: the field, guided or not, for a time.
        times: (n + 1,), increasing to 1.
    """
    for t, t_next in pairwise(times):
        f = field_at(float(t))
        d = f(x, t[None])
        trial = x + (t_next - t) * d
        x = trial if t_next >= 1 else x + (t_next - t) * (d + f(trial, t_next[None])) / 2
    return x


def llamagen_guidance(scale: float, cfg_interval: int, num_tokens: int) -> Guidance:
    """LlamaGen's guidance options: cfg_interval=-1 guides all tokens, n >= 0 the first n + 2."""
    end = 1.0 if cfg_interval < 0 else (cfg_interval + 1) / num_tokens
    return Guidance(scale, (0.0, end))


def maskgit_guidance(scale: float, decay: str, power: float = 3.0) -> Guidance:
    """TiTok's options for MaskGIT: scale 0 is no guidance with "constant" and "linear", 1 with "power-cosine"."""
    schedules: dict[str, Schedule] = {"constant": "constant", "linear": "linear", "power-cosine": "power_cosine"}
    schedule = schedules[decay]
    return Guidance(scale if schedule == "power_cosine" else scale + 1, schedule=schedule, power=power)

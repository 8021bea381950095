"""How two releases guide a velocity differently from this package; needed to repeat their recorded samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from tok1d.diffusion.solver import Field


def first_channels(guided: Field, conditional: Field, channels: int = 3) -> Field:
    """LightningDiT's guidance: the first channels of x (B, K, D) are guided, the others stay conditional."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([guided(x, t)[..., :channels], conditional(x, t)[..., channels:]], dim=-1)

    return field


def heun_held(field_at: Callable[[float], Field], x: Tensor, times: Tensor) -> Tensor:
    """SoftVQ-VAE's Heun: both evaluations of a step use the guidance of its first time; the last step is Euler.

    Args:
        field_at: the field, guided or not, at a time.
        times: (n + 1,), growing to 1.
    """
    for t, t_next in pairwise(times):
        f = field_at(float(t))
        d = f(x, t[None])
        trial = x + (t_next - t) * d
        x = trial if t_next >= 1 else x + (t_next - t) * (d + f(trial, t_next[None])) / 2
    return x

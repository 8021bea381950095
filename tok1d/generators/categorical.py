"""Drawing ids from logits: temperature, top-k, top-p, and the draws themselves as plain functions."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.errors import InputError
from tok1d.generators.base import check_temperature

COLDEST = 1e-5  # logits are divided by no smaller temperature


def check_filter(*, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> None:
    """Refuse settings that mean nothing.

    Raises:
        InputError: top_k or temperature below 0, or top_p outside (0, 1].
    """
    if top_k < 0:
        raise InputError(f"top_k: expected 0 (off) or a number of entries, got {top_k}")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p: expected a probability in (0, 1], where 1 is off, got {top_p:g}")
    check_temperature(temperature)


def filter_logits(logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits over the temperature, with all but the likely entries at -inf. (..., V) -> (..., V).

    Args:
        top_k: keep the so many largest and whatever equals the last of them; 0 keeps all.
        top_p: of these keep, from the largest down, the entries up to and including the one whose probability makes
            their sum exceed it (nucleus sampling, arXiv 1904.09751); 1 keeps all.
    """
    logits = logits / max(temperature, COLDEST)
    if top_k:
        last = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if top_p < 1:
        sorted_logits, order = logits.sort(dim=-1, descending=True, stable=True)
        before = sorted_logits.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0
        removed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    return logits


def draw_ids(probabilities: Tensor, exponential: Tensor) -> Tensor:
    """One id of each distribution (..., V): the entry whose exponential clock of that rate rings first. -> (...).

    Args:
        exponential: draws of mean 1, (..., V).
    """
    return (probabilities / exponential.clamp(min=torch.finfo(exponential.dtype).tiny)).argmax(-1)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel draws from uniform ones: -log(-log u), both logarithms of at least 1e-20."""
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()

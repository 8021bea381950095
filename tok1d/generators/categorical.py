"""Sampling ids from logits: temperature, top-k, top-p, and random choice as plain functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tok1d.config.sampling import SampleSettings

MIN_TEMPERATURE = 1e-5  # logits are divided by no smaller temperature


def filter_logits(logits: Tensor, settings: SampleSettings) -> Tensor:
    """Logits divided by the temperature, with all but the likely entries at -inf. (..., V) -> (..., V).

    Args:
        settings: top_k keeps the k largest logits and all that equal the last of them, 0 keeps all. Of these, top_p
            keeps the most likely entries up to and including the one at which the sum of their probabilities exceeds
            top_p (nucleus sampling, arXiv 1904.09751), 1 keeps all. min_p keeps the entries with at least this share
            of the largest probability (arXiv 2407.01082), 0 keeps all.
    """
    logits = logits / max(settings.temperature, MIN_TEMPERATURE)
    if settings.top_k:
        last = logits.topk(min(settings.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if settings.top_p < 1:
        sorted_logits, order = logits.sort(dim=-1, descending=True, stable=True)
        before = sorted_logits.softmax(-1).cumsum(-1).roll(1, -1)  # total probability of all more likely entries
        before[..., 0] = 0
        removed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > settings.top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    if settings.min_p > 0:  # p_i >= min_p * p_max, in logarithms; the normaliser cancels
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(settings.min_p), -torch.inf)
    return logits


def sample_ids(probabilities: Tensor, exponential: Tensor) -> Tensor:
    """One id of each distribution (..., V) -> (...).

    Of independent exponential variables with rates p_i, variable i is the smallest with probability p_i; with
    variables e_i of rate 1 that is the largest p_i / e_i.

    Args:
        exponential: random numbers of mean 1, (..., V).
    """
    return (probabilities / exponential.clamp(min=torch.finfo(exponential.dtype).tiny)).argmax(-1)


def other_ids(logits: Tensor, exponential: Tensor | None, first: Tensor, num: int) -> Tensor:
    """`num` different ids of each row: `first`, then those with the next largest log p_i - log e_i.

    With exponential numbers e_i of mean 1 these are samples without replacement (arXiv 1903.06059), without them the
    most likely ids. Where fewer ids have a probability, `first` is repeated.

    Args:
        logits: (R, V), -inf for ids that are not sampled.
        exponential: (R, V); None: no random numbers.
        first: ids (R,).

    Returns:
        (R, num) int64.
    """
    keys = logits.log_softmax(-1)
    if exponential is not None:
        keys = keys - exponential.clamp(min=torch.finfo(exponential.dtype).tiny).log()
    keys = keys.scatter(-1, first[:, None], -torch.inf)
    found = keys.topk(min(num - 1, keys.shape[-1] - 1), dim=-1)
    rest = torch.where(found.values.isfinite(), found.indices, first[:, None])
    missing = num - 1 - rest.shape[1]
    return torch.cat([first[:, None], rest, first[:, None].expand(-1, missing)], dim=1)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers: -log(-log u), both logarithms of at least 1e-20."""
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()

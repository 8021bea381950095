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


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers: -log(-log u), both logarithms of at least 1e-20."""
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()

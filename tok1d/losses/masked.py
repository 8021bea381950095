"""Losses of mask modelling: features of masked patches, and the words of a caption."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.bottleneck.shared import mean_over_processes, num_processes


def weighted_mean(values: Tensor, weight: Tensor, *, shared: bool, least: float = 1.0) -> Tensor:
    """sum(values * weight) / max(sum(weight), least).

    Args:
        shared: whether the sum of the weight is replaced by its mean over all processes, which all have to call this.
            The mean of the results over processes is then the weighted mean over all batches.
    """
    total = weight.sum()
    if shared:
        total, least = mean_over_processes(total), least / num_processes()
    return (values * weight).sum() / total.clamp(min=least)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, shared: bool = False) -> Tensor:
    """Squared error, averaged over masked patches and channels (MAETok, equation 8); 0 without masked patches.

    Args:
        prediction, target: (B, N, D).
        mask: (B, N) bool, True where the error counts; None: every patch counts.
        shared: whether the average is over all processes, see `weighted_mean`.
    """
    errors = (prediction.float() - target.float()).square().mean(-1)
    if mask is None:
        return errors.mean()
    return weighted_mean(errors, mask.to(errors.dtype), shared=shared)


def bag_of_words(ids: Tensor, vocab_size: int) -> Tensor:
    """Ids (B, T) int64, negative ones are padding, -> (B, vocab_size), 1 for ids that occur and 0 for others."""
    hot = torch.zeros(ids.shape[0], vocab_size + 1, device=ids.device)
    return hot.scatter_(1, torch.where(ids < 0, vocab_size, ids), 1.0)[:, :vocab_size]


def caption_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy against the words of a caption without their order, in nats (SuperClass, arXiv 2411.03313).

    Args:
        logits: (B, V).
        words: (B, V) >= 0, 0 or 1, or weights such as the inverse document frequency. Rows are divided by their sum;
            a row of zeros (no caption) adds 0.
    """
    words = words.float()
    shares = words / words.sum(1, keepdim=True).clamp(min=1e-12)
    return -(shares * logits.float().log_softmax(-1)).sum(1).mean()

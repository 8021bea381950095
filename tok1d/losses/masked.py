"""Losses of masked modelling: features of hidden patches, and the words of a caption."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.bottleneck.shared import mean_over_processes, num_processes


def weighted_mean(values: Tensor, weight: Tensor, *, shared: bool, least: float = 1.0) -> Tensor:
    """The sum of values times weight over the sum of the weight, which is at least `least`.

    Args:
        shared: the weight is that of an average process of the training, every one of which has to call: the mean of
            what they return is then the weighted mean over all of them, however their weights differ.
    """
    total = weight.sum()
    if shared:
        total, least = mean_over_processes(total), least / num_processes()
    return (values * weight).sum() / total.clamp(min=least)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, shared: bool = False) -> Tensor:
    """Squared error averaged over the masked patches and their channels (MAETok, equation 8); 0 where none is masked.

    Args:
        prediction, target: (B, N, D).
        mask: (B, N) bool, True where the error counts; None counts every patch.
        shared: the patches of all processes, see `weighted_mean`.
    """
    errors = (prediction.float() - target.float()).square().mean(-1)
    if mask is None:
        return errors.mean()
    return weighted_mean(errors, mask.to(errors.dtype), shared=shared)


def bag_of_words(ids: Tensor, vocab_size: int) -> Tensor:
    """Which ids occur, (B, vocab_size) of 0 and 1; ids (B, T) int64, negative ones are padding."""
    hot = torch.zeros(ids.shape[0], vocab_size + 1, device=ids.device)
    return hot.scatter_(1, torch.where(ids < 0, vocab_size, ids), 1.0)[:, :vocab_size]


def caption_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy against the words of a caption, whatever their order (as SuperClass learns from text), in nats.

    Args:
        logits: (B, V).
        words: (B, V), not negative: multi-hot, or weighted as by inverse document frequency. Rows are made to sum to
            1; a row of zeros (no caption) adds nothing.
    """
    words = words.float()
    shares = words / words.sum(1, keepdim=True).clamp(min=1e-12)
    return -(shares * logits.float().log_softmax(-1)).sum(1).mean()

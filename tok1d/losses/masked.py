"""Losses of masked modelling: features of hidden patches, and the words of a caption."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared error averaged over the masked patches and their channels (MAETok, equation 8); 0 where none is masked.

    Args:
        prediction, target: (B, N, D).
        mask: (B, N) bool, True where the error counts; None counts every patch.
    """
    errors = (prediction.float() - target.float()).square().mean(-1)
    if mask is None:
        return errors.mean()
    weight = mask.to(errors.dtype)
    return (errors * weight).sum() / weight.sum().clamp(min=1)


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

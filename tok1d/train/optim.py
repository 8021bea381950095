"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from tok1d.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then constant, cosine or linear to `lr_min`.

    The warm-up ends exactly at the highest rate and the decay exactly at `lr_min` on the last step.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = min((step - config.warmup) / max(config.steps - 1 - config.warmup, 1), 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr_min + (config.lr - config.lr_min) * left


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW in two groups: parameters with two or more dimensions decay, the others do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)

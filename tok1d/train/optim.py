"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from tok1d.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then constant, cosine or linear to `lr_min`.

    The warm-up ends exactly at the highest rate and the decay exactly at `lr_min` on the last step, or, with
    `decay_steps`, that many steps after the warm-up, whether the run lasts so long or not. The Semanticist release:
    `warmup_init` 0 and `decay_steps` the length of the whole run, which therefore ends above `lr_min`.
    """
    if step < config.warmup:
        if config.warmup_init is None:
            return config.lr * (step + 1) / (config.warmup + 1)
        return config.warmup_init + (config.lr - config.warmup_init) * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    length = config.decay_steps or max(config.steps - 1 - config.warmup, 1)
    done = min((step - config.warmup) / length, 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr_min + (config.lr - config.lr_min) * left


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW in two groups, of which the first decays.

    By default these are the weights of linear and convolution layers; `config.decay` "tables_too" takes every
    parameter of two or more dimensions, so also positions, queries, null tokens and embeddings, as Semanticist's
    release does.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    weights = {id(p) for layer in layers for p in layer.parameters()}  # spectral norm renames them
    decays = [p.dim() >= 2 and (config.decay == "tables_too" or id(p) in weights) for p in trainable]
    groups = [
        {"params": [p for p, yes in zip(trainable, decays) if yes], "weight_decay": config.weight_decay},
        {"params": [p for p, yes in zip(trainable, decays) if not yes], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)

"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.recipe import OptimConfig


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


def build_optimizer(model: nn.Module, config: OptimConfig, *, shard: bool = False) -> torch.optim.Optimizer:
    """Fused AdamW in two groups, of which the first decays.

    By default these are the weights of linear and convolution layers; `config.decay` "tables_too" takes every
    parameter of two or more dimensions, so also positions, queries, null tokens and embeddings, as Semanticist's
    release does.

    Args:
        shard: each process of a training holds the moments of its share of the parameters, steps these and sends them
            to the others (ZeRO, arXiv 1910.02054, stage 1); the weights are those without it, bit for bit.
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
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "fused": True}
    if not shard:
        return torch.optim.AdamW(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **settings)


def own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What of an optimizer steps in this process: itself, unless it is sharded."""
    return getattr(optimizer, "optim", optimizer)


def apply_step(optimizer: torch.optim.Optimizer, halted: Tensor) -> None:
    """One step, which changes nothing where `halted`, a bool on the device, is true; nothing waits for the device."""
    fused: Any = own_part(optimizer)
    fused.found_inf, fused.grad_scale = halted.float(), None
    optimizer.step()


def full_state(optimizer: torch.optim.Optimizer, *, main: bool) -> dict[str, Any]:
    """The whole state as an unsharded optimizer has it, in the main process; every process has to call."""
    if own_part(optimizer) is optimizer:
        return optimizer.state_dict()
    optimizer.consolidate_state_dict(to=0)  # type: ignore[attr-defined]
    return optimizer.state_dict() if main else {}


def load_full_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over what `full_state` gave, or of it this process's share.

    Raises:
        LookupError, TypeError, ValueError: it is of other weights.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, values in state["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.dim() and value.shape != parameters[i].shape:
                raise ValueError(f"{name} {i}: expected {tuple(parameters[i].shape)}, got {tuple(value.shape)}")
    own = own_part(optimizer)
    if own is optimizer:
        optimizer.load_state_dict(state)
        return
    optimizer.load_state_dict({**state, "state": dict(state["state"])})  # it empties the entries of others
    optimizer.state.clear()  # a second copy, which nothing reads
    for parameter, values in own.state.items():
        values["step"] = values["step"].to(parameter.device)  # the fused kernel wants it beside the moments

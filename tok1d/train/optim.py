"""AdamW and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.recipe import OptimConfig

StateDict = dict[str, Any]  # state dict of a torch optimizer or gradient scaler


def learning_rate(step: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step` (counted from 0): linear warm-up, then the schedule down to `lr_min`.

    The warm-up ends at `lr`. The decay (cosine or linear) ends at `lr_min` on the last step, or `decay_steps` after
    the warm-up if that is set, whether the run is shorter or longer. Semanticist's released code has `warmup_init` 0
    and `decay_steps` equal to the length of the whole run, so that it ends above `lr_min`.
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
    """Fused AdamW over the trainable parameters, in two groups: with weight decay and without.

    By default the weights of linear and convolution layers decay. With `config.decay` "tables_too" every parameter of
    two or more dimensions decays, including position tables, queries, null tokens and embeddings, as in Semanticist's
    released code.

    Args:
        shard: split the optimizer's state over the processes: each keeps the moments of its share of the parameters,
            updates these and sends them to the others (ZeRO stage 1, arXiv 1910.02054). The resulting weights are
            bit for bit the same.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    # By identity, not by name: spectral norm renames the weight.
    weights = {id(p) for layer in layers for p in layer.parameters()}
    decays = [p.dim() >= 2 and (config.decay == "tables_too" or id(p) in weights) for p in trainable]
    groups = [
        {"params": [p for p, yes in zip(trainable, decays) if yes], "weight_decay": config.weight_decay},
        {"params": [p for p, yes in zip(trainable, decays) if not yes], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    if not shard:
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, lr=config.lr, betas=betas, fused=True)


def own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of this process's share of the parameters: for a sharded optimizer its inner one, else itself."""
    return getattr(optimizer, "optim", optimizer)


def apply_step(optimizer: torch.optim.Optimizer, halted: Tensor) -> None:
    """One optimizer step, skipped where `halted` (a bool on the device) is true, without waiting for the device."""
    # torch.amp.GradScaler uses the same interface: fused optimizers skip the update if `found_inf` is 1.
    own = own_part(optimizer)
    own.found_inf, own.grad_scale = halted.float(), None  # type: ignore[attr-defined]
    optimizer.step()


def full_state(optimizer: torch.optim.Optimizer, *, main: bool) -> StateDict:
    """The state dict of the unsharded optimizer, in the main process; with sharding every process has to call."""
    if own_part(optimizer) is optimizer:
        return optimizer.state_dict()
    optimizer.consolidate_state_dict(to=0)  # type: ignore[attr-defined]
    return optimizer.state_dict() if main else {}


def load_full_state(optimizer: torch.optim.Optimizer, state: StateDict) -> None:
    """Restore what `full_state` returned; a sharded optimizer takes this process's share.

    Raises:
        LookupError, TypeError, ValueError: the state belongs to other parameters.
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
    # ZeroRedundancyOptimizer empties the entries of other processes in the dict that it is given, hence the copy.
    optimizer.load_state_dict({**state, "state": dict(state["state"])})
    optimizer.state.clear()  # a second copy of the state that is never read
    for parameter, values in own.state.items():
        values["step"] = values["step"].to(parameter.device)  # the fused kernel needs it on the moments' device

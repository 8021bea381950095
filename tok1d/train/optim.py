"""The optimizers of a module: AdamW, or Muon and AdamW together; and their learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.optim import OptimConfig
from tok1d.nn.matrices import block_matrices
from tok1d.train.muon import GatedMuon, check_available

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


class Optimizers:
    """AdamW over a module's trainable parameters, or Muon over the matrices of its blocks and AdamW over the rest.

    AdamW is fused and has two groups: with weight decay and without. By default the weights of linear and convolution
    layers decay. With `config.decay` "tables_too" every parameter of two or more dimensions decays, including position
    tables, queries, null tokens and embeddings, as in Semanticist's released code.

    Args:
        shard: split the optimizers' state over the processes: each keeps the moments of its share of the parameters,
            updates these and sends them to the others (ZeRO stage 1, arXiv 1910.02054). The resulting weights are
            bit for bit the same.

    Raises:
        ConfigError: `config.optimizer` is "muon", and this PyTorch has none.
    """

    def __init__(self, module: nn.Module, config: OptimConfig, *, shard: bool = False) -> None:
        self.config = config
        self.members: dict[str, torch.optim.Optimizer] = {}
        matrices: set[int] = set()
        if config.optimizer == "muon":
            check_available()
            found = list(block_matrices(module).values())
            matrices = {id(p) for p in found}
            settings = {"momentum": config.muon.momentum, "weight_decay": config.muon.decay}
            if found:
                self.members["muon"] = _optimizer([{"params": found}], GatedMuon, shard, lr=config.muon.lr, **settings)
        groups = _adamw_groups(module, config, matrices)
        if groups:
            betas = (config.beta1, config.beta2)
            self.members["adamw"] = _optimizer(groups, torch.optim.AdamW, shard, lr=config.lr, betas=betas, fused=True)

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.members.values())

    def step(self, step: int, halted: Tensor) -> None:
        """Update `step` (counted from 0), and free the gradients.

        Where `halted` (a bool on the device) is true, nothing changes. This does not wait for the device.
        """
        rate = learning_rate(step, self.config)
        for name, optimizer in self.members.items():
            # torch.amp.GradScaler uses the same interface: fused optimizers skip the update if `found_inf` is 1.
            own = _own_part(optimizer)
            own.found_inf, own.grad_scale = halted.float(), None  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group["lr"] = rate * self.config.muon.lr / self.config.lr if name == "muon" else rate
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Free the gradients."""
        for optimizer in self:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self, *, main: bool) -> StateDict:
        """The state of the unsharded optimizers, in the main process; with sharding every process has to call.

        AdamW alone has the state dict of torch; else this maps "muon" and "adamw" to theirs.
        """
        states = {name: _full_state(optimizer, main=main) for name, optimizer in self.members.items()}
        return states["adamw"] if states.keys() == {"adamw"} else states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; sharded optimizers take this process's share.

        Raises:
            LookupError, TypeError, ValueError: the state belongs to other parameters or another optimizer.
        """
        states: Mapping[str, StateDict] = {"adamw": dict(state)} if self.members.keys() == {"adamw"} else state
        if states.keys() != self.members.keys() or "state" not in next(iter(states.values())):
            raise ValueError(f"expected the state of {' and '.join(self.members)}, got {', '.join(state)}")
        for name, optimizer in self.members.items():
            _load_full_state(optimizer, states[name])


def _adamw_groups(module: nn.Module, config: OptimConfig, matrices: set[int]) -> list[dict[str, Any]]:
    """AdamW's groups: the trainable parameters whose `id` is not in `matrices`, with weight decay and without."""
    trainable = [p for p in module.parameters() if p.requires_grad and id(p) not in matrices]
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    # By identity, not by name: spectral norm renames the weight.
    weights = {id(p) for layer in layers for p in layer.parameters()}
    decays = [p.dim() >= 2 and (config.decay == "tables_too" or id(p) in weights) for p in trainable]
    groups = [
        {"params": [p for p, yes in zip(trainable, decays) if yes], "weight_decay": config.weight_decay},
        {"params": [p for p, yes in zip(trainable, decays) if not yes], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _optimizer(
    groups: list[dict[str, Any]], cls: type[torch.optim.Optimizer], shard: bool, **settings: Any
) -> torch.optim.Optimizer:
    if not shard:
        return cls(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, cls, **settings)


def _own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of this process's share of the parameters: for a sharded optimizer its inner one, else itself."""
    return getattr(optimizer, "optim", optimizer)


def _full_state(optimizer: torch.optim.Optimizer, *, main: bool) -> StateDict:
    if _own_part(optimizer) is optimizer:
        return optimizer.state_dict()
    optimizer.consolidate_state_dict(to=0)  # type: ignore[attr-defined]
    return optimizer.state_dict() if main else {}


def _load_full_state(optimizer: torch.optim.Optimizer, state: StateDict) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, values in state["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.dim() and value.shape != parameters[i].shape:
                raise ValueError(f"{name} {i}: expected {tuple(parameters[i].shape)}, got {tuple(value.shape)}")
    own = _own_part(optimizer)
    if own is optimizer:
        optimizer.load_state_dict(state)
        return
    # ZeroRedundancyOptimizer empties the entries of other processes in the dict that it is given, hence the copy.
    optimizer.load_state_dict({**state, "state": dict(state["state"])})
    optimizer.state.clear()  # a second copy of the state that is never read
    for parameter, values in own.state.items():
        if "step" in values:  # AdamW's
            values["step"] = values["step"].to(parameter.device)  # the fused kernel needs it on the moments' device

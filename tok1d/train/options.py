"""Activation checkpointing and torch.compile of transformer blocks: less memory or time, equal up to rounding."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tok1d.errors import ConfigError
from tok1d.nn.attention import Attention
from tok1d.train.rng import recompute_contexts


def apply_options(module: nn.Module, *, checkpoint_activations: bool, compile: bool) -> None:
    """Compile or checkpoint the transformer blocks of a module; its weights and their names do not change.

    Each block is compiled separately, which is fast because all blocks share one graph. With `checkpoint_activations`
    each block keeps only its input for the backward pass.

    Raises:
        ConfigError: `compile` is set, and no compiler is installed.
    """
    blocks = blocks_of(module)
    if compile:
        reason = no_compiler()
        if reason:
            raise ConfigError(f"train.compile: {reason}; install one, or set train.compile=false")
        for block in blocks:
            block.compile()
    if checkpoint_activations:
        for block in blocks:
            _recompute(block)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The trainable transformer blocks of a module in order: members of an nn.ModuleList that contain attention."""
    found: dict[int, nn.Module] = {}
    for part in module.modules():
        for block in part if isinstance(part, nn.ModuleList) else ():
            holds = any(isinstance(each, Attention | nn.MultiheadAttention) for each in block.modules())
            if holds and any(p.requires_grad for p in block.parameters()):
                found[id(block)] = block
    inner = {id(part) for block in found.values() for part in block.modules() if part is not block}
    return [block for key, block in found.items() if key not in inner]


def _recompute(block: nn.Module) -> None:
    """Replace a block's forward pass by one that keeps its input only and runs again in the backward pass."""
    forward = block.forward

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> object:
        if not (torch.is_grad_enabled() and block.training):
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # a compiled block repeats its own random numbers
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=recompute_contexts, **kwargs)

    block.forward = recomputed


def no_compiler() -> str:
    """Why torch.compile cannot run on this machine; "" if it can."""
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return "" if has_triton() else "torch.compile needs Triton on a GPU, got none"
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception:
        return "torch.compile needs a C++ compiler on a CPU, got none"
    return ""

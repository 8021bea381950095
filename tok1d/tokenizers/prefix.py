"""Prefixes of token sequences: the number of kept tokens, and masks of kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from tok1d.errors import InputError
from tok1d.nn.values import has_values
from tok1d.tokenizers.base import TokenSpec


def sample_keep(
    batch: int,
    length: int,
    *,
    lowest: int = 1,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(batch,) int64, uniform over lowest..length, both included (Semanticist: from 1, SMAP: from 0)."""
    return torch.randint(lowest, length + 1, (batch,), device=device, generator=generator)


def prefix_mask(keep: Tensor, length: int) -> Tensor:
    """Counts (B,) -> (B, length) bool, True at positions below the count."""
    return torch.arange(length, device=keep.device) < keep[:, None]


def resolve_keep(keep: int | Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """`keep` as (B,) int64: None means `length`; an int or a tensor () applies to the whole batch.

    Raises:
        InputError: a count outside 0..length, another type than integers, or a tensor that is not () or (B,).
    """
    if keep is None:
        keep = length
    counts = torch.as_tensor(keep) if _is_integral(keep) else None
    if counts is None or counts.shape not in ((), (batch,)):
        found = f"shape {tuple(keep.shape)} of {keep.dtype}" if isinstance(keep, Tensor) else f"{keep!r}"[:60]
        raise InputError(f"keep: expected an int or a tensor of ints of shape ({batch},), got {found}")
    if has_values(counts):
        low, high = int(counts.min()), int(counts.max())
        if low < 0 or high > length:
            wrong = low if low < 0 else high
            raise InputError(f"keep: expected 0..{length}, the number of tokens, got {wrong}")
    return counts.to(device=device, dtype=torch.int64).expand(batch)


def _is_integral(keep: object) -> bool:
    """Whether this is an int or a tensor of integers; bool is neither."""
    if isinstance(keep, Tensor):
        return not keep.is_floating_point() and not keep.is_complex() and keep.dtype != torch.bool
    return isinstance(keep, Integral) and not isinstance(keep, bool)


def prefix_lengths(length: int) -> list[int]:
    """The powers of two below `length`, then `length`."""
    lengths = [2**i for i in range(length.bit_length()) if 2**i < length]
    return [*lengths, length]


def token_counts(spec: TokenSpec, keep: Sequence[int] = ()) -> list[int]:
    """Numbers of leading tokens to evaluate: `keep`, or by default 1, 2, 4, ..., all; only all for unordered tokens.

    By default a conditional tokenizer starts with 0 tokens: the image that is decoded from the condition alone.

    Raises:
        InputError: `keep` has fewer tokens than an unordered tokenizer needs.
    """
    if spec.ordered:
        return list(keep) or [*([0] if spec.needs_label else []), *prefix_lengths(spec.length)]
    if few := [k for k in keep if k != spec.length]:
        raise InputError(f"keep: these tokens have no order, expected all {spec.length}, got {few[0]}")
    return [spec.length]

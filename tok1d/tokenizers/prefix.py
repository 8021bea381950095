"""Prefixes of token sequences: how many tokens are kept, and the masks that say so."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec


def draw_keep(
    batch: int,
    length: int,
    *,
    lowest: int = 1,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(batch,) int64, uniform over lowest..length inclusive (Semanticist draws 1..K, SMAP 0..N)."""
    return torch.randint(lowest, length + 1, (batch,), device=device, generator=generator)


def prefix_mask(keep: Tensor, length: int) -> Tensor:
    """(B,) counts -> (B, length) bool, True where the position is below the count."""
    return torch.arange(length, device=keep.device) < keep[:, None]


def resolve_keep(keep: int | Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """`keep` as (B,) int64: None keeps all, an integer (also a tensor of one) serves the whole batch.

    Raises:
        InputError: a count outside 0..length, or something else than integers, one for the batch or (B,).
    """
    if keep is None:
        keep = length
    counts = torch.as_tensor(keep) if _counts(keep) else None
    if counts is None or counts.shape not in ((), (batch,)):
        found = f"shape {tuple(keep.shape)} of {keep.dtype}" if isinstance(keep, Tensor) else f"{keep!r}"[:60]
        raise InputError(f"keep must be an int or a tensor of ints of shape ({batch},), got {found}")
    low, high = int(counts.min()), int(counts.max())
    if low < 0 or high > length:
        wrong = low if low < 0 else high
        raise InputError(f"keep must lie in 0..{length} (this model has {length} tokens), got {wrong}")
    return counts.to(device=device, dtype=torch.int64).expand(batch)


def _counts(keep: object) -> bool:
    """Whether this is an integer or integers: no truth values, no fractions."""
    if isinstance(keep, Tensor):
        return not keep.is_floating_point() and not keep.is_complex() and keep.dtype != torch.bool
    return isinstance(keep, Integral) and not isinstance(keep, bool)


def prefix_lengths(length: int) -> list[int]:
    """1, 2, 4, ... and the whole length."""
    lengths = [2**i for i in range(length.bit_length()) if 2**i < length]
    return [*lengths, length]


def token_counts(spec: TokenSpec, keep: Sequence[int] = ()) -> list[int]:
    """Numbers of leading tokens to decode: `keep`, or 1, 2, 4, ..., all; of tokens without an order only all.

    Where the decoder is told the class, 0 tokens come first: the image that the class alone gives.

    Raises:
        InputError: fewer tokens of a tokenizer that needs all.
    """
    if spec.ordered:
        return list(keep) or [*([0] if spec.needs_label else []), *prefix_lengths(spec.length)]
    if few := [k for k in keep if k != spec.length]:
        raise InputError(f"keep: these tokens have no order, all {spec.length} are needed; got {few[0]}")
    return [spec.length]

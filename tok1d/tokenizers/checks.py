"""Checks of the images, tokens and image sizes that tokenizers receive."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.errors import InputError
from tok1d.nn.values import has_values
from tok1d.tokenizers.base import Size


def check_images(images: Tensor, *, channels: int, patch: int, image_size: int) -> None:
    """Raise InputError on images that are not (B, channels, H, W) or whose size is no multiple of `patch`."""
    if images.dim() != 4 or images.shape[1] != channels:
        raise InputError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
    check_size(
        images.shape[-2], images.shape[-1], patch, f"the encoder's patches; the model's own size is {image_size}"
    )


def check_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of (H, W) pixels; raises InputError if the patches do not divide it."""
    check_size(*size, patch, "the decoder's patches")
    return size[0] // patch, size[1] // patch


def check_size(height: int, width: int, unit: int, why: str) -> None:
    """Raise InputError on a size that is no multiple of `unit` pixels; `why` says in the message what the unit is."""
    if min(height, width) < 1 or height % unit or width % unit:
        raise InputError(
            f"image size: expected a height and a width that are multiples of {unit} ({why}), got {height}x{width}"
        )


def checked_tokens(
    tokens: Tensor,
    length: int,
    *,
    dim: int,
    vocab_size: int | None,
    dtype: torch.dtype,
    prefixes: bool = False,
    where: str = "",
) -> Tensor:
    """Tokens (B, length, dim) converted to `dtype`, or ids (B, length) converted to int64.

    Args:
        prefixes: whether shorter sequences are accepted.
        where: added to the expected shape in error messages.

    Raises:
        InputError: another shape or type, or ids outside 0..vocab_size - 1.
    """
    kind, counts = ("ids", f"{length}") if vocab_size else ("tokens", f"{length}, {dim}")
    fits = tokens.dim() == (2 if vocab_size else 3) and tokens.is_floating_point() == (not vocab_size)
    fits = fits and (tokens.shape[1] == length or (prefixes and tokens.shape[1] < length))
    if not fits or (not vocab_size and tokens.shape[2] != dim):
        expected = f"(B, {'at most ' if prefixes else ''}{counts})"
        found = f"{tuple(tokens.shape)} of {tokens.dtype}"
        raise InputError(f"expected {kind} of shape {expected}{where}, got {found}")
    if not vocab_size:
        return tokens.to(dtype)
    if has_values(tokens):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab_size:
            raise InputError(f"expected ids in 0..{vocab_size - 1}, got {low if low < 0 else high}")
    return tokens.long()


def height_and_width(size: Size | None, default: int) -> tuple[int, int]:
    """(H, W) of a size: a side, (H, W), or None for the default side."""
    size = default if size is None else size
    return (size, size) if isinstance(size, int) else size

"""What one-pass tokenizers refuse, each in one line: images, tokens and ways of decoding that they cannot take."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.errors import InputError
from tok1d.tokenizers.prefix import resolve_keep


def check_images(images: Tensor, channels: int, patch: int, image_size: int) -> None:
    """Raise InputError on anything else than (B, channels, H, W) with a height and width that the patches divide.

    Args:
        image_size: side of the images of the training, for the message.
    """
    if images.dim() != 4 or images.shape[1] != channels:
        raise InputError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if min(height, width) < 1 or height % patch or width % patch:
        raise InputError(
            f"image size: expected a height and a width that are multiples of {patch} (the encoder's patches; the "
            f"model's own size is {image_size}), got {height}x{width}"
        )


def check_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of a decoder's patches in an image of (H, W) pixels; raises InputError if they do not fit."""
    height, width = size
    if min(size) < 1 or height % patch or width % patch:
        raise InputError(
            f"image size: expected a height and a width that are multiples of {patch} (the decoder's "
            f"patches), got {height}x{width}"
        )
    return height // patch, width // patch


def check_tokens(
    tokens: Tensor, length: int, dim: int, vocab: int | None, size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Tokens (B, length, dim) as `dtype`, or with a vocabulary ids (B, length) as int64.

    Args:
        size: (H, W) of the images that they are to become, for the message.

    Raises:
        InputError: another shape or kind of tokens, or ids outside the vocabulary.
    """
    expected = f"(B, {length})" if vocab else f"(B, {length}, {dim})"
    fits = tokens.shape[1:] == ((length,) if vocab else (length, dim)) and tokens.is_floating_point() != bool(vocab)
    if not fits:
        kind, found = "ids" if vocab else "tokens", f"{tuple(tokens.shape)} of {tokens.dtype}"
        raise InputError(f"expected {kind} of shape {expected} for {size[0]}x{size[1]} pixels, got {found}")
    if not vocab:
        return tokens.to(dtype)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab:
        raise InputError(f"expected ids in 0..{vocab - 1}, got {low if low < 0 else high}")
    return tokens.long()


def check_one_pass(tokens: Tensor, *, keep: int | Tensor | None, steps: int | None, guidance: float | Guidance) -> None:
    """Raise InputError where decoding unordered tokens (B, L, ...) in one pass is asked to skip, step or guide."""
    length = tokens.shape[1]
    if steps is not None:
        raise InputError(f"steps: this decoder is one pass, expected none, got {steps}")
    guide = as_guidance(guidance)
    if guide.scale != 1 or guide.weak_model is not None:
        raise InputError(f"guidance: this decoder is deterministic, expected 1, got {guide.scale}")
    if keep is not None and int(resolve_keep(keep, len(tokens), length, tokens.device).min()) < length:
        raise InputError(f"keep: these tokens are not ordered, so all {length} are needed, got {keep}")

"""What tokenizers that paint pixels in one pass have in common: their checks, and the range of their images."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.kl import KL, Posterior
from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.errors import ConfigError, InputError
from tok1d.nn.precision import single
from tok1d.tokenizers.bottlenecks import BottleneckConfig, SoftVQConfig
from tok1d.tokenizers.prefix import resolve_keep

Size = int | tuple[int, int]
Head = Literal["linear", "conv"]  # how a decoder's states become pixels


class HasPatch(Protocol):
    """One side's configuration: its patches have a side."""

    patch: int


def check_parts(
    image_size: int,
    encoder: HasPatch,
    decoder: HasPatch,
    bottleneck: BottleneckConfig,
    length: int,
    *,
    head: Head = "linear",
) -> None:
    """Raise ConfigError on patches, a head or codebooks that do not fit the image and its number of tokens."""
    for part, net in (("encoder", encoder), ("decoder", decoder)):
        if image_size % net.patch:
            raise ConfigError(f"{part}.patch: {net.patch} does not divide image_size {image_size}")
    patch = decoder.patch
    if head == "conv" and (patch < 2 or patch & (patch - 1)):
        raise ConfigError(f"decoder.patch: head=conv doubles its way up, expected 2, 4, 8, ..., got {patch}")
    if isinstance(bottleneck, SoftVQConfig) and length % bottleneck.num_codebooks:
        raise ConfigError(f"bottleneck.num_codebooks: {bottleneck.num_codebooks} does not divide {length} tokens")


def check_images(images: Tensor, *, channels: int, patch: int, image_size: int) -> None:
    """Raise InputError on images that are not (B, channels, H, W) or that the patches do not divide."""
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
            f"image size: expected a height and a width that are multiples of {patch} (the decoder's patches), "
            f"got {height}x{width}"
        )
    return height // patch, width // patch


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
    """Tokens (B, length, dim) in the precision of the weights, or ids (B, length) of the vocabulary, in int64.

    Args:
        prefixes: shorter sequences are fine too.
        where: what a message adds to the expected shape.

    Raises:
        InputError: another shape or type, or ids outside the vocabulary.
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
    if tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab_size:
            raise InputError(f"expected ids in 0..{vocab_size - 1}, got {low if low < 0 else high}")
    return tokens.long()


def posterior_of(bottleneck: nn.Module, states: Tensor) -> Posterior:
    """The normals of a KL bottleneck for encoder states (B, L, dim).

    Raises:
        InputError: a bottleneck without any.
    """
    if not isinstance(bottleneck, KL):
        raise InputError(f"posterior: expected a tokenizer with a KL bottleneck, this has {type(bottleneck).__name__}")
    return bottleneck.posterior(states)


def refuse_sampling(steps: int | None, guidance: float | Guidance) -> None:
    """Raise InputError on steps or guidance: there is nothing to step or guide."""
    if steps is not None:
        raise InputError(f"steps: this decoder is one pass, expected none, got {steps}")
    guide = as_guidance(guidance)
    if guide.scale != 1 or guide.weak_model is not None:
        raise InputError(f"guidance: this decoder is deterministic, expected 1, got {guide.scale}")


def refuse_prefixes(keep: int | Tensor | None, tokens: Tensor) -> None:
    """Raise InputError where not all tokens (B, L, ...) are kept: they are not ordered."""
    length = tokens.shape[1]
    if keep is not None and int(resolve_keep(keep, len(tokens), length, tokens.device).min()) < length:
        raise InputError(f"keep: these tokens are not ordered, so all {length} are needed, got {keep}")


def height_and_width(size: Size | None, default: int) -> tuple[int, int]:
    """A side, (H, W), or None for the default side, as (H, W)."""
    size = default if size is None else size
    return (size, size) if isinstance(size, int) else size


def to_images(painted: Tensor) -> Tensor:
    """What a decoder paints in [-1, 1], as images in [0, 1]."""
    return ((painted + 1) / 2).clamp(0, 1)


def pixel_error(kind: str, painted: Tensor, images: Tensor) -> Tensor:
    """Mean squared ("mse") or absolute ("l1") error of what is painted in [-1, 1] against images in [0, 1]."""
    return (F.mse_loss if kind == "mse" else F.l1_loss)(single(painted), 2 * single(images) - 1)

"""Representation alignment (REPA, arXiv 2410.06940): a network's inner states learn a frozen teacher's features."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError, InputError


@dataclass
class AlignmentConfig:
    """Which teacher a decoder is aligned with, and how strongly; `decoder.align_depth` says at which block."""

    teacher: str = option(
        "",
        "timm name of a vision transformer (published: vit_base_patch14_dinov2.lvd142m) or a tok1d classifier "
        "(fashion-mnist-cnn); empty is no alignment",
    )
    weights: str | None = option(
        None, "file or folder of a timm teacher's weights; null is what timm downloads, random is none (to try out)"
    )
    image_size: int = option(224, "side of the images the teacher sees, in pixels", ge=1)
    weight: float = option(1.0, "weight of the alignment loss (Semanticist's release: 1, REPA: 0.5)", gt=0)

    def check(self) -> None:
        """Raise ConfigError on weights without the teacher they belong to."""
        if self.weights is not None and not self.teacher:
            raise ConfigError("teacher: weights are given, so expected the timm name they belong to, got nothing")


def resize_tokens(tokens: Tensor, num: int) -> Tensor:
    """Features of a square grid (B, T, C), row by row, resampled bicubically to another square grid (B, num, C).

    Raises:
        InputError: T or num is no square number, and they differ.
    """
    batch, count, channels = tokens.shape
    if count == num:
        return tokens
    side, new = math.isqrt(count), math.isqrt(num)
    if side**2 != count or new**2 != num:
        raise InputError(f"expected features on square grids, got {count} and {num}; use square images on both sides")
    grid = tokens.transpose(1, 2).reshape(batch, channels, side, side)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(tokens.dtype)


def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the cosine similarity, averaged over the tokens of each sample (REPA, section 3.3), (B,) in [-1, 1].

    Args:
        student: projected features (B, T, C), resampled to the teacher's grid (the projector comes first).
        teacher: features (B, N, C).
    """
    student = resize_tokens(student, teacher.shape[1])
    # In float32: half precision loses squared norms.
    return -F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean(1)

"""Alignment of a network's hidden states with the features of a frozen teacher (REPA, arXiv 2410.06940)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError, InputError


@dataclass
class AlignmentConfig:
    """Alignment with a teacher; in a diffusion decoder after block `decoder.align_depth`."""

    teacher: str = option(
        "",
        "efficientnet-lite0[:SIZE], a network of timm (published: vit_base_patch14_dinov2.lvd142m), also as "
        "timm:NAME[:SIZE][:FILE], or a tok1d classifier (fashion-mnist-cnn); empty: no alignment",
        path="prefixed",
    )
    weights: str | None = option(
        None,
        "file or folder with weights of a timm teacher; null: timm's download; random: random weights, for tests",
        path="path",
    )
    image_size: int = option(224, "side of the teacher's input images, in pixels", ge=1)
    weight: float = option(1.0, "weight of the alignment loss (Semanticist's release: 1, REPA: 0.5)", gt=0)

    def check(self) -> None:
        """Raise ConfigError on weights without a teacher."""
        if self.weights is not None and not self.teacher:
            raise ConfigError(
                "teacher: expected the timm name that weights belong to, got an empty name; set it or remove weights"
            )


def resize_tokens(tokens: Tensor, num: int) -> Tensor:
    """Resample features (B, T, C) of a square grid, row by row, bicubically to another square grid. -> (B, num, C).

    Raises:
        InputError: T and num differ and are not both square numbers.
    """
    batch, count, channels = tokens.shape
    if count == num:
        return tokens
    side, new = math.isqrt(count), math.isqrt(num)
    if side**2 != count or new**2 != num:
        raise InputError(
            f"expected features on square grids, got {count} and {num} features; use square images for both"
        )
    grid = tokens.transpose(1, 2).reshape(batch, channels, side, side)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(tokens.dtype)


def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the cosine similarity, averaged over the tokens of each sample (REPA, section 3.3); (B,) in [-1, 1].

    Args:
        student: projected hidden states (B, T, C); they are resampled to the teacher's grid after the projection.
        teacher: features (B, N, C).
    """
    student = resize_tokens(student, teacher.shape[1])
    # In float32: squared norms overflow or underflow in half precision.
    return -F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean(1)

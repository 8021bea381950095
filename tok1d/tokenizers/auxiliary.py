"""Auxiliary training targets of tokens: shallow decoders that predict features of masked patches (MAETok, arXiv
2502.03444, section 3.2), and alignment with a teacher's features (SoftVQ-VAE, arXiv 2412.10958)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError, InputError
from tok1d.losses.alignment import AlignmentConfig, alignment_loss
from tok1d.losses.features import Features, TeacherName, empty_features
from tok1d.losses.hog import BINS, hog
from tok1d.losses.masked import bag_of_words, caption_loss, masked_mse
from tok1d.nn.position import resample_grid
from tok1d.nn.precision import single
from tok1d.tokenizers.pixel_decoder import TokenDecoder
from tok1d.tokenizers.vit import ViTConfig

TEACHER = "teacher:"


@dataclass
class AuxiliaryConfig:
    """One auxiliary decoder and its target."""

    target: str = option(
        help="hog, pixels, text (the sub-words of a caption) or teacher:NAME with efficientnet-lite0[:SIZE], a network "
        "of timm, also as timm:NAME[:SIZE][:FILE], or a tok1d classifier",
        path="prefixed",
    )
    weight: float = option(1.0, "weight of the loss", gt=0)
    depth: int = option(
        3, "blocks of the decoder, which is as wide as the pixel decoder; 0: a linear layer on the tokens", ge=0
    )
    norm: Literal["layernorm", "l2", "none"] | None = option(
        None, "normalisation of the target features of each patch; null: layernorm for a teacher, none for others"
    )
    dim: int | None = option(None, "teacher: width of the features; text: size of the vocabulary (CLIP: 49408)", ge=1)
    cell: int = option(8, "hog: side of a cell, in pixels", ge=1)
    weights: str | None = option(
        None, "teacher: file or folder with weights of a timm network; null: timm's download", path="path"
    )
    image_size: int = option(224, "teacher: side of its input images, in pixels", ge=1)
    tokenizer: str = option(
        "openai/clip-vit-large-patch14",
        "text: transformers tokenizer of the captions, a hub name or a local folder",
        path="path",
    )
    idf: bool = option(True, "text: weight sub-words by their inverse document frequency")

    @property
    def label(self) -> str:
        """Short name of the target, for the log."""
        name = self.target.removeprefix(TEACHER)
        if name.startswith("timm:"):  # timm:NAME[:SIZE][:FILE]
            name = name.removeprefix("timm:").removeprefix("hf-hub:").partition(":")[0]
        return Path(name).name

    @property
    def is_teacher(self) -> bool:
        """Whether the targets are the features of a teacher."""
        return self.target.startswith(TEACHER)

    def width(self, patch: int, channels: int) -> int:
        """Width of the decoder's output, per patch, or per image for target=text."""
        if self.target == "hog":
            return (patch // self.cell) ** 2 * channels * BINS
        if self.target == "pixels":
            return patch**2 * channels
        assert self.dim is not None, "checked"
        return self.dim

    def check(self) -> None:
        """Raise ConfigError on an unknown target, or on a target that needs `dim` without it."""
        if self.target not in ("hog", "pixels", "text") and (not self.is_teacher or self.target == TEACHER):
            raise ConfigError(f"target: expected hog, pixels, text or teacher:NAME, got {self.target!r}")
        if (self.is_teacher or self.target == "text") and self.dim is None:
            what = "the width of the teacher's features" if self.is_teacher else "the size of the vocabulary"
            raise ConfigError(f"dim: {self.target} needs {what}, got null")


class TokenMixer(nn.Module):
    """A decoder of depth 0: a learned linear combination of the tokens for every patch. (B, L, C) -> (B, N, C)."""

    def __init__(self, side: int, num_tokens: int) -> None:
        super().__init__()
        self.side = side
        self.mix = nn.Parameter(torch.randn(1, side**2, num_tokens) / num_tokens**0.5)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return resample_grid(self.mix, (self.side, self.side), grid) @ tokens


class AuxiliaryDecoder(nn.Module):
    """A shallow decoder from tokens to the target features of every patch, and its loss.

    Args:
        decoder: configuration of the pixel decoder; width, heads and kind of positions are the same.
        patch: side of the encoder's patches in pixels; their features are predicted.
        side: patches per row and column of the square training images.
        channels: image channels.
        num_tokens: number L of tokens; 0: one per patch.
        token_dim: channels C of a token.
    """

    def __init__(
        self,
        config: AuxiliaryConfig,
        decoder: ViTConfig,
        *,
        patch: int,
        side: int,
        channels: int,
        num_tokens: int,
        token_dim: int,
    ) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        self.trunk: nn.Module | None
        if config.depth:
            self.trunk = TokenDecoder(decoder, side, num_tokens, token_dim, depth=config.depth)
        else:
            self.trunk = TokenMixer(side, num_tokens) if num_tokens else None
        self.out = nn.Linear(decoder.dim if config.depth else token_dim, config.width(patch, channels))
        self.teacher: Features | None = None  # set by zoo.pretrained.teachers.give_teachers

    @property
    def teacher_name(self) -> TeacherName | None:
        """The teacher of the target; None for other targets."""
        config = self.config
        if not config.is_teacher:
            return None
        return TeacherName(config.target.removeprefix(TEACHER), config.weights, config.image_size)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, L, C), a grid (rows, columns) of N patches -> (B, N, D), or (B, vocabulary) for target=text."""
        states = tokens if self.trunk is None else self.trunk(tokens, grid)
        return self.out(states.mean(1) if self.config.target == "text" else states)

    def loss(self, tokens: Tensor, images: Tensor, mask: Tensor | None, words: Tensor | None = None) -> Tensor:
        """The weighted loss, a scalar, of the tokens (B, L, C) of images (B, C, H, W) in [0, 1] (MAETok, equation 8).

        Args:
            images: the whole images, without masking.
            mask: (B, N) bool, True for patches over which the error is averaged; None: all. Not used for target=text.
            words: for target=text, (B, T) ids with negative ones as padding, or (B, vocabulary) weights.

        Raises:
            InputError: the teacher is not loaded, or the batch has no captions.
            ConfigError: a teacher with features of another width.
        """
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        prediction = self(tokens, grid)
        if self.config.target != "text":
            return self.config.weight * masked_mse(prediction, self.target(images, grid), mask, shared=self.training)
        if words is None:
            raise InputError("auxiliary.target=text: expected batches of (images, labels, captions), got no captions")
        if not words.is_floating_point():
            words = bag_of_words(words, prediction.shape[1])
        return self.config.weight * caption_loss(prediction, words)

    @torch.no_grad()
    def target(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """The target features (B, N, D) of images (B, C, H, W) in [0, 1], without gradient."""
        config = self.config
        if config.target == "hog":
            features = hog(images, self.patch, config.cell)
        elif config.target == "pixels":
            features = F.unfold(2 * images - 1, self.patch, stride=self.patch).transpose(1, 2)
        else:
            features = resize_bilinear(single(self._teacher_features(images)), grid)
        norm = config.norm or ("layernorm" if config.is_teacher else "none")
        if norm == "none":
            return features
        return F.layer_norm(features, features.shape[-1:]) if norm == "layernorm" else F.normalize(features, dim=-1)

    def _teacher_features(self, images: Tensor) -> Tensor:
        config = self.config
        if self.teacher is None:
            assert self.teacher_name is not None, "only called for the features of a teacher"
            raise self.teacher_name.missing()
        features = self.teacher(images)
        if features.shape[-1] != self.out.out_features:
            raise ConfigError(
                f"model.auxiliary: dim: expected {features.shape[-1]}, the feature width of {config.target}, "
                f"got {self.out.out_features}"
            )
        return features

    def use_stand_in(self, num_patches: int) -> None:
        """Replace the features of the teacher by an empty tensor of their shape, for counting costs."""
        if self.config.is_teacher:
            assert self.config.dim is not None, "checked"
            self.teacher = empty_features(num_patches, self.config.dim)


def resize_bilinear(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample features (B, T, D) of a square grid to a grid (rows, columns), row by row. -> (B, rows * columns, D).

    Raises:
        InputError: T is neither a square number nor rows * columns.
    """
    count, side = features.shape[1], math.isqrt(features.shape[1])
    if count == grid[0] * grid[1]:
        return features
    if side**2 != count:
        raise InputError(f"expected teacher features on a square grid, got {count} features; use square images")
    square = features.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(square.float(), size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


@dataclass
class LatentAlignmentConfig(AlignmentConfig):
    """Alignment of the tokens with a teacher's features (SoftVQ-VAE: DINOv2-L, weight 0.1)."""

    weight: float = option(0.1, "weight of the alignment loss", gt=0)
    dim: int | None = option(None, "width of the teacher's features", ge=1)
    hidden: int = option(2048, "hidden width of the projection", ge=1)

    def check(self) -> None:
        """Raise ConfigError on a teacher without `dim`, or weights without a teacher."""
        super().check()
        if self.teacher and self.dim is None:
            raise ConfigError("dim: alignment needs the width of the teacher's features, got null")


class LatentAlignment(nn.Module):
    """Negative cosine similarity of projected tokens and a teacher's features (SoftVQ-VAE, section 3.3).

    Args:
        token_dim: channels of a token.
        repeat: whether tokens are repeated along the sequence to the number of patches; otherwise there is one token
            per patch, and the tokens are resampled as a grid.
    """

    def __init__(self, config: LatentAlignmentConfig, token_dim: int, *, repeat: bool) -> None:
        super().__init__()
        assert config.dim is not None, "checked"
        self.config, self.repeat = config, repeat
        hidden = nn.Linear(config.hidden, config.hidden)
        first, last = nn.Linear(token_dim, config.hidden), nn.Linear(config.hidden, config.dim)
        self.projector = nn.Sequential(first, nn.SiLU(), hidden, nn.SiLU(), last)
        self.teacher: Features | None = None  # set by zoo.pretrained.teachers.give_teachers

    @property
    def teacher_name(self) -> TeacherName:
        """The teacher whose features the tokens are aligned with."""
        return TeacherName(self.config.teacher, self.config.weights, self.config.image_size)

    def loss(self, tokens: Tensor, images: Tensor) -> Tensor:
        """The weighted loss, a scalar, of the tokens (B, L, C) of images (B, C, H, W) in [0, 1].

        Raises:
            InputError: the teacher is not loaded.
            ConfigError: a teacher with features of another width.
        """
        config = self.config
        if self.teacher is None:
            raise self.teacher_name.missing()
        features = self.teacher(images)
        if features.shape[-1] != config.dim:
            raise ConfigError(
                f"model.alignment.dim: expected {features.shape[-1]}, the width of {config.teacher}, got {config.dim}"
            )
        student = self.projector(tokens)
        if self.repeat:
            student = F.interpolate(student.transpose(1, 2), size=features.shape[1], mode="nearest").transpose(1, 2)
        return config.weight * alignment_loss(student, features).mean()

    def use_stand_in(self, num_patches: int) -> None:
        """Replace the features of the teacher by an empty tensor of their shape, for counting costs."""
        assert self.config.dim is not None, "checked"
        self.teacher = empty_features(num_patches, self.config.dim)

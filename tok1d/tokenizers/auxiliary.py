"""What latents learn besides pixels: shallow decoders that predict features of masked patches (MAETok, section 3.2),
and alignment with a teacher (SoftVQ-VAE)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError, InputError
from tok1d.losses.alignment import AlignmentConfig, alignment_loss
from tok1d.losses.features import TeacherName
from tok1d.losses.hog import BINS, hog
from tok1d.losses.masked import bag_of_words, caption_loss, masked_mse
from tok1d.nn.position import resample_grid
from tok1d.nn.precision import single
from tok1d.tokenizers.pixel_decoder import TokenDecoder
from tok1d.tokenizers.vit import ViTConfig

TEACHER = "teacher:"
Features = Callable[[Tensor], Tensor]


@dataclass
class AuxiliaryConfig:
    """One auxiliary decoder and its target."""

    target: str = option(
        help="hog, pixels, text (ids of a caption's sub-words, third in the batch) or teacher:NAME, a timm vision "
        "transformer or a tok1d classifier"
    )
    weight: float = option(1.0, "weight of its loss", gt=0)
    depth: int = option(3, "blocks of the decoder, as wide as the pixel one's; 0 is a linear map of the tokens", ge=0)
    norm: Literal["layernorm", "l2", "none"] | None = option(
        None, "of each patch's target features; null is layernorm for a teacher, none for the others"
    )
    dim: int | None = option(None, "teachers: width of the features; text: size of the vocabulary (CLIP: 49408)", ge=1)
    cell: int = option(8, "hog: side of a cell in pixels", ge=1)
    weights: str | None = option(None, "teachers: file or folder of a timm network's weights; null is its own")
    image_size: int = option(224, "teachers: side of the images the teacher sees, in pixels", ge=1)
    tokenizer: str = option(
        "openai/clip-vit-large-patch14",
        "text: transformers tokenizer that cuts captions into sub-words, a hub name or a local folder",
    )
    idf: bool = option(True, "text: weigh sub-words by inverse document frequency, the rare ones more")

    @property
    def label(self) -> str:
        """The target's short name, for the log."""
        return Path(self.target.removeprefix(TEACHER)).name

    @property
    def is_teacher(self) -> bool:
        return self.target.startswith(TEACHER)

    def width(self, patch: int, channels: int) -> int:
        """Numbers the decoder predicts for a patch, or, of text, for an image."""
        if self.target == "hog":
            return (patch // self.cell) ** 2 * channels * BINS
        if self.target == "pixels":
            return patch**2 * channels
        assert self.dim is not None, "checked"
        return self.dim

    def check(self) -> None:
        """Raise ConfigError on an unknown target, or one that does not say its width."""
        if self.target not in ("hog", "pixels", "text") and (not self.is_teacher or self.target == TEACHER):
            raise ConfigError(f"target: expected hog, pixels, text or teacher:NAME, got {self.target!r}")
        if (self.is_teacher or self.target == "text") and self.dim is None:
            what = "the width of the teacher's features" if self.is_teacher else "the size of the vocabulary"
            raise ConfigError(f"dim: {self.target} needs {what}, got null")


class TokenMixer(nn.Module):
    """One learned linear combination of the tokens for every patch: a decoder of depth 0. (B, L, C) -> (B, N, C)."""

    def __init__(self, side: int, num_tokens: int) -> None:
        super().__init__()
        self.side = side
        self.mix = nn.Parameter(torch.randn(1, side**2, num_tokens) / num_tokens**0.5)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return resample_grid(self.mix, (self.side, self.side), grid) @ tokens


class AuxiliaryDecoder(nn.Module):
    """Tokens -> a shallow decoder -> what a target says of every patch, and the loss against it.

    Args:
        decoder: the pixel decoder's, whose width and positions it shares.
        patch, side: of the encoder, whose patches are predicted.
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
        self.teacher: Features | None = None  # given by what builds the training, see `teacher_name`

    @property
    def teacher_name(self) -> TeacherName | None:
        """The teacher that the target needs; None for other targets."""
        config = self.config
        if not config.is_teacher:
            return None
        return TeacherName(config.target.removeprefix(TEACHER), config.weights, config.image_size)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) and the patches' (rows, columns) -> (B, N, D), or (B, vocabulary) of text."""
        states = tokens if self.trunk is None else self.trunk(tokens, grid)
        return self.out(states.mean(1) if self.config.target == "text" else states)

    def loss(self, tokens: Tensor, images: Tensor, mask: Tensor | None, words: Tensor | None = None) -> Tensor:
        """The weighted loss of tokens against the whole images (B, C, H, W) in [0, 1].

        Args:
            mask: (B, N) bool, the patches that count; None counts all. Text is of the whole image.
            words: of text, (B, T) ids, negative ones padding, or (B, vocabulary) weights.

        Raises:
            Tok1dError: a teacher that cannot be had or has another width, or no captions in the batch.
        """
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        prediction = self(tokens, grid)
        if self.config.target != "text":
            return self.config.weight * masked_mse(prediction, self.target(images, grid), mask, shared=self.training)
        if words is None:
            raise InputError("auxiliary target text: expected batches of (images, labels, captions), got no captions")
        if not words.is_floating_point():
            words = bag_of_words(words, prediction.shape[1])
        return self.config.weight * caption_loss(prediction, words)

    @torch.no_grad()
    def target(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """What every patch of whole images (B, C, H, W) in [0, 1] is to become, (B, N, D)."""
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
            assert self.teacher_name is not None, "only teachers' features are asked for"
            raise self.teacher_name.missing()
        features = self.teacher(images)
        if features.shape[-1] != self.out.out_features:
            raise ConfigError(
                f"model.auxiliary: {config.target} has features of width {features.shape[-1]}, set dim to that, "
                f"got {self.out.out_features}"
            )
        return features


def resize_bilinear(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features of a square grid (B, T, D), row by row, on another (rows, columns). -> (B, rows * columns, D).

    Raises:
        InputError: T is no square number and not that grid's count.
    """
    count, side = features.shape[1], math.isqrt(features.shape[1])
    if count == grid[0] * grid[1]:
        return features
    if side**2 != count:
        raise InputError(f"a teacher's features should lie on a square grid, got {count}; use square images")
    square = features.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(square.float(), size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


@dataclass
class LatentAlignmentConfig(AlignmentConfig):
    """Which teacher the tokens themselves are aligned with (SoftVQ-VAE: DINOv2-L, weight 0.1)."""

    weight: float = option(0.1, "weight of the alignment loss", gt=0)
    dim: int | None = option(None, "width of the teacher's features", ge=1)
    hidden: int = option(2048, "hidden width of the projection", ge=1)

    def check(self) -> None:
        """Raise ConfigError on a teacher without its width."""
        super().check()
        if self.teacher and self.dim is None:
            raise ConfigError("dim: alignment needs the width of the teacher's features, got null")


class LatentAlignment(nn.Module):
    """Tokens -> three linear layers -> minus the cosine to the teacher's features (SoftVQ-VAE, section 3.3).

    Args:
        repeat: consecutive patches share a token (its nearest); else the tokens lie on a square grid themselves.
    """

    def __init__(self, config: LatentAlignmentConfig, token_dim: int, *, repeat: bool) -> None:
        super().__init__()
        assert config.dim is not None, "checked"
        self.config, self.repeat = config, repeat
        hidden = nn.Linear(config.hidden, config.hidden)
        first, last = nn.Linear(token_dim, config.hidden), nn.Linear(config.hidden, config.dim)
        self.projector = nn.Sequential(first, nn.SiLU(), hidden, nn.SiLU(), last)
        self.teacher: Features | None = None  # given by what builds the training, see `teacher_name`

    @property
    def teacher_name(self) -> TeacherName:
        """The teacher whose features the tokens learn."""
        return TeacherName(self.config.teacher, self.config.weights, self.config.image_size)

    def loss(self, tokens: Tensor, images: Tensor) -> Tensor:
        """The weighted loss of tokens (B, L, C) of images (B, C, H, W) in [0, 1].

        Raises:
            Tok1dError: the teacher cannot be had, or has another width.
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

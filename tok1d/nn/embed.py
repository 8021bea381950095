"""Embeddings of patches, times and class ids; conditions with a null condition; patches back to images."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from tok1d.errors import InputError
from tok1d.nn.roles import CLASSES, INTERVAL, PIXELS_IN, Roles
from tok1d.nn.values import has_values


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one convolution. (B, C, H, W) -> (B, H/p * W/p, dim), row by row."""

    roles: ClassVar[Roles] = {"proj": (PIXELS_IN,)}

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.patch or x.shape[-2] % self.patch:
            raise ValueError(f"expected height and width as multiples of patch {self.patch}, got {tuple(x.shape[-2:])}")
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Patches (B, h * w, p * p * C), each ordered (row, column, channel), -> images (B, C, h * p, w * p)."""
    batch, _, size = tokens.shape
    channels = size // patch**2
    grid = tokens.view(batch, height, width, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height * patch, width * patch)


def time_rates(width: int) -> Tensor:
    """Frequencies 10000^(-k / (width // 2)) of a sinusoidal embedding of that width, (width // 2,)."""
    half = width // 2
    return torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)


def time_waves(t: Tensor, rates: Tensor, width: int) -> Tensor:
    """Times (B,) -> cosines, then sines at the frequencies `rates`, (B, width) float32; an odd width ends in a 0."""
    angles = t.float()[:, None] * rates
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width - 2 * len(rates)))


class TimeEmbed(nn.Module):
    """Sinusoids of a time (cosines first), Linear, SiLU, Linear. (B,) -> (B, dim).

    Args:
        frequencies: number of sinusoids (256: 128 cosines and 128 sines).
        scale: factor of the time before the sinusoids; 1000 maps times in [0, 1] to the range of discrete steps.
    """

    def __init__(self, dim: int, *, frequencies: int = 256, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.fc1 = nn.Linear(frequencies, dim)
        self.fc2 = nn.Linear(dim, dim)
        self.register_buffer("rates", time_rates(frequencies), persistent=False)
        self.rates: Tensor

    def init_weights(self) -> None:
        """Normal with std 0.02, zero biases (DiT)."""
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        waves = time_waves(t * self.scale, self.rates, self.fc1.in_features).to(self.fc1.weight.dtype)
        return self.fc2(nn.functional.silu(self.fc1(waves)))


class IntervalEmbed(TimeEmbed):
    """An embedding of the lengths of intervals of time, (B,) in [0, 1] -> (B, dim), zero at first."""

    roles: ClassVar[Roles] = {"fc1": (INTERVAL,), "fc2": (INTERVAL,)}

    def __init__(self, dim: int) -> None:
        super().__init__(dim, scale=10.0)  # up to 10 radians: smooth, as derivatives are taken

    def init_weights(self) -> None:
        """As `TimeEmbed`, but a last layer of zeros: weights trained without intervals give the same outputs."""
        super().init_weights()
        nn.init.zeros_(self.fc2.weight)


def embed_times(time: TimeEmbed, interval: IntervalEmbed | None, t: Tensor, d: Tensor | None) -> Tensor:
    """The embedding (B, dim) of times t (B,) and, with an `interval` embedding, lengths d (B,), by default 0."""
    if interval is None:
        return time(t)
    return time(t) + interval(torch.zeros_like(t) if d is None else d)


class Condition(nn.Module):
    """The condition of a model, class ids or captions, with a null condition for classifier-free guidance.

    Args:
        dropout: probability of the null condition in training.
        has_null: whether there is a null condition, which `cond=None` selects.
    """

    def __init__(self, dropout: float, *, has_null: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.has_null = has_null

    @property
    def is_conditional(self) -> bool:
        """Whether there are conditions besides the null condition."""
        return True

    @abstractmethod
    def checked(self, cond: Tensor | None, batch: int, device: torch.device, *, check_values: bool = True) -> Tensor:
        """The condition of `batch` samples on the device; None gives the null condition.

        Args:
            check_values: whether values are checked as well as shape and type, which synchronises with the device.

        Raises:
            InputError: another kind of condition, a class id out of range, or None without a null condition.
        """

    @abstractmethod
    def drop(self, cond: Tensor, u: Tensor | None = None) -> Tensor:
        """A checked condition, replaced by the null condition where u (B,) is below `dropout`.

        Args:
            u: uniform random numbers in [0, 1); default: from the global generator of the device.
        """


class ClassLabels(Condition):
    """Class ids 0..num_classes - 1, and the null class, id num_classes.

    There is a null class if `dropout` > 0, with `null_row`, or without classes.

    Args:
        dropout: probability of replacing a label by the null class in training.
        null_row: whether there is a null class without dropout as well.
    """

    def __init__(self, num_classes: int, dropout: float, *, null_row: bool = False) -> None:
        super().__init__(dropout, has_null=null_row or dropout > 0 or num_classes == 0)
        self.num_classes = num_classes

    @property
    def null(self) -> int:
        """Index of the null class."""
        return self.num_classes

    @property
    def is_conditional(self) -> bool:
        return self.num_classes > 0

    def checked(self, cond: Tensor | None, batch: int, device: torch.device, *, check_values: bool = True) -> Tensor:
        """Class ids (B,); see `Condition.checked`."""
        if cond is None:
            if not self.has_null:
                raise InputError(
                    "expected class ids, because this model has no null class (trained without class dropout)"
                )
            return torch.full((batch,), self.null, device=device)
        if not self.is_conditional:
            raise InputError("expected no class ids, because this model is unconditional; give num instead")
        if cond.dim() != 1 or cond.is_floating_point():
            raise InputError(f"expected class ids (B,) of integers, got {cond.dtype} of shape {tuple(cond.shape)}")
        if check_values and has_values(cond) and (int(cond.min()) < 0 or int(cond.max()) >= self.num_classes):
            raise InputError(f"class ids: expected 0..{self.num_classes - 1}, got {int(cond.min())}..{int(cond.max())}")
        return cond.to(device)

    def drop(self, cond: Tensor, u: Tensor | None = None) -> Tensor:
        """Class ids (B,) with some replaced by the null class; see `Condition.drop`."""
        if self.dropout == 0 or not self.is_conditional:
            return cond
        u = torch.rand(cond.shape, device=cond.device) if u is None else u
        return torch.where(u < self.dropout, self.null, cond)


class LabelEmbed(ClassLabels):
    """A table of class embeddings, with one more row where there is a null class.

    Args:
        num_classes: 0 makes an unconditional table of one (null) row.
        dropout, null_row: see `ClassLabels`.
    """

    roles: ClassVar[Roles] = {"table": (CLASSES,)}

    def __init__(self, num_classes: int, dim: int, dropout: float, *, null_row: bool = False) -> None:
        super().__init__(num_classes, dropout, null_row=null_row)
        self.table = nn.Embedding(num_classes + int(self.has_null), dim)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) int64 -> (B, dim)."""
        return self.table(labels)


def checked_cond(table: Condition, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """The checked condition of a batch, class ids (B,) or captions (B, T, E); None gives the null condition.

    Raises:
        InputError: see `Condition.checked`.
    """
    return table.checked(cond, batch, device)


def training_cond(table: Condition, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """As `checked_cond` for a training step: some conditions are replaced by the null condition.

    An unconditional model ignores `cond`, so that it can train on labelled data.
    """
    if not table.is_conditional:
        cond = None
    # Reading values from a GPU would synchronise, so they are only checked on the CPU.
    check_values = cond is None or cond.device.type == "cpu"
    return table.drop(table.checked(cond, batch, device, check_values=check_values))

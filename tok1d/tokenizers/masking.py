"""Masks of patches for mask modelling (MAETok, arXiv 2502.03444, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tok1d.config.fields import option
from tok1d.errors import ConfigError

SPREAD = 0.25  # standard deviation of the release's truncated normal distribution of mask ratios


@dataclass
class MaskConfig:
    """Masking in training. The defaults follow the release; the paper describes distribution=uniform, per=sample."""

    low: float = option(0.4, "smallest mask ratio, the share of masked patches", ge=0, le=1)
    high: float = option(0.6, "largest mask ratio; 0: no masking and no mask token", ge=0, le=1)
    distribution: Literal["uniform", "truncnorm"] = option(
        "truncnorm", "distribution of the ratio; truncnorm: a normal around `high`, truncated to [low, high]"
    )
    per: Literal["sample", "batch"] = option("batch", "whether a whole batch shares one ratio")

    def check(self) -> None:
        """Raise ConfigError on an empty range."""
        if self.low > self.high:
            raise ConfigError(f"low: expected at most high={self.high}, got {self.low}")


def sample_ratios(
    config: MaskConfig, batch: int, *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Mask ratios (batch,) in [low, high]; all equal with `per` "batch"."""
    u = torch.rand(batch if config.per == "sample" else 1, device=device, generator=generator)
    if config.distribution == "truncnorm" and config.high > config.low:
        # Inverse transform sampling: ndtri is the inverse of the normal distribution function.
        lowest = 0.5 * math.erfc((config.high - config.low) / SPREAD / math.sqrt(2))
        ratios = config.high + SPREAD * torch.special.ndtri(lowest + u * (0.5 - lowest))
    else:
        ratios = config.low + u * (config.high - config.low)
    return ratios.clamp(config.low, config.high).expand(batch)


def sample_mask(ratios: Tensor, num_patches: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Ratios (B,) -> (B, num_patches) bool with ceil(ratio * num_patches) random patches of each row True."""
    # Minus a tolerance for rounding errors, so that 0.4 of 10 patches are 4.
    counts = (ratios.double() * num_patches - 1e-4).ceil()
    noise = torch.rand(len(ratios), num_patches, device=ratios.device, generator=generator)
    return noise.argsort(1).argsort(1) < counts[:, None]

"""Which patches an encoder does not see in training (MAETok, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tok1d.config.fields import option
from tok1d.errors import ConfigError

SPREAD = 0.25  # standard deviation of the release's normal, in ratios


@dataclass
class MaskConfig:
    """Masking in training, by default as in the release; the paper reads as distribution=uniform, per=sample."""

    low: float = option(0.4, "smallest share of masked patches", ge=0, le=1)
    high: float = option(0.6, "largest share of masked patches; 0 masks none and leaves out the mask token", ge=0, le=1)
    distribution: Literal["uniform", "truncnorm"] = option(
        "truncnorm", "of the share; truncnorm is half a bell that rises towards `high`"
    )
    per: Literal["sample", "batch"] = option("batch", "who shares a share")

    def check(self) -> None:
        """Raise ConfigError on an empty range."""
        if self.low > self.high:
            raise ConfigError(f"low: expected at most high={self.high}, got {self.low}")


def draw_ratios(
    config: MaskConfig, batch: int, *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Shares of masked patches, (batch,) in [low, high]; equal ones with `per` "batch"."""
    u = torch.rand(batch if config.per == "sample" else 1, device=device, generator=generator)
    if config.distribution == "truncnorm" and config.high > config.low:
        # The normal around `high`, cut to [low, high], by the inverse of its distribution function.
        lowest = 0.5 * math.erfc((config.high - config.low) / SPREAD / math.sqrt(2))
        ratios = config.high + SPREAD * torch.special.ndtri(lowest + u * (0.5 - lowest))
    else:
        ratios = config.low + u * (config.high - config.low)
    return ratios.clamp(config.low, config.high).expand(batch)


def draw_mask(ratios: Tensor, num_patches: int, *, generator: torch.Generator | None = None) -> Tensor:
    """(B,) shares -> (B, num_patches) bool with ceil(share * num_patches) patches of each row True, at random."""
    # Less a rounding error, so that 0.4 of 10 patches are 4.
    counts = (ratios.double() * num_patches - 1e-4).ceil()
    noise = torch.rand(len(ratios), num_patches, device=ratios.device, generator=generator)
    return noise.argsort(1).argsort(1) < counts[:, None]

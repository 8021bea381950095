"""Tail dropping: in training the decoder sees the first k tokens, k drawn anew each time (SMAP, arXiv 2603.25249)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.tokenizers.prefix import draw_keep


@dataclass
class TailDropConfig:
    """How many tokens are kept in training: uniform over 0, 1, ..., N, both ends included, unless told otherwise."""

    enabled: bool = option(True, "off: all tokens are kept, the ablation without truncation")
    keep_per: Literal["iteration", "sample"] = option(
        "iteration", "one number for the images of a process, which shortens the sequence, or one an image, by masking"
    )
    min_keep: int = option(0, "fewest tokens kept, but for zero_prob", ge=0)
    group: int = option(1, "numbers of tokens kept are multiples of this", ge=1)
    full_prob: float = option(0.0, "probability of keeping all instead", ge=0, le=1)
    zero_prob: float = option(0.0, "probability of keeping none instead", ge=0, le=1)

    def check(self) -> None:
        """Raise ConfigError on probabilities that exceed 1 together."""
        if self.full_prob + self.zero_prob > 1:
            raise ConfigError(
                f"zero_prob: expected at most 1 together with full_prob={self.full_prob:g}, got {self.zero_prob:g}"
            )

    def check_length(self, length: int) -> None:
        """Raise ConfigError where `length` tokens cannot be cut so."""
        if length % self.group:
            raise ConfigError(f"group: expected a divisor of num_tokens={length}, got {self.group}")
        if self.min_keep > length:
            raise ConfigError(f"min_keep: expected at most num_tokens={length}, got {self.min_keep}")


def draw_tail(config: TailDropConfig, length: int, num: int, device: torch.device | None = None) -> Tensor:
    """(num,) int64, tokens to keep of `length`, from the device's global generator.

    The training loop seeds that generator by step and rank, so processes draw independently of each other.
    """
    lowest = -(-config.min_keep // config.group)
    keep = config.group * draw_keep(num, length // config.group, lowest=lowest, device=device)
    if config.zero_prob or config.full_prob:
        draws = torch.rand(num, device=device)
        keep = torch.where(draws < config.zero_prob, 0, keep)
        keep = torch.where(draws >= 1 - config.full_prob, length, keep)
    return keep


def mean_kept(config: TailDropConfig, length: int) -> float:
    """The mean of what `draw_tail` draws."""
    lowest = -(-config.min_keep // config.group)
    uniform = config.group * (lowest + length // config.group) / 2
    return config.full_prob * length + (1 - config.full_prob - config.zero_prob) * uniform

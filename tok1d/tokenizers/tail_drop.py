"""Tail token dropping: in training the decoder receives the first k tokens for a random k (SMAP, arXiv 2603.25249)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.tokenizers.prefix import sample_keep


@dataclass
class TailDropConfig:
    """The number of tokens that are kept in training, by default uniform over 0, 1, ..., N."""

    enabled: bool = option(True, "false: all tokens are kept, the ablation without truncation")
    keep_per: Literal["iteration", "sample"] = option(
        "iteration",
        "one number per iteration and process, which shortens the sequence, or one per sample, by masking attention",
    )
    min_keep: int = option(0, "smallest number kept; zero_prob is independent of it", ge=0)
    group: int = option(1, "kept numbers are multiples of this", ge=1)
    full_prob: float = option(0.0, "probability of keeping all tokens", ge=0, le=1)
    zero_prob: float = option(0.0, "probability of keeping no tokens", ge=0, le=1)
    after: float = option(
        0.0, "share of the training after which tokens are dropped; before that all are kept (paper: 0)", ge=0, lt=1
    )

    def check(self) -> None:
        """Raise ConfigError on probabilities whose sum exceeds 1."""
        if self.full_prob + self.zero_prob > 1:
            raise ConfigError(
                f"zero_prob: expected at most 1 together with full_prob={self.full_prob:g}, got {self.zero_prob:g}"
            )

    def check_length(self, length: int) -> None:
        """Raise ConfigError on settings that do not fit a number of tokens."""
        if length % self.group:
            raise ConfigError(f"group: expected a divisor of num_tokens={length}, got {self.group}")
        if self.min_keep > length:
            raise ConfigError(f"min_keep: expected at most num_tokens={length}, got {self.min_keep}")


def sample_tail(config: TailDropConfig, length: int, num: int, device: torch.device | None = None) -> Tensor:
    """(num,) int64, numbers of tokens to keep out of `length`, sampled with the global generator of the device.

    The training loop seeds that generator by step and rank, so processes sample independently.
    """
    lowest = -(-config.min_keep // config.group)
    keep = config.group * sample_keep(num, length // config.group, lowest=lowest, device=device)
    if config.zero_prob or config.full_prob:
        u = torch.rand(num, device=device)
        keep = torch.where(u < config.zero_prob, 0, keep)
        keep = torch.where(u >= 1 - config.full_prob, length, keep)
    return keep


def mean_kept(config: TailDropConfig, length: int) -> float:
    """The expected value of `sample_tail`."""
    lowest = -(-config.min_keep // config.group)
    uniform = config.group * (lowest + length // config.group) / 2
    return config.full_prob * length + (1 - config.full_prob - config.zero_prob) * uniform

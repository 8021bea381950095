"""What every generator offers."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.nn.embed import class_ids, training_ids

__all__ = ["Generator", "check_temperature", "class_ids", "training_ids"]


class Generator(Protocol):
    """A model of token sequences (B, K, D) or ids (B, K), given a class (B,) or nothing."""

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Scalars of one training step on (tokens, cond); entries named "loss..." are summed and minimised."""
        ...

    def sample(
        self,
        cond: Tensor | None = None,
        *,
        num: int | None = None,
        length: int | None = None,
        guidance: float | Guidance = 1.0,
        steps: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Raw tokens that the tokenizer can decode; `num` for unconditional models."""
        ...


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is no finite number from 0.

    Raises:
        InputError: below 0, infinite or not a number.
    """
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature: expected a finite number of 0 or more, got {temperature:g}")

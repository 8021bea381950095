"""What every generator offers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tok1d.config.sampling import Kind, SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.nn.embed import class_ids, training_ids

# What the interval of guidance is counted in: the time of the diffusion, shares of the steps, of the sequence.
IntervalOf = Literal["time", "steps", "sequence"]

__all__ = ["Generator", "check_temperature", "class_ids", "training_ids"]


class Generator(Protocol):
    """A model of token sequences (B, K, D) or ids (B, K), given a class (B,) or nothing.

    Args:
        kind: how it samples, see `Kind`.
        parallel: whether all tokens are sampled together, so that only their full number can be asked for.
        guidance_interval_of: what an interval of guidance is counted in; None: it takes no interval.
    """

    config: Any
    label_embed: Any
    kind: Kind
    parallel: bool
    guidance_interval_of: IntervalOf | None

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The weights and buffers by name."""
        ...

    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The networks that sampling calls, once a row and evaluation."""
        ...

    def resolved_settings(self, settings: SampleSettings) -> dict[str, Any]:
        """What of the settings is the model's own where they are None, and what its configuration adds to them."""
        ...

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

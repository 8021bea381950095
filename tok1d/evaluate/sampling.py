"""What a record says of sampling: the sampler, how often the network ran, and the guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.errors import InputError


class Evaluations:
    """Rows a network was evaluated on; two rows an image and step where guidance needs both predictions."""

    def __init__(self) -> None:
        self.rows = 0

    def per(self, num: int) -> str:
        """Evaluations for each of `num` things, as a record writes them."""
        return f"{self.rows / num:g}"


@contextmanager
def counted(network: nn.Module) -> Iterator[Evaluations]:
    """Count the evaluations of a network while the block runs; calls on a batch count once a row."""
    evaluations = Evaluations()

    def count(module: nn.Module, inputs: tuple) -> None:
        evaluations.rows += len(inputs[0])

    hook = network.register_forward_pre_hook(count)
    try:
        yield evaluations
    finally:
        hook.remove()


def solver_options(tokenizer: Any, solver: str | None) -> dict[str, str]:
    """What `decode` takes to sample with this solver (default: the tokenizer's own); nothing where it paints at once.

    Raises:
        InputError: a solver for a decoder that has none, or not this one.
    """
    if hasattr(tokenizer, "solver"):
        return {"solver": tokenizer.solver(solver)}
    if solver is not None:
        raise InputError(f"solver: this tokenizer's decoder paints without one, got {solver!r}")
    return {}


def guidance_text(guidance: float | Guidance, *, over_tokens: bool = False) -> float | str:
    """A record's guidance: the plain scale, or with its interval, or (`over_tokens`) with its schedule."""
    guidance = as_guidance(guidance, "linear" if over_tokens else "constant")
    if guidance.scale == 1:
        return 1.0
    if over_tokens:
        return f"{guidance.scale:g} {guidance.schedule}"
    low, high = guidance.interval
    return guidance.scale if (low, high) == (0, 1) else f"{guidance.scale:g} in {low:g}..{high:g}"

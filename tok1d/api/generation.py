"""`Generator.generate`: samples of classes or captions, perhaps the best ones of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tok1d.evaluate.verifiers import open_verifier
from tok1d.generators.base import Generator
from tok1d.inference import draw


def generate(
    generator: Generator,
    conditions: Sequence[str | int] | str | int | None = None,
    *,
    verifier: str | Callable[..., object] = "",
    **settings: object,
) -> draw.Samples:
    """See `Generator.generate`."""

    def opened(drawing: draw.Drawing) -> draw.Scoring:
        return verifier if callable(verifier) else open_verifier(verifier, drawing, "verifier")

    return draw.generate(generator, conditions, opened=opened, **settings)  # type: ignore[arg-type]

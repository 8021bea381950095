"""The settings of `tok1d study`. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tok1d.config.fields import option
from tok1d.config.options import fields_from
from tok1d.config.sampling import Decoding
from tok1d.inference.request import LABEL_HELP

CLASS, REDRAWN = "class", "redrawn"  # the distractors that are not a folder
SHORTEST_MS, LONGEST_MS = 10, 10_000


@dataclass(frozen=True, kw_only=True)
class Design(Decoding):
    """The trials of a study, and how reconstructions are decoded."""

    keep: tuple[int, ...] = option((2,), "numbers of leading tokens of the reconstructions, such as 1,2,4", ge=0)
    reveal: tuple[int, ...] = option(
        (50, 100, 200, 500),
        f"times in milliseconds for which the original is shown, {SHORTEST_MS} to {LONGEST_MS}",
        ge=SHORTEST_MS,
    )
    num: int = option(24, "number of originals that a participant sees once each, without practice and catch", ge=1)
    practice: int = option(2, "number of practice trials at the beginning, which are not scored", ge=0)
    catch: int = option(3, "number of catch trials, in which one of the pictures is the original itself", ge=0)
    mask: int = option(300, "time in milliseconds for which the mask is shown after the original", ge=0, le=5_000)
    distractor: str = option(
        CLASS,
        f"the other picture: {CLASS} (another image of the class), {REDRAWN} (described by --captioner and drawn by "
        f"--painter), or a folder of images (./{CLASS} for a folder of that name)",
        path="path",
    )
    captioner: str = option(
        "", "of redrawn distractors: image-to-text model of transformers, a folder or a hub name", path="path"
    )
    painter: str = option(
        "", "of redrawn distractors: text-to-image pipeline of diffusers, a folder or a hub name", path="path"
    )
    consent: Path | None = option(None, "text file with the consent text; default: a short text", path="path")
    split: Literal["train", "test", "all"] | None = option(
        None, "split of the data: train, test or all; default: test, of a folder without splits in its names all"
    )
    label: Literal["true", "null"] | None = option(None, LABEL_HELP)
    seed: int = option(0, "seed of the noise of the decoder, the choice of distractors, and the order of trials", ge=0)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are decoded."""
        return fields_from(Decoding, self)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which answers count, and the intervals."""

    catch_min: float = option(
        0.75, "leave out participants with a smaller share of right answers in catch trials", ge=0, le=1
    )
    resamples: int = option(2000, "bootstrap resamples of the 95 % intervals", ge=100, le=100_000)
    seed: int = option(0, "seed of the resamples", ge=0)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where the page is served."""

    port: int = option(8000, "port; 0: a free one", ge=0, le=65_535)
    host: str = option("127.0.0.1", "address to listen at; by default only this machine can connect")

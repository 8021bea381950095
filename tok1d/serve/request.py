"""The settings of `tok1d serve` and of its tabs, with their limits and their explanations. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option

MOST_NUM, MOST_SAMPLES = 16, 64  # samples of a class or caption, and in all
MOST_STEPS = 250
MOST_SEED = 2**31 - 1
MOST_TEXT = 300  # characters of a caption or of the name of a class


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where the page is served, and what it shows."""

    port: int = option(7860, "port; 0: a free one", ge=0, le=65_535)
    data: str | None = option(
        None,
        "data set whose test images are the examples and whose training images are searched for the nearest ones; "
        "default: that of the model, if it is fashion_mnist or emoji and on this machine",
        path="path",
    )


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a picture is encoded and decoded."""

    model: str = option("", "The tokenizer that encodes the picture and decodes its tokens.")
    condition: str = option(
        "", "Class or caption that encoder and decoder receive; empty: none, which such models also decode."
    )
    steps: int | None = option(
        None, "Steps of the decoder's sampler; more take longer. 0: the model's own.", ge=0, le=MOST_STEPS
    )
    guidance: float = option(1.0, "Scale of the decoder's guidance towards the tokens; 1 is no guidance.", ge=0, le=20)
    seed: int = option(
        0, "Seed of the decoder's initial noise; the same seed gives the same picture.", ge=0, le=MOST_SEED
    )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is drawn, and how. A saved PNG holds these settings."""

    model: str = option("", "The generator that draws tokens; its tokenizer decodes them.")
    classes: tuple[str, ...] = option((), "Classes by name or number, as many as you like; none: all of them.")
    caption: str = option("", "What to draw, in words that the model's training captions have.")
    num: int = option(4, f"Pictures of each class or caption; at most {MOST_SAMPLES} in all.", ge=1, le=MOST_NUM)
    seed: int = option(0, "Seed of all random numbers; the same seed gives the same pictures.", ge=0, le=MOST_SEED)
    guidance: float = option(2.0, "How strongly pictures follow the class or caption; 1 is no guidance.", ge=0, le=20)
    guidance_schedule: Literal["own", "constant", "linear", "power_cosine"] = option(
        "own", "Guidance over the tokens: constant, or rising from 1 to the scale; own: as the model was made."
    )
    temperature: float = option(1.0, "Scale of the sampling noise; lower is less varied.", ge=0, le=2)
    steps: int | None = option(
        None, "Steps of the sampler, for a token or for all; 0: the model's own.", ge=0, le=MOST_STEPS
    )
    decoder_steps: int | None = option(
        None, "Steps of the tokenizer's decoder; 0: the model's own.", ge=0, le=MOST_STEPS
    )

"""Pictures of a generator, token by token, with the settings that a saved PNG holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tok1d.config.fields import build_config, to_mapping
from tok1d.errors import ConfigError, InputError
from tok1d.inference.draw import Drawing
from tok1d.inference.request import SamplePictures
from tok1d.serve.examples import Examples
from tok1d.serve.models import Models, check_text
from tok1d.serve.request import MOST_SAMPLES, Wish

PARALLEL = 4  # pictures at once by a generator that makes all tokens together
MOST_SHOWN = 32  # times that growing pictures are decoded


@dataclass(frozen=True)
class Drawn:
    """Pictures, finished or growing.

    Args:
        images: (N, C, H, W) in [0, 1]; grey where a picture is not begun.
        labels: class or caption of each picture, "" without one.
        done, total: tokens, or pictures, that are made.
        unit: "tokens" or "pictures".
    """

    wish: Wish
    images: Tensor
    labels: list[str]
    done: int
    total: int
    unit: str

    @property
    def finished(self) -> bool:
        """Whether all is drawn."""
        return self.done == self.total


def wish_of(values: Mapping[str, object]) -> Wish:
    """Settings from the page or from a PNG.

    Raises:
        InputError: an unknown setting, another type, or a value out of range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return build_config(Wish, given)
    except (ConfigError, RecursionError) as error:
        raise InputError(f"settings: {error}") from None


def to_json(wish: Wish) -> str:
    """The settings as a PNG holds them."""
    return json.dumps(to_mapping(wish))


def from_json(text: str) -> Wish:
    """The settings that a PNG holds; raises InputError for another text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError("settings: expected a PNG that was saved here, this one's settings cannot be read")
    return wish_of(found)


def draw(models: Models, wish: Wish) -> Iterator[Drawn | tuple[int, int]]:
    """Draw pictures.

    Yields the pictures as they grow; (done, all) where nothing new is shown.

    Raises:
        InputError: settings that the model does not have, or too many pictures.
    """
    generator, tokenizer = models.pair(wish.model)
    facts = models.generator_facts(wish.model)
    drawing = Drawing(generator, tokenizer, _pictures(wish, facts.captions, facts.samples, bool(facts.classes)), None)
    keys = drawing.keys
    if len(keys) > MOST_SAMPLES:
        raise InputError(f"pictures: expected at most {MOST_SAMPLES} in all, got {len(keys)}; choose fewer classes")
    labels = ["" if (name := drawing.label(key)) is None else str(name) for key in keys]
    if facts.sequential:
        shown = _shown(drawing.length)
        steps = iter(drawing.growing(keys))
        for count in range(1, drawing.length + 1):
            with torch.no_grad():
                tokens, lengths = next(steps)
                images = drawing.decode(tokens, keys, count, lengths).clamp(0, 1) if count in shown else None
            if images is not None:
                yield Drawn(wish, images, labels, count, drawing.length, "tokens")
            else:
                yield count, drawing.length
        return
    finished: list[Tensor] = []
    for start in range(0, len(keys), PARALLEL):
        part = keys[start : start + PARALLEL]
        with torch.no_grad():
            tokens, lengths = drawing.tokens(part)
            finished.append(drawing.decode(tokens, part, drawing.length, lengths).clamp(0, 1))
        made = torch.cat(finished)
        rest = torch.full((len(keys) - len(made), *made.shape[1:]), 0.5)
        yield Drawn(wish, torch.cat([made, rest]), labels, len(made), len(keys), "pictures")


def _shown(length: int) -> set[int]:
    """The numbers of tokens at which growing pictures are decoded."""
    step = -(-length // MOST_SHOWN)
    return set(range(length, 0, -step))


def _pictures(wish: Wish, captions: bool, samples: bool, classes: bool) -> SamplePictures:
    """The settings for the library; of those that the model does not read, the defaults."""
    for text in (wish.caption, *wish.classes):
        check_text(text)
    if captions and not wish.caption.strip():
        raise InputError("caption: expected some words of what to draw")
    own = wish.guidance_schedule == "own"
    return SamplePictures(
        classes=wish.classes if classes else (),
        captions=(wish.caption.strip(),) if captions else (),
        num=wish.num,
        seed=wish.seed,
        guidance=wish.guidance if captions or classes else None,
        guidance_schedule=None if own else wish.guidance_schedule,  # type: ignore[arg-type]
        temperature=wish.temperature,
        steps=wish.steps or None,
        decoder_steps=(wish.decoder_steps or None) if samples else None,  # type: ignore[call-arg]
        batch_size=MOST_SAMPLES,
    )


def nearest(models: Models, examples: Examples, drawn: Drawn) -> tuple[Tensor, list[float]]:
    """The nearest training images (N, C, H, W) of drawn pictures, and their distances.

    Raises:
        InputError: the training images are not here.
    """
    generator, tokenizer = models.pair(drawn.wish.model)
    training = examples.training(tokenizer, generator)
    distances, numbers = training.nearest(drawn.images)
    return training.images.batch(numbers.tolist())[0], distances.tolist()

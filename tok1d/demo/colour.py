"""The bundled models of colour emoji, for the top of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tok1d.config.classes import Classes
from tok1d.config.condition import text_condition
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.demo.measure import SEED, noise, protocol, reconstruct
from tok1d.demo.page import Gallery
from tok1d.errors import DataError
from tok1d.html.parts import Strip
from tok1d.inference import images as sources
from tok1d.inference.captions import caption_reader
from tok1d.inference.conditions import ConditionedImages, conditioning_of
from tok1d.pictures import data_uri, grid, save_png
from tok1d.zoo import store
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer

PAIR = "emoji-smap"
CAPTIONS = ("red apple", "grinning face", "blue heart", "automobile", "cat face", "green book")
NUM_IMAGES, NUM_SAMPLES = 10, 8


def available() -> tuple[LoadedGenerator, LoadedTokenizer] | None:
    """The bundled pair that draws emoji from words; None where the package has none."""
    return store.load_pair(PAIR) if PAIR in store.bundled_names() else None


def galleries(folder: Path) -> list[Gallery]:
    """Test images with their reconstructions, and samples from words; also written into `folder` as PNG files.

    Without the pair, or where the font of the emoji cannot be had, the list is empty; a line says the latter.
    """
    pair = available()
    if pair is None:
        return []
    generator, tokenizer = pair
    try:
        test = sources.open_data("emoji", tokenizer, split="test", generator=generator, report=False)
    except DataError as error:
        print(f"      no pictures of emoji: {error}", flush=True)
        return []
    given, words = _reconstructed(tokenizer, test), drawn(generator, tokenizer, CAPTIONS)
    found = []
    for name, title, note, rows in (
        ("reconstructions", "Test images and their reconstructions", "unselected, none of them trained on", given),
        ("words", "Samples from words", f"the first samples, seed {SEED}", words),
    ):
        images = list(rows.values())
        save_png(grid(torch.cat(images), len(images[0])), folder / f"emoji-{name}.png")
        strips = [Strip(label, data_uri(grid(row, len(row)))) for label, row in rows.items()]
        found.append(Gallery(name, title, note, strips))
    return found


@torch.no_grad()
def _reconstructed(tokenizer: LoadedTokenizer, test: ImageSet) -> dict[str, Tensor]:
    """Rows of images (B, 3, H, W) by their label: the originals, then the reconstructions by number of tokens."""
    some = subset(test, NUM_IMAGES)
    x, _, cond = ConditionedImages(tokenizer, some, None).batch(range(len(some)))
    decoded = reconstruct(tokenizer, x, cond)
    return {"original": x, **{f"{k} token{'s' * (k > 1)}": images for k, images in decoded.items()}}


@torch.no_grad()
def drawn(generator: LoadedGenerator, tokenizer: LoadedTokenizer, captions: Sequence[str]) -> dict[str, Tensor]:
    """Samples (NUM_SAMPLES, 3, H, W) in [0, 1] of each caption, from a generator that reads words."""
    condition, how = text_condition(generator.config), protocol(generator.card)
    assert condition is not None, "the bundled generator of emoji reads words"
    read = caption_reader(condition, captions)
    place = next(generator.parameters()).device
    conditioning, rows = conditioning_of(tokenizer, Classes(0), captioned=True), {}
    for caption in captions:
        cond = read([caption] * NUM_SAMPLES, place)
        tokens = generator.sample(cond, guidance=how.guidance, temperature=how.temperature, generator=noise())
        rows[f"“{caption}”"] = tokenizer.decode(tokens, conditioning.of(cond, place), generator=noise()).clamp(0, 1)
    return rows

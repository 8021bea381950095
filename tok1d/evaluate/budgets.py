"""How well a head predicts the qualities of prefixes, and its budgets beside those of the search."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tok1d.config.sampling import Decoding
from tok1d.data.images import ImageSet
from tok1d.evaluate.reference import describe_images
from tok1d.inference.budget import ROWS, prefix_qualities, smallest
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, decoder_options, noise_of
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.budget import MOST, BudgetHead
from tok1d.zoo.pretrained.quality import load_quality
from tok1d.zoo.record import ModelProtocol, Record


def measured_qualities(
    tokenizer: Tokenizer, images: ImageSet, *, metric: str, label: str | None = None, seed: int = 0, rows: int = ROWS
) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
    """For batches of images: their numbers, labels (B,), tokens (B, K, ...) and qualities (B, K) of all prefixes.

    Args:
        label: see `conditioning_of`.
        seed: of the decoder's noise.
        rows: decoded images at once.
    """
    conditioned, quality = ConditionedImages(tokenizer, images, label), load_quality(metric)
    options, device = decoder_options(tokenizer, Decoding()), next(tokenizer.parameters()).device
    size = max(1, rows // tokenizer.spec.length)
    for start in range(0, len(images), size):
        numbers = range(start, min(start + size, len(images)))
        x, labels, cond = conditioned.batch(numbers)
        x = x.to(device)
        with torch.no_grad():
            tokens = tokenizer.encode(x, cond)
        found, _ = prefix_qualities(
            tokenizer,
            tokens,
            x,
            cond,
            quality,
            noise=partial(_noise, seed, start),
            options=options,
            rows=rows,
        )
        yield numbers, labels, tokens, found


def _noise(seed: int, first: int, place: int) -> torch.Generator:
    """The decoder's noise of the image at a place in a batch."""
    return noise_of(seed, DECODER_NOISE, first + place)


@torch.no_grad()
def evaluate_head(
    head: BudgetHead, tokenizer: Tokenizer, images: ImageSet, *, seed: int = 0, protocol: ModelProtocol | None = None
) -> list[Record]:
    """Two records: the mean absolute error of the predicted qualities in dB, and the share of near choices.

    A choice is near if it is within one token of that of the search, for the mean quality of half of the tokens.
    """
    parts = list(measured_qualities(tokenizer, images, metric=head.config.metric, seed=seed))
    found = torch.cat([each[3] for each in parts]).clamp(max=MOST)
    predicted = torch.cat([head.qualities(each[2], each[3][:, -1]) for each in parts])
    wanted = float(found.mean(0)[(found.shape[1] - 1) // 2])
    near = (smallest(predicted, wanted) - smallest(found, wanted)).abs() <= 1
    metric, error = head.config.metric, float((predicted - found).abs().mean())
    numbers = [
        ("quality_error", error, "dB", f"{metric}; all prefixes"),
        ("budget_within_one", float(near.double().mean()), "", f"{metric} of {wanted:.2f} dB"),
    ]
    return [
        Record(
            name=name,
            value=value,
            unit=unit,
            note=note,
            num_images=len(found),
            reference=describe_images(images),
            seed=seed,
            **(protocol or ModelProtocol()),
        )
        for name, value, unit, note in numbers
    ]

"""How well a generator draws: label agreement and Fréchet distance of its decoded samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tok1d.data.images import ImageSet
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reconstruction import Judged, judge_name
from tok1d.evaluate.report import Record


def balanced_labels(num: int, num_classes: int) -> Tensor:
    """(num,) class ids 0, 1, ..., repeated: every class equally often (to within one)."""
    return torch.arange(num) % num_classes


@torch.no_grad()
def evaluate_generation(
    generator: Any,
    tokenizer: Any,
    reference: ImageSet,
    judge: CNN,
    *,
    num: int = 1000,
    keep: Sequence[int] = (),
    guidance: float = 1.0,
    temperature: float = 1.0,
    head_steps: int | None = None,
    steps: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    protocol: dict[str, Any] | None = None,
) -> list[Record]:
    """Label agreement of `num` class-balanced samples and their Fréchet distance to `reference` images.

    Args:
        keep: how many of a sample's tokens are decoded, one set of records each (default: all it generates).
        guidance, temperature, head_steps: of the generator; `steps` of the tokenizer's decoder.
    """
    device = next(generator.parameters()).device
    length = generator.config.num_tokens
    lengths = list(keep) or [length]
    labels = balanced_labels(num, generator.config.num_classes).to(device)
    judged = {k: Judged(judge) for k in lengths}
    for start in range(0, num, batch_size):
        batch = labels[start : start + batch_size]
        source = torch.Generator(device).manual_seed(seed * 1_000_003 + start)
        tokens = generator.sample(batch, guidance=guidance, steps=head_steps, temperature=temperature, generator=source)
        for k in lengths:
            decoder_source = torch.Generator(device).manual_seed(seed * 1_000_003 + start + 1)
            judged[k].update(tokenizer.decode(tokens, keep=k, steps=steps, generator=decoder_source), batch)
    real = Judged(judge)
    for start in range(0, len(reference), batch_size):
        x, y = reference.batch(range(start, min(start + batch_size, len(reference))))
        real.update(x.to(device), y.to(device))
    name = judge_name(judge)
    common = dict(
        num_images=num,
        network=name,
        sampler=f"{generator.config.head.sampler} {head_steps or generator.config.head.steps} steps a token",
        steps=steps or tokenizer.config.steps,
        guidance=guidance,
        seed=seed,
        **(protocol or {}),
    )
    records = []
    for k in lengths:
        records.append(Record(name="label_agreement", value=judged[k].agreement, keep=k, **common))
        distance = judged[k].distance(real)
        fingerprint = f"{len(reference)} images {reference.fingerprint()}"
        records.append(Record(name=f"fd@{name.split('@')[0]}", value=distance, keep=k, reference=fingerprint, **common))
    return records

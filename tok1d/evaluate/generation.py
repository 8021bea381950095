"""How well a generator draws: label agreement and Fréchet distance of its decoded samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tok1d.data.images import ImageSet
from tok1d.diffusion.guidance import Guidance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reconstruction import Judged, judge_name
from tok1d.evaluate.report import Record
from tok1d.evaluate.sampling import counted, guidance_text, solver_options


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
    guidance: float | Guidance = 1.0,
    temperature: float = 1.0,
    head_steps: int | None = None,
    head_sampler: str | None = None,
    steps: int | None = None,
    solver: str | None = None,
    decoder_guidance: float = 1.0,
    batch_size: int = 250,
    seed: int = 0,
    protocol: dict[str, Any] | None = None,
) -> list[Record]:
    """Label agreement of `num` class-balanced samples and their Fréchet distance to `reference` images.

    Args:
        keep: how many of a sample's tokens are decoded, one set of records each (default: all it generates).
        guidance, temperature, head_steps, head_sampler: of the generator (a plain guidance scale grows linearly over
            the tokens); steps, solver, decoder_guidance: of the tokenizer's decoder.
        batch_size: it decides the noise too, with the seed.
    """
    device = next(generator.parameters()).device
    length = generator.config.num_tokens
    lengths = list(keep) or [length]
    labels = balanced_labels(num, generator.config.num_classes).to(device)
    judged = {k: Judged(judge) for k in lengths}
    options = solver_options(tokenizer, solver)
    for start in range(0, num, batch_size):
        batch = labels[start : start + batch_size]
        source = torch.Generator(device).manual_seed(seed * 1_000_003 + start)
        with counted(generator.head.net.input) as head_evaluations:
            tokens = generator.sample(
                batch,
                guidance=guidance,
                steps=head_steps,
                temperature=temperature,
                generator=source,
                sampler=head_sampler,
            )
        for k in lengths:
            decoder_source = torch.Generator(device).manual_seed(seed * 1_000_003 + start + 1)
            with counted(tokenizer.decoder) as evaluations:
                y = tokenizer.decode(
                    tokens, keep=k, steps=steps, guidance=decoder_guidance, generator=decoder_source, **options
                )
            judged[k].update(y, batch)
    real = Judged(judge)
    for start in range(0, len(reference), batch_size):
        x, y = reference.batch(range(start, min(start + batch_size, len(reference))))
        real.update(x.to(device), y.to(device))
    name = judge_name(judge)
    head = generator.head
    guidance_used = guidance_text(guidance, over_tokens=True)
    if decoder_guidance != 1:
        guidance_used = f"{guidance_used}, decoder {decoder_guidance:g}"
    warmth = "" if temperature == 1 else f", temperature {temperature:g}"
    common = dict(
        num_images=num,
        network=name,
        sampler=f"{head.sampler(head_sampler)} {head_steps or head.config.steps} steps, "
        f"{head_evaluations.per(tokens.shape[0] * tokens.shape[1])} evaluations a token{warmth}"
        + (f"; {options['solver']}, {evaluations.per(len(tokens))} evaluations an image" if options else ""),
        steps=steps or getattr(tokenizer.config, "steps", None),
        guidance=guidance_used,
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

"""How well a generator draws: label agreement and Fréchet distance of its decoded samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tok1d.condition import is_conditional, text_condition
from tok1d.data.images import ImageSet
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.labels import label_used, labels_given
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reconstruction import Judged, judge_name, token_counts
from tok1d.evaluate.report import Record, frechet_name
from tok1d.evaluate.sampling import (
    DRAWING,
    PAINTING,
    counted,
    decoder_options,
    generator_guidance,
    guidance_text,
    noise_of,
    sampled_networks,
    sampling_options,
    sampling_text,
)
from tok1d.generators.sequence import SequenceModel
from tok1d.text import CaptionEmbeddings


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
    unconditional: bool = False,
    guidance: float | Guidance = 1.0,
    temperature: float = 1.0,
    steps: int | None = None,
    sampler: str | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    decoder_steps: int | None = None,
    decoder_solver: str | None = None,
    decoder_guidance: float = 1.0,
    batch_size: int = 250,
    seed: int = 0,
    pad: int = 0,
    protocol: dict[str, Any] | None = None,
) -> list[Record]:
    """Label agreement of `num` class-balanced samples and their Fréchet distance to `reference` images.

    A model of captions draws by those of the reference images, one after the other, and its samples should show their
    classes. Samples of an unconditional model have only the distance.

    Args:
        keep: how many of a sample's tokens are decoded, one set of records each (default: all it generates).
        unconditional: draw the null condition of a conditional model, without labels.
        guidance, temperature, steps, sampler, top_k, top_p: of the generator, those it has (a plain guidance scale
            follows `generator_guidance`); decoder_steps, decoder_solver, decoder_guidance: of the tokenizer's decoder.
        batch_size: images at a time; the noise belongs to (seed, number of the image), so it changes rounding alone.
        pad: width of the images' border, in pixels, that the judge does not see.

    Raises:
        InputError: whatever the generator or the tokenizer cannot do, or captions that are not there.
    """
    device = next(generator.parameters()).device
    conditional = is_conditional(generator.config) and not unconditional
    captioned = conditional and text_condition(generator.config) is not None
    conditions = _conditions(generator, reference, num, device) if conditional else None
    lengths = token_counts(tokenizer.spec, keep or [generator.config.num_tokens])
    # A sample's own class or caption, which the decoder is told too where it wants one.
    used = label_used(tokenizer, generator.config.num_classes if conditional else 0, captioned=captioned)
    judged = {k: Judged(judge, pad) for k in lengths}
    guidance = generator_guidance(generator, guidance)
    how = sampling_options(generator, sampler=sampler, steps=steps, temperature=temperature, top_k=top_k, top_p=top_p)
    decoding = decoder_options(
        tokenizer, steps=decoder_steps, guidance=decoder_guidance, solver=decoder_solver, prefix="decoder_"
    )
    for start in range(0, num, batch_size):
        count = min(batch_size, num - start)
        cond, labels = (None, None) if conditions is None else conditions(start, count)
        numbers = range(start, start + count)
        drawing = [noise_of(seed, DRAWING, i) for i in numbers]
        with counted(*sampled_networks(generator, guidance)) as evaluations:
            tokens = generator.sample(cond, num=count, guidance=guidance, generator=drawing, **how)
        for k in lengths:
            sources = [noise_of(seed, PAINTING, i) for i in numbers]
            with counted(tokenizer.decoder) as painting:
                y = tokenizer.decode(tokens, labels_given(used, cond, device), keep=k, generator=sources, **decoding)
            judged[k].update(y, labels)
    sampling = sampling_text(generator, tokens, evaluations, **how)
    if decoding:
        sampling += f"; {decoding['solver']}, {painting.per(len(tokens))} evaluations an image"
    guided = guidance_text(guidance, over_tokens=not isinstance(generator, SequenceModel))
    common = dict(
        num_images=num,
        network=judge_name(judge),
        sampler=sampling,
        steps=(decoder_steps or getattr(tokenizer.config, "steps", None)) if decoding else None,
        guidance=guided if decoder_guidance == 1 else f"{guided}, decoder {decoder_guidance:g}",
        seed=seed,
        label=used,
        note="by captions of the reference images" if captioned else "" if conditional else "unconditional",
        **(protocol or {}),
    )
    return _records(judged, _real(judge, reference, pad, batch_size, device), reference, common, labelled=conditional)


def _conditions(
    generator: Any, reference: Any, num: int, device: torch.device
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """What so many samples from a number on are drawn by, classes or captions, and the classes they should show."""
    told, captions = text_condition(generator.config), getattr(reference, "captions", [])
    if told is None:
        labels = balanced_labels(num, generator.config.num_classes).to(device)
        return lambda start, count: 2 * (labels[start : start + count],)
    if not any(captions):
        raise InputError("this generator is told captions, the reference images have none; draw it unconditionally")
    embed = CaptionEmbeddings(told, captions)

    def of_images(start: int, count: int) -> tuple[Tensor, Tensor]:
        indices = [i % len(reference) for i in range(start, start + count)]
        _, labels, captions = reference.captioned_batch(indices)
        return embed(captions, device), labels.to(device)

    return of_images


def _real(judge: CNN, reference: ImageSet, pad: int, batch_size: int, device: torch.device) -> Judged:
    """What the judge makes of all reference images."""
    real = Judged(judge, pad)
    for start in range(0, len(reference), batch_size):
        x, y = reference.batch(range(start, min(start + batch_size, len(reference))))
        real.update(x.to(device), y.to(device))
    return real


def _records(
    judged: dict[int, Judged], real: Judged, reference: ImageSet, common: dict[str, Any], *, labelled: bool
) -> list[Record]:
    fingerprint, name = f"{len(reference)} images {reference.fingerprint()}", frechet_name(common["network"])
    records = []
    for k, samples in judged.items():
        if labelled:
            records.append(Record(name="label_agreement", value=samples.agreement, keep=k, **common))
        distance = samples.distance(real)
        records.append(Record(name=name, value=distance, keep=k, reference=fingerprint, **common))
    return records

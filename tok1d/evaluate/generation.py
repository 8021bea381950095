"""How well a generator draws: label agreement of its decoded samples, and their distances to reference images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tok1d.config.condition import is_conditional, text_condition
from tok1d.data.broken import replaced_indices, report_broken
from tok1d.data.images import ImageSet
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.job import Job
from tok1d.evaluate.measures import Compared, Gathered, Measures, own_networks, record_of, strip
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.samples import Save, saving
from tok1d.generators.sequence import SequenceModel
from tok1d.inference.labels import label_used, labels_given
from tok1d.inference.sampling import (
    CLASS_NOISE,
    DECODER_NOISE,
    TOKEN_NOISE,
    counted,
    decoder_options,
    generator_guidance,
    guidance_text,
    noise_of,
    sampled_networks,
    sampling_options,
    sampling_text,
)
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.pretrained.text import CaptionEmbeddings
from tok1d.zoo.record import Record, versions
from tok1d.zoo.store import model_identity
from tok1d.zoo.weights import fingerprint

# How classes are drawn, and what a record calls it.
CLASSES = {"balanced": "balanced", "random": "uniformly random", "train": "as in the reference images"}


def balanced_labels(num: int, num_classes: int) -> Tensor:
    """(num,) class ids 0, 1, ..., repeated: every class equally often (to within one)."""
    return torch.arange(num) % num_classes


def drawn_labels(how: str, num: int, num_classes: int, *, seed: int = 0, labels: Tensor | None = None) -> Tensor:
    """(num,) class ids: "balanced", "random" (uniform), or "train" (as often as among `labels`).

    The class of an image belongs to (seed, number of the image), as its noise does.

    Raises:
        InputError: another way, or "train" without labels of these classes.
    """
    if how == "balanced":
        return balanced_labels(num, num_classes)
    if how not in CLASSES:
        raise InputError(f"classes: expected {', '.join(CLASSES)}, got {how!r}")
    draws = torch.tensor([int(torch.randint(2**62, (), generator=noise_of(seed, CLASS_NOISE, i))) for i in range(num)])
    if how == "random":
        return draws % num_classes
    if labels is None or not len(labels) or int(labels.max()) >= num_classes:
        raise InputError(f"classes: the reference images have no labels out of {num_classes} classes to draw by")
    return labels[draws % len(labels)]


@torch.no_grad()
def evaluate_generation(
    generator: Any,
    tokenizer: Any,
    reference: ImageSet | None,
    judge: CNN | None = None,
    *,
    num: int = 1000,
    keep: Sequence[int] = (),
    unconditional: bool = False,
    classes: str = "balanced",
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
    measures: Measures | None = None,
    references: Sequence[Compared] | Callable[[], Sequence[Compared]] | None = None,
    job: Job | None = None,
    save: Save | None = None,
) -> list[Record]:
    """Label agreement of `num` samples, their Fréchet distance to `reference` images, and more.

    A model of captions draws by those of the reference images, one after the other, and its samples should show their
    classes. Samples of an unconditional model are compared with no labels.

    Args:
        reference: images to compare with; None where `references` are given and no captions are needed.
        judge: the network of label agreement and Fréchet distance, unless `measures` are given.
        keep: how many of a sample's tokens are decoded, one set of records each (default: all it generates).
        unconditional: draw the null condition of a conditional model, without labels.
        classes: how the samples' classes are drawn, see `drawn_labels`; "train" is as often as in `reference`.
        guidance, temperature, steps, sampler, top_k, top_p: of the generator, those it has (a plain guidance scale
            follows `generator_guidance`); decoder_steps, decoder_solver, decoder_guidance: of the tokenizer's decoder.
        batch_size: images at a time; the noise belongs to (seed, number of the image), so it changes rounding alone.
        pad: width of the images' border, in pixels, that the networks do not see.
        measures: which metrics by which networks (default: label agreement and Fréchet distance by the judge).
        references: one a network of `measures`, or what gives them; default: all images of `reference`.
        job: how it is shared and resumed (default: at once, in this process).
        save: writes the samples from the most tokens.

    Returns:
        The records; none where other processes have not finished their part.

    Raises:
        InputError: whatever the generator or the tokenizer cannot do, or captions that are not there.
    """
    device = next(generator.parameters()).device
    conditional = is_conditional(generator.config) and not unconditional
    captioned = conditional and text_condition(generator.config) is not None
    conditions = _conditions(generator, reference, num, device, classes, seed) if conditional else None
    lengths = token_counts(tokenizer.spec, keep or [generator.config.num_tokens])
    # A sample's own class or caption, which the decoder is told too where it wants one.
    used = label_used(tokenizer, generator.config.num_classes if conditional else 0, captioned=captioned)
    job, saved = job or Job(), max(lengths)
    measures = measures or Measures(("labels", "fd"), own_networks(judge, pad), pad)
    guidance = generator_guidance(generator, guidance)
    how = sampling_options(generator, sampler=sampler, steps=steps, temperature=temperature, top_k=top_k, top_p=top_p)
    decoding = decoder_options(
        tokenizer, steps=decoder_steps, guidance=decoder_guidance, solver=decoder_solver, prefix="decoder_"
    )

    def measure(numbers: range) -> dict[str, Tensor]:
        count = len(numbers)
        cond, labels = (None, None) if conditions is None else conditions(numbers.start, count)
        drawing = [noise_of(seed, TOKEN_NOISE, i) for i in numbers]
        with counted(*sampled_networks(generator, guidance)) as evaluations:
            tokens = generator.sample(cond, num=count, guidance=guidance, generator=drawing, **how)
        columns = {} if labels is None else {"labels": labels}
        for k in lengths:
            sources = [noise_of(seed, DECODER_NOISE, i) for i in numbers]
            with counted(tokenizer.decoder) as painting:
                y = tokenizer.decode(tokens, labels_given(used, cond, device), keep=k, generator=sources, **decoding)
            found = measures.features(y)
            if save is not None and k == saved:
                found |= save.columns(y, numbers)
            columns |= {f"{k} {key}": value for key, value in found.items()}
        rows = [evaluations.rows / count, painting.rows / count, tokens.shape[1]]
        return columns | {"rows": torch.tensor(rows, dtype=torch.float64)}

    guided = guidance_text(guidance, over_tokens=not isinstance(generator, SequenceModel))
    note = "by captions of the reference images" if captioned else "" if conditional else "unconditional"
    common: dict[str, Any] = dict(
        num_images=num,
        steps=(decoder_steps or getattr(tokenizer.config, "steps", None)) if decoding else None,
        guidance=guided if decoder_guidance == 1 else f"{guided}, decoder {decoder_guidance:g}",
        seed=seed,
        label=used,
        classes=CLASSES[classes] if conditional and not captioned else None,
        tokenizer=fingerprint(tokenizer),
        **(protocol or {}),
    )
    drawn_by = reference.fingerprint() if reference is not None and (captioned or classes == "train") else ""
    weak = getattr(guidance, "weak_model", None)
    whole = [
        *lengths,
        how,
        decoding.get("solver"),
        *(model_identity(model) for model in (generator, tokenizer, weak) if model is not None),
        drawn_by,
        str(measures),
        str(save),
        note,
    ]
    about = {"kind": "generation", "common": common, "whole": whole, "versions": versions()}
    with job.run(about, num, batch_size, measure, save.begin if save is not None else None) as batches:
        if batches is None:
            return []
        sets = {k: Gathered(measures) for k in lengths}
        with saving(save, num) as keep_image:
            for numbers, columns in batches:
                for k, gathered in sets.items():
                    gathered.update(strip(columns, f"{k} "), numbers, columns.get("labels"))
                keep_image(strip(columns, f"{saved} "), numbers)
        drawing, painting, length = columns["rows"].tolist()
        common["sampler"] = sampling_text(generator, drawing, int(length), **how)
        if decoding:
            common["sampler"] += f"; {decoding['solver']}, {painting:g} evaluations an image"
        compared = references() if callable(references) else references
        if compared is None:
            assert reference is not None, "either images or statistics to compare with"
            compared = measured_set(reference, measures, batch_size)
        records = [
            record_of(number, "generation", measures, compared, keep=k, note=note, **common)
            for k in lengths
            for number in sets[k].numbers(compared)
        ]
        if job.finish is not None:
            job.finish(records)
    return records


def _conditions(
    generator: Any, reference: Any, num: int, device: torch.device, classes: str, seed: int
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """What so many samples from a number on are drawn by, classes or captions, and the classes they should show."""
    told, captions = text_condition(generator.config), getattr(reference, "captions", [])
    if told is None:
        known = getattr(reference, "labels", None)
        known = None if known is None else torch.as_tensor(known)
        labels = drawn_labels(classes, num, generator.config.num_classes, seed=seed, labels=known).to(device)
        return lambda start, count: 2 * (labels[start : start + count],)
    if not any(captions):
        raise InputError("this generator is told captions, the reference images have none; draw it unconditionally")
    embed = CaptionEmbeddings(told, captions)

    def of_images(start: int, count: int) -> tuple[Tensor, Tensor]:
        indices = [i % len(reference) for i in range(start, start + count)]
        _, labels, captions = reference.captioned_batch(indices)
        return embed(captions, device), labels.to(device)

    return of_images


def measured_set(images: ImageSet, measures: Measures, batch_size: int = 250) -> list[Compared]:
    """What the networks make of all images of a set, to compare others with; names on stderr what cannot be read."""
    found = Gathered(measures)
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        x, _ = images.batch(numbers)
        found.update(measures.features(x), numbers)
    report_broken(images)
    replaced = len(replaced_indices(images, range(len(images))))
    return found.compared(f"{len(images)} images {images.fingerprint()}", replaced)

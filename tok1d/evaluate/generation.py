"""Metrics of a generator's samples: label agreement, and distances to reference images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tok1d.config.classes import Classes, agreement, chosen, model_classes, shortened, stated
from tok1d.config.condition import is_conditional, text_condition
from tok1d.data.broken import replaced_indices, report_broken
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes, mapped
from tok1d.data.subset import Subset
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.measures import Compared, Gathered, Measures, Measuring, Number, record_of, strip
from tok1d.evaluate.memorised import Memorisation
from tok1d.evaluate.reference import describe_images
from tok1d.evaluate.request import CLASSES, Samples
from tok1d.evaluate.samples import saving
from tok1d.generators.base import Generator
from tok1d.inference.cache import inputs_fingerprint
from tok1d.inference.captions import caption_reader
from tok1d.inference.conditions import ConditionedImages, Conditioning, conditioning_of
from tok1d.inference.sampling import (
    CLASS_NOISE,
    DECODER_NOISE,
    TOKEN_NOISE,
    counted,
    decoder_options,
    decoding_record,
    guidance_of,
    noise_of,
    sampling_record,
)
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.record import Record, Stated, versions
from tok1d.zoo.store import model_identity
from tok1d.zoo.weights import fingerprint

NUM = 1000  # default number of samples
TEST_NOISE = "test images"  # purpose of random numbers, as those of `sampling`
Conditions = Callable[[range], tuple[Tensor, Tensor]]


def balanced_labels(num: int, num_classes: int) -> Tensor:
    """Class ids (num,) 0, 1, ..., repeated: the numbers of samples of two classes differ by at most one."""
    return torch.arange(num) % num_classes


def sampled_ids(generator: Generator, how: Samples) -> list[int] | None:
    """The ids of the classes that the user named; None for all classes.

    Raises:
        InputError: classes that the generator does not have, or any without class condition.
    """
    if how.classes in CLASSES:
        return None
    classes = model_classes(generator)
    if how.unconditional or not classes.num:
        why = "--unconditional samples without classes" if classes.num else "this generator has no classes"
        raise InputError(f"--classes: {why}; leave it out")
    return chosen(how.classes, classes, "--classes")


def choose_labels(how: str, num: int, num_classes: int, *, seed: int = 0, labels: Tensor | None = None) -> Tensor:
    """Choose class ids (num,) for samples.

    The class of a sample depends only on the seed and the number of the sample.

    Args:
        how: "balanced"; "random": uniform; "train": with the frequencies of `labels`.

    Raises:
        InputError: another `how`, or "train" without labels below `num_classes`.
    """
    if how == "balanced":
        return balanced_labels(num, num_classes)
    if how not in CLASSES:
        raise InputError(f"classes: expected {', '.join(CLASSES)}, got {how!r}")
    numbers = torch.tensor(
        [int(torch.randint(2**62, (), generator=noise_of(seed, CLASS_NOISE, i))) for i in range(num)]
    )
    if how == "random":
        return numbers % num_classes
    if labels is None or not len(labels) or int(labels.max()) >= num_classes:
        raise InputError(f"classes: expected reference images with labels of {num_classes} classes, got others")
    return labels[numbers % len(labels)]


def sample_conditioning(generator: Generator, tokenizer: Tokenizer, how: Samples) -> Conditioning:
    """The condition that the tokenizer receives when it decodes samples of the generator."""
    conditional = is_conditional(generator.config) and not how.unconditional
    captioned = conditional and text_condition(generator.config) is not None
    classes = model_classes(generator) if conditional and not captioned else Classes(0)
    return conditioning_of(tokenizer, classes, captioned=captioned)


def labels_for(generator: Generator, images: ImageSet | None) -> Tensor | None:
    """The labels (N,) of images as the generator's class ids, mapped by name; None for images without labels.

    Raises:
        InputError: images of other classes than the generator's.
    """
    labels = getattr(images, "labels", None)
    if images is None or labels is None:
        return None
    found = agreement(image_classes(images), model_classes(generator))
    if not found.agrees:
        raise InputError(f"{found.said}; expected reference images of the generator's classes for --classes")
    return mapped(torch.as_tensor(labels), found.places)


def images_of(images: ImageSet, generator: Generator, ids: Sequence[int]) -> ImageSet:
    """The images of some classes of a generator.

    Raises:
        InputError: images of other classes, or none of these.
    """
    labels = labels_for(generator, images)
    rows = [] if labels is None else torch.isin(labels, torch.tensor(ids)).nonzero()[:, 0].tolist()
    classes = model_classes(generator)
    names = shortened([classes.name(index) for index in ids], 20)
    if not rows:
        raise InputError(f"--classes: expected reference images of {names}, got none")
    return Subset(images, rows, f"classes {names}")


class Sampler:
    """Samples of a generator, decoded by its tokenizer from different numbers of leading tokens.

    Args:
        reference: images whose captions, or whose class frequencies, are used as conditions.
        how: the number of samples and their settings.
        guidance: replaces the guidance settings of `how`.

    Raises:
        InputError: settings that the generator or the tokenizer does not have, or captions that are missing.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        reference: ImageSet | None,
        how: Samples,
        guidance: Guidance | None = None,
    ) -> None:
        self.generator, self.tokenizer, self.how = generator, tokenizer, how
        self.num = NUM if how.num_samples is None else how.num_samples
        self.device = next(generator.parameters()).device
        sampling = how.sampling
        conditional = is_conditional(generator.config) and not sampling.unconditional
        self.captioned = conditional and text_condition(generator.config) is not None
        self.ids = sampled_ids(generator, how)
        self.conditions = self._conditions(reference) if conditional else None
        self.classes = image_classes(reference) if self.captioned and reference else model_classes(generator)
        self.memorisation: Memorisation | None = None  # where it is measured
        self.keep = token_counts(tokenizer.spec, how.keep or [generator.config.num_tokens])
        self.conditioning = sample_conditioning(generator, tokenizer, how)
        self.settings = sampling.settings
        self.settings.check_read_by(generator.kind, generator.config.name)
        self.guidance = guidance_of(generator, sampling) if guidance is None else guidance
        self.decoder_options = decoder_options(tokenizer, how.decoding, "decoder_")

    def _conditions(self, reference: ImageSet | None) -> Conditions:
        """A function from numbers of samples to their conditions (class ids or captions) and their class ids (B,)."""
        config, device = self.generator.config, self.device
        condition = text_condition(config)
        if condition is None:
            how = self.how
            if self.ids is not None:
                own = torch.tensor(self.ids, device=device)[balanced_labels(self.num, len(self.ids)).to(device)]
                return lambda numbers: 2 * (own[numbers.start : numbers.stop],)
            known = labels_for(self.generator, reference) if how.classes == "train" else None
            labels = choose_labels(how.classes, self.num, config.num_classes, seed=how.seed, labels=known).to(device)
            return lambda numbers: 2 * (labels[numbers.start : numbers.stop],)
        captions = getattr(reference, "captions", [])
        if reference is None or not any(captions):
            raise InputError(
                "this generator is conditioned on captions, the reference images have none; pass --unconditional"
            )
        embed, images = caption_reader(condition, captions), reference

        def of_images(numbers: range) -> tuple[Tensor, Tensor]:
            _, labels, captions = images.captioned_batch([i % len(images) for i in numbers])
            return embed(captions, device), labels.to(device)

        return of_images

    def columns(self, numbers: range, measuring: Measuring) -> dict[str, Tensor]:
        """Generate the samples of these numbers; return their labels, features and numbers of network evaluations."""
        count, how = len(numbers), self.how
        cond, labels = (None, None) if self.conditions is None else self.conditions(numbers)
        with counted(*self.generator.evaluated_networks(self.guidance)) as sampling:
            tokens, lengths = self.generator.sample_ragged(
                cond,
                num=count,
                guidance=self.guidance,
                generator=[noise_of(how.seed, TOKEN_NOISE, i) for i in numbers],
                settings=self.settings,
            )
        columns = {} if labels is None else {"labels": labels}
        for k in self.keep:
            noise = [noise_of(how.seed, DECODER_NOISE, i) for i in numbers]
            decoder_cond = self.conditioning.of(cond, self.device)
            with counted(self.tokenizer.decoder) as decoding:
                kept = k if lengths is None else lengths.clamp(max=k)
                y = self.tokenizer.decode(tokens, decoder_cond, keep=kept, generator=noise, **self.decoder_options)
            found = measuring.columns(y, numbers, last=k == max(self.keep))
            columns |= {f"{k} {key}": value for key, value in found.items()}
            if self.memorisation is not None and not self.memorisation.missing:
                columns[f"{k} nearest"] = self.memorisation.training.nearest(y)[0]
        rows = [sampling.rows / count, decoding.rows / count, tokens.shape[1]]
        return columns | {"rows": torch.tensor(rows, dtype=torch.float64)}

    def reconstruct(self, images: ImageSet, numbers: range, keep: int) -> Tensor:
        """Reconstructions (B, C, H, W) of images of these numbers from as many tokens as samples."""
        x, _, cond = ConditionedImages(self.tokenizer, images).batch(numbers)
        noise = [noise_of(self.how.seed, TEST_NOISE, i) for i in numbers]
        tokens = self.tokenizer.encode(x.to(self.device), cond)
        return self.tokenizer.decode(tokens, cond, keep=keep, generator=noise, **self.decoder_options)

    @property
    def classes_text(self) -> str | None:
        """How the classes of the samples were chosen, for records."""
        if self.conditions is None or self.captioned:
            return None
        if self.ids is None:
            return CLASSES[self.how.classes]
        return f"balanced over {shortened([self.classes.name(index) for index in self.ids], 20)}"

    @property
    def note(self) -> str:
        """The note of a record about the conditions."""
        if self.captioned:
            return "by captions of the reference images"
        return "unconditional" if self.conditions is None else ""

    def stated(self) -> Stated:
        """The fields of a record that are known before the first sample."""
        return {
            "num_images": self.num,
            "seed": self.how.seed,
            "label": self.conditioning.label,
            "classes": self.classes_text,
            "class_names": None if self.conditions is None else stated(self.classes.names),
            "tokenizer": fingerprint(self.tokenizer),
        }

    def settings_of(self, rows: list[float]) -> Stated:
        """The sampling and decoding settings of a record.

        Args:
            rows: evaluations of the generator and of the decoder per image, and number of tokens, from `columns`.
        """
        sampled, decoded, length = rows
        return {
            "sampling": sampling_record(self.generator, self.settings, self.guidance, sampled, int(length)),
            "decoding": decoding_record(self.tokenizer, self.decoder_options, decoded),
        }


@torch.no_grad()
def evaluate_generation(
    generator: Generator,
    tokenizer: Tokenizer,
    reference: ImageSet | None,
    how: Samples,
    measuring: Measuring,
    *,
    guidance: Guidance | None = None,
    memorisation: Memorisation | None = None,
) -> list[Record]:
    """Metrics of samples: label agreement, their Frechet distance to reference images, and more.

    A generator that reads captions is conditioned on the captions of the reference images, in their order; label
    agreement then compares with the classes of these images. An unconditional model has no label agreement.

    Args:
        reference: images to compare with; None if `measuring` has references and no captions are needed.
        how: the number of samples and their settings.
        measuring: the metrics and the job.
        guidance: replaces the guidance settings of `how`, for example with a weak model in memory.
        memorisation: the training images for the metric "memorised", which is left out without them.

    Returns:
        The records; an empty list if other processes have not finished their part.

    Raises:
        InputError: settings that the generator or the tokenizer does not have, or captions that are missing.
    """
    sampler = Sampler(generator, tokenizer, reference, how, guidance)
    num, measures, save = sampler.num, measuring.measures, measuring.save
    sampler.memorisation = memorisation if "memorised" in measures.metrics else None
    common: Stated = {**sampler.stated(), **measuring.protocol}
    inputs = [*_inputs(sampler, reference), str(measures), str(save), sampler.note]
    about = {"kind": "generation", "common": common, "whole": inputs, "versions": versions()}
    batches_of = measuring.batches(about, num, how.batch_size, lambda numbers: sampler.columns(numbers, measuring))
    with batches_of as batches:
        if batches is None:
            return []
        sets = {k: Gathered(measures, sampler.classes) for k in sampler.keep}
        distances: dict[int, list[Tensor]] = {k: [] for k in sets}
        with saving(save, num) as keep_image:
            for numbers, columns in batches:
                for k, gathered in sets.items():
                    gathered.update(strip(columns, f"{k} "), numbers, columns.get("labels"))
                    distances[k] += [columns[key] for key in (f"{k} nearest",) if key in columns]
                keep_image(strip(columns, f"{max(sets)} "), numbers)
        common |= sampler.settings_of(columns["rows"].tolist())
        compared = _compared(measuring, reference, how.batch_size)
        return measuring.finish(
            [
                record_of(number, "generation", measures, compared, keep=k, note=sampler.note, **common)
                for k, gathered in sets.items()
                for number in (*gathered.numbers(compared), *_memorised(sampler, k, distances[k]))
            ]
        )


def _memorised(sampler: Sampler, keep: int, distances: Sequence[Tensor]) -> list[Number]:
    """The metric "memorised" of samples of `keep` tokens; an empty list if it is not measured."""
    if sampler.memorisation is None:
        return []
    return [sampler.memorisation.number(distances, lambda images, numbers: sampler.reconstruct(images, numbers, keep))]


def _compared(measuring: Measuring, reference: ImageSet | None, batch_size: int) -> Sequence[Compared]:
    """The references of `measuring`; by default the statistics of the reference images."""
    found = measuring.references() if callable(measuring.references) else measuring.references
    if found is None:
        assert reference is not None, "expected images or statistics to compare with"
        found = measured_set(reference, measuring.measures, batch_size)
    return found


def _inputs(sampler: Sampler, reference: ImageSet | None) -> list[object]:
    """What the results depend on besides seed and number: settings, weights, and images that are read."""
    models = [sampler.generator, sampler.tokenizer, sampler.guidance.weak_model]
    read = reference is not None and (sampler.captioned or sampler.how.classes == "train")
    guidance, memory = replace(sampler.guidance, weak_model=None), sampler.memorisation
    return [
        *sampler.keep,
        sampler.settings.given(),
        str(guidance),
        {key: str(value) for key, value in sampler.decoder_options.items()},
        *(model_identity(model) for model in models if model is not None),
        inputs_fingerprint(reference) if read and reference is not None else "",
        *([] if memory is None or memory.missing else [memory.images.fingerprint()]),
    ]


def measured_set(images: ImageSet, measures: Measures, batch_size: int = 250) -> list[Compared]:
    """The statistics of a set of images as a reference, for each network; unreadable images are named on stderr."""
    found = Gathered(measures)
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        x, _ = images.batch(numbers)
        found.update(measures.features(x), numbers)
    report_broken(images)
    replaced = len(replaced_indices(images, range(len(images))))
    return found.compared(describe_images(images), replaced)

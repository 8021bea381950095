"""Metrics of a tokenizer's reconstructions, from all tokens and from leading tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from tok1d.config.budget import Budgeting
from tok1d.config.classes import stated
from tok1d.data.broken import replaced_indices, replaced_text, report_broken
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.data.transforms import without_border
from tok1d.evaluate.measures import BUNDLED_CLASSIFIER, Gathered, Measuring, record_of, strip
from tok1d.evaluate.metrics import Moments, accuracy, frechet_distance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reference import describe_images, split_of
from tok1d.evaluate.request import Kind, Reconstructions
from tok1d.evaluate.samples import saving
from tok1d.inference.budget import budget
from tok1d.inference.cache import inputs_fingerprint
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, counted, decoder_options, decoding_record, noise_of
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.record import Record, Stated, versions
from tok1d.zoo.store import model_identity
from tok1d.zoo.weights import fingerprint


class Classified:
    """Statistics of a classifier over batches of images: moments of its features, and label agreement.

    Args:
        pad: width of the images' border, in pixels, that is cut off first.
    """

    def __init__(self, classifier: CNN, pad: int = 0) -> None:
        self.classifier, self.pad = classifier, pad
        self.moments: Moments | None = None
        self.num_correct = 0.0
        self.count = 0

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Add images (B, C, H, W) in [0, 1] and, for label agreement, their class ids (B,)."""
        images = without_border(images, self.pad)
        features = self.classifier.features(images)
        if self.moments is None:
            self.moments = Moments(features.shape[1])
        self.moments.update(features)
        if labels is not None:
            self.num_correct += float(accuracy(self.classifier(images), labels)) * images.shape[0]
        self.count += images.shape[0]

    @property
    def agreement(self) -> float:
        """Share of the images that the classifier assigns to their class."""
        return self.num_correct / max(self.count, 1)

    def distance(self, other: Classified) -> float:
        """Fréchet distance between the classifier's features of two sets of images."""
        assert self.moments is not None and other.moments is not None
        return frechet_distance(self.moments, other.moments)


KIND: Kind = "reconstruction"
BUDGET = "budget"  # in place of a number of tokens: as many as each image needs


class Tokens(TypedDict, total=False):
    """The fields of a record that say how many tokens were decoded."""

    keep: int
    budget: dict[str, object]


class Reconstructor:
    """Encodes images of a set and decodes them from different numbers of leading tokens.

    Args:
        budgeting: with a quality, also from as many tokens as each image needs; without `how.keep` only so.

    Raises:
        InputError: numbers of tokens, decoder settings or a condition that the tokenizer does not have.
    """

    def __init__(
        self, tokenizer: Tokenizer, images: ImageSet, how: Reconstructions, budgeting: Budgeting | None = None
    ) -> None:
        self.tokenizer, self.images, self.how = tokenizer, images, how
        self.budgeting = Budgeting() if budgeting is None else budgeting
        self.device = next(tokenizer.parameters()).device
        budgeted = self.budgeting.quality is not None
        self.keep = token_counts(tokenizer.spec, how.keep) if how.keep or not budgeted else []
        self.rows = [*map(str, self.keep), *([BUDGET] if budgeted else [])]
        self.last = str(max(self.keep)) if self.keep else BUDGET  # of the images that are saved
        self.decoder_options = decoder_options(tokenizer, how.decoding)
        self.conditioned = ConditionedImages(tokenizer, images, how.label)

    def columns(self, numbers: range, measuring: Measuring) -> dict[str, Tensor]:
        """Reconstruct the images of these numbers; return their labels, metrics and numbers of decoder evaluations."""
        measures = measuring.measures
        x, labels, cond = self.conditioned.batch(numbers)
        x = x.to(self.device)
        tokens = self.tokenizer.encode(x, cond)
        originals = measures.features(x)
        columns = {"labels": labels} | {f"real {key}": value for key, value in originals.items()}
        for row in self.rows:
            with counted(self.tokenizer.decoder) as evaluations:
                y, counts = self._decoded(row, x, tokens, cond, numbers)
            found = measures.pairs(y, x) | measuring.columns(y, numbers, last=row == self.last)
            found |= measures.agreements(found, originals)
            columns |= {f"{row} {key}": value for key, value in found.items()}
            if counts is not None:
                columns["counts"] = counts
            decoded = len(x) * (1 if counts is None else self._decodings)
        columns["evaluations"] = torch.tensor(evaluations.rows / decoded)
        # Stored in the block, as a process that resumes the job does not read these images again.
        return columns | {"replaced": torch.tensor(len(replaced_indices(self.images, numbers)))}

    @property
    def _decodings(self) -> int:
        """How often an image is decoded for its budget: all prefixes, or all tokens and the chosen ones."""
        return self.tokenizer.spec.length if self.budgeting.quality_by == "search" else 2

    def _decoded(
        self, row: str, x: Tensor, tokens: Tensor, cond: Tensor | None, numbers: range
    ) -> tuple[Tensor, Tensor | None]:
        """The images of a row of the table, and with a budget the numbers of tokens."""
        if row != BUDGET:
            noise = [noise_of(self.how.seed, DECODER_NOISE, i) for i in numbers]
            return self.tokenizer.decode(tokens, cond, keep=int(row), generator=noise, **self.decoder_options), None
        how, options = self.budgeting, self.decoder_options
        assert how.quality is not None, "rows have a budget only with a quality"
        metric, by = how.quality_metric, how.quality_by
        found = budget(
            self.tokenizer,
            x,
            cond,
            quality=how.quality,
            metric=metric,
            by=by,
            numbers=numbers,
            seed=self.how.seed,
            options=options,
        )
        return found.images, found.keep

    def stated(self) -> Stated:
        """What all records share, but for the model's protocol and what is known at the end."""
        return {
            "num_images": len(self.images),
            "label": self.conditioned.conditioning.label,
            "class_names": stated(image_classes(self.images).names),
            "seed": self.how.seed,
        }

    def tokens_of(self, row: str, counts: float) -> Tokens:
        """The fields of the records of a row; `counts` is the sum of the numbers of tokens of all images."""
        if row != BUDGET:
            return {} if row == "real" else {"keep": int(row)}
        how = self.budgeting
        quality = how.quality if how.quality != math.inf else "inf"  # strict JSON has no infinity
        about = {"quality": quality, "metric": how.quality_metric, "by": how.quality_by}
        return {"budget": {"tokens": counts / len(self.images), **about}}


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Tokenizer,
    images: ImageSet,
    how: Reconstructions,
    measuring: Measuring,
    budgeting: Budgeting | None = None,
) -> list[Record]:
    """Metrics of reconstructions for each number of tokens: PSNR and other metrics of pairs, and distances of features.

    PSNR is the mean of the values of all images in dB, with outputs clamped to [0, 1]. The noise of a diffusion decoder
    depends only on the seed and the number of the image, and is the same for all numbers of tokens. The note states how
    many images could not be read and were replaced by others; these are named on stderr.

    Args:
        how: the numbers of tokens, and how they are decoded.
        measuring: the metrics and the job.
        budgeting: with a quality, also from as many tokens as each image needs.

    Returns:
        The records; an empty list if other processes have not finished their part.

    Raises:
        InputError: numbers of tokens, decoder settings or a condition that the tokenizer does not have.
    """
    reconstructor = Reconstructor(tokenizer, images, how, budgeting)
    measures, save = measuring.measures, measuring.save
    common: Stated = {**reconstructor.stated(), **measuring.protocol}
    inputs = [*_inputs(reconstructor), str(measures), str(save)]
    about = {"kind": KIND, "common": common, "whole": inputs, "versions": versions()}
    batches_of = measuring.batches(
        about, len(images), how.batch_size, lambda rows: reconstructor.columns(rows, measuring)
    )
    with batches_of as batches:
        if batches is None:
            report_broken(images)
            return []
        sets = {row: Gathered(measures, image_classes(images)) for row in ("real", *reconstructor.rows)}
        replaced, counts = 0, 0.0
        with saving(save, len(images)) as keep_image:
            for numbers, columns in batches:
                for row, gathered in sets.items():
                    gathered.update(strip(columns, f"{row} "), numbers, columns["labels"])
                keep_image(strip(columns, f"{reconstructor.last} "), numbers)
                counts += float(columns["counts"].sum()) if "counts" in columns else 0.0
                replaced += int(columns.get("replaced", 0))  # blocks of older versions do not have it
        report_broken(images)
        common["decoding"] = decoding_record(tokenizer, reconstructor.decoder_options, columns["evaluations"].item())
        common["reference"] = reference = describe_images(images, measuring.of or split_of(images))
        assert not callable(measuring.references), "expected references, not a function"
        compared = measuring.references or sets["real"].compared(reference)
        note = replaced_text(replaced)
        rows = [(row, sets[row].numbers(compared)) for row in reconstructor.rows]
        rows += [("real", (replace(each, note="the test images themselves") for each in sets["real"].agreement()))]
        return measuring.finish(
            [
                record_of(each, KIND, measures, compared, note=note, **common, **reconstructor.tokens_of(row, counts))
                for row, numbers in rows
                for each in numbers
            ]
        )


def _inputs(reconstructor: Reconstructor) -> list[object]:
    """What reconstructions depend on: numbers of tokens, decoding, images with their captions, and weights.

    Without a budget as in older versions, so that their unfinished evaluations resume.
    """
    options = {key: str(value) for key, value in reconstructor.decoder_options.items()}
    images, tokenizer = inputs_fingerprint(reconstructor.images), model_identity(reconstructor.tokenizer)
    how = reconstructor.budgeting
    budgeted = [] if how.quality is None else [str(how)]
    return [*reconstructor.keep, *budgeted, options, images, tokenizer]


def classifier_name(classifier: CNN) -> str:
    """name@hash of a classifier, for records."""
    return f"{getattr(classifier, 'label', BUNDLED_CLASSIFIER)}@{fingerprint(classifier)}"

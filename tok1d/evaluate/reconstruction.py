"""How good a tokenizer's reconstructions are, from all of its tokens and from the first ones."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tok1d.data.broken import replaced_indices, replaced_text, report_broken
from tok1d.data.images import ImageSet
from tok1d.data.transforms import without_border
from tok1d.evaluate.measures import BUNDLED_CLASSIFIER, Gathered, Measuring, record_of, strip
from tok1d.evaluate.metrics import Moments, accuracy, frechet_distance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reference import describe_images, split_of
from tok1d.evaluate.request import Reconstructions
from tok1d.evaluate.samples import saving
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, counted, decoder_options, decoding_record, noise_of
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.record import Record, Stated, versions
from tok1d.zoo.store import model_identity
from tok1d.zoo.weights import fingerprint


class Classified:
    """Features of a classifier, gathered over batches: moments for the Frechet distance, and label agreement.

    Args:
        pad: width of the images' border, in pixels, that is cut off first.
    """

    def __init__(self, classifier: CNN, pad: int = 0) -> None:
        self.classifier, self.pad = classifier, pad
        self.moments: Moments | None = None
        self.right = 0.0
        self.count = 0

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Images (B, C, H, W) in [0, 1]; labels (B,) the classes they should show."""
        images = without_border(images, self.pad)
        features = self.classifier.features(images)
        if self.moments is None:
            self.moments = Moments(features.shape[1])
        self.moments.update(features)
        if labels is not None:
            self.right += float(accuracy(self.classifier(images), labels)) * images.shape[0]
        self.count += images.shape[0]

    @property
    def agreement(self) -> float:
        """Share of images that the classifier assigns to their class."""
        return self.right / max(self.count, 1)

    def distance(self, other: Classified) -> float:
        """Fréchet distance between two sets of images in the classifier's features."""
        assert self.moments is not None and other.moments is not None
        return frechet_distance(self.moments, other.moments)


class Reconstructor:
    """Images of a set, encoded and decoded from several numbers of their first tokens.

    Raises:
        InputError: token counts, decoder settings or a condition that the tokenizer does not have.
    """

    def __init__(self, tokenizer: Tokenizer, images: ImageSet, how: Reconstructions) -> None:
        self.tokenizer, self.images, self.how = tokenizer, images, how
        self.device = next(tokenizer.parameters()).device
        self.keep = token_counts(tokenizer.spec, how.keep)
        self.decoder_options = decoder_options(tokenizer, how.decoding)
        self.conditioned = ConditionedImages(tokenizer, images, how.label)

    def columns(self, numbers: range, measuring: Measuring) -> dict[str, Tensor]:
        """What is measured of the images of these numbers: labels, metrics of each number of tokens, evaluations."""
        measures = measuring.measures
        x, labels, cond = self.conditioned.batch(numbers)
        x = x.to(self.device)
        tokens = self.tokenizer.encode(x, cond)
        columns = {"labels": labels} | {f"real {key}": value for key, value in measures.features(x).items()}
        for k in self.keep:
            noise = [noise_of(self.how.seed, DECODER_NOISE, i) for i in numbers]
            with counted(self.tokenizer.decoder) as evaluations:
                y = self.tokenizer.decode(tokens, cond, keep=k, generator=noise, **self.decoder_options)
            found = measures.pairs(y, x) | measuring.columns(y, numbers, last=k == max(self.keep))
            columns |= {f"{k} {key}": value for key, value in found.items()}
        columns["evaluations"] = torch.tensor(evaluations.rows / len(x))
        # Kept with the block: the process that resumes may be able to read all images.
        return columns | {"replaced": torch.tensor(len(replaced_indices(self.images, numbers)))}


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Tokenizer, images: ImageSet, how: Reconstructions, measuring: Measuring
) -> list[Record]:
    """PSNR, squared error and more of reconstructions, and distances by feature networks, for each number of tokens.

    PSNR is the mean over images of the per-image value in dB, output clamped to [0, 1]. All token counts of an image
    use the same noise, which depends on the seed and the number of the image alone. The note says how many images
    could not be read and were replaced by others; these are named on stderr.

    Args:
        how: which token counts, and how they are decoded.
        measuring: the metrics, and how the work is done.

    Returns:
        The records; none where other processes have not finished their part.

    Raises:
        InputError: token counts, decoder settings or a condition that the tokenizer does not have.
    """
    made, measures, save = Reconstructor(tokenizer, images, how), measuring.measures, measuring.save
    common: Stated = {
        "num_images": len(images),
        "label": made.conditioned.condition,
        "seed": how.seed,
        **measuring.protocol,
    }
    options = {key: str(value) for key, value in made.decoder_options.items()}
    whole = [*made.keep, options, images.fingerprint(), model_identity(tokenizer), str(measures), str(save)]
    about = {"kind": "reconstruction", "common": common, "whole": whole, "versions": versions()}
    batches_of = measuring.batches(about, len(images), how.batch_size, lambda rows: made.columns(rows, measuring))
    with batches_of as batches:
        if batches is None:
            report_broken(images)
            return []
        sets, replaced = {k: Gathered(measures) for k in ("real", *made.keep)}, 0
        with saving(save, len(images)) as keep_image:
            for numbers, columns in batches:
                for k, gathered in sets.items():
                    gathered.update(strip(columns, f"{k} "), numbers, columns["labels"])
                keep_image(strip(columns, f"{max(made.keep)} "), numbers)
                replaced += int(columns.get("replaced", 0))  # blocks of older versions lack it
        report_broken(images)
        common["decoding"] = decoding_record(tokenizer, made.decoder_options, columns["evaluations"].item())
        common["reference"] = reference = describe_images(images, measuring.of or split_of(images))
        assert not callable(measuring.references), "of reconstructions the references are opened before"
        compared = measuring.references or sets["real"].compared(reference)
        note = replaced_text(replaced)
        records = [
            record_of(number, "reconstruction", measures, compared, keep=k, note=note, **common)
            for k in made.keep
            for number in sets[k].numbers(compared)
        ]
        originals = (replace(number, note="the test images themselves") for number in sets["real"].agreement())
        records += [record_of(each, "reconstruction", measures, compared, note=note, **common) for each in originals]
        return measuring.finish(records)


def classifier_name(classifier: CNN) -> str:
    """name@hash of a classifier, for records."""
    return f"{getattr(classifier, 'label', BUNDLED_CLASSIFIER)}@{fingerprint(classifier)}"

"""How well a tokenizer gives images back, from all of its tokens and from prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tok1d.data.broken import replaced_indices, replaced_text, report_broken
from tok1d.data.images import ImageSet
from tok1d.data.transforms import without_border
from tok1d.diffusion.guidance import Guidance
from tok1d.evaluate.job import Job
from tok1d.evaluate.measures import Compared, Gathered, Measures, own_networks, record_of, strip
from tok1d.evaluate.metrics import Moments, accuracy, frechet_distance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reference import images_told, split_of
from tok1d.evaluate.samples import Save, saving
from tok1d.inference.labels import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, counted, decoder_options, guidance_text, noise_of
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.record import Record, versions
from tok1d.zoo.store import model_identity
from tok1d.zoo.weights import fingerprint


class Judged:
    """Features of a judge network, gathered over batches: Fréchet moments and label agreement.

    Args:
        pad: width of the images' border, in pixels, that the judge does not see.
    """

    def __init__(self, judge: CNN, pad: int = 0) -> None:
        self.judge, self.pad = judge, pad
        self.moments: Moments | None = None
        self.right = 0.0
        self.count = 0

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Images (B, C, H, W) in [0, 1]; labels (B,) the classes they should show."""
        images = without_border(images, self.pad)
        features = self.judge.features(images)
        if self.moments is None:
            self.moments = Moments(features.shape[1])
        self.moments.update(features)
        if labels is not None:
            self.right += float(accuracy(self.judge(images), labels)) * images.shape[0]
        self.count += images.shape[0]

    @property
    def agreement(self) -> float:
        """Share of images that the judge puts into their class."""
        return self.right / max(self.count, 1)

    def distance(self, other: Judged) -> float:
        """Fréchet distance between two sets of images in the judge's features."""
        assert self.moments is not None and other.moments is not None
        return frechet_distance(self.moments, other.moments)


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Any,
    images: ImageSet,
    *,
    keep: Sequence[int] = (),
    steps: int | None = None,
    guidance: float | Guidance = 1.0,
    solver: str | None = None,
    batch_size: int = 100,
    seed: int = 0,
    judge: CNN | None = None,
    pad: int = 0,
    label: str | None = None,
    of: str = "",
    protocol: dict[str, Any] | None = None,
    measures: Measures | None = None,
    references: Sequence[Compared] | None = None,
    job: Job | None = None,
    save: Save | None = None,
) -> list[Record]:
    """PSNR, squared error and more per prefix length, and what feature networks say of the reconstructions.

    PSNR is the mean over images of the per-image value in dB, output clamped to [0, 1]. All prefix lengths of
    an image start from the same noise, which belongs to (seed, number of the image). The sampler is recorded with the
    number of network evaluations an image took; the note says how many images could not be read and were replaced by
    others, which are named on stderr.

    Args:
        keep: prefix lengths (default: those of `token_counts`).
        solver: of a diffusion decoder (default: its own).
        judge: measures its accuracy and the Fréchet distance, unless `measures` are given.
        pad: width of the images' border, in pixels, that nothing of this measures.
        label: of a tokenizer that wants one, "true" or "null"; default: see `label_used`.
        of: which images these are, of `reference.OF`; default: see `split_of`.
        protocol: what every record states besides (weights, weights_hash, ...).
        measures: which metrics by which networks (default: PSNR and squared error, and the judge's).
        references: one a network of `measures`; default: the very images.
        job: how it is shared and resumed (default: at once, in this process).
        save: writes the reconstructions from the most tokens.

    Returns:
        The records; none where other processes have not finished their part.

    Raises:
        InputError: prefixes, steps, guidance, a solver or labels that the tokenizer does not have.
    """
    device = next(tokenizer.parameters()).device
    lengths = token_counts(tokenizer.spec, keep)
    options = decoder_options(tokenizer, steps=steps, guidance=guidance, solver=solver)
    told, job, saved = ConditionedImages(tokenizer, images, label), job or Job(), max(lengths)
    measures = measures or Measures(networks=own_networks(judge, pad), pad=pad)

    def measure(numbers: range) -> dict[str, Tensor]:
        x, labels, cond = told.batch(numbers)
        x = x.to(device)
        tokens = tokenizer.encode(x, cond)
        columns = {"labels": labels} | {f"real {key}": value for key, value in measures.features(x).items()}
        for k in lengths:
            sources = [noise_of(seed, DECODER_NOISE, i) for i in numbers]
            with counted(tokenizer.decoder) as evaluations:
                y = tokenizer.decode(tokens, cond, keep=k, generator=sources, **options)
            found = measures.pairs(y, x) | measures.features(y)
            if save is not None and k == saved:
                found |= save.columns(y, numbers)
            columns |= {f"{k} {key}": value for key, value in found.items()}
        columns["evaluations"] = torch.tensor(evaluations.rows / len(x))
        # Kept with the block: whoever goes on with it may be able to read all of them.
        return columns | {"replaced": torch.tensor(len(replaced_indices(images, numbers)))}

    common: dict[str, Any] = dict(
        num_images=len(images),
        steps=(steps or getattr(tokenizer.config, "steps", None)) if options else None,
        guidance=guidance_text(guidance) if options else None,
        label=told.used,
        seed=seed,
        **(protocol or {}),
    )
    whole = [*lengths, options.get("solver"), images.fingerprint(), model_identity(tokenizer), str(measures), str(save)]
    about = {"kind": "reconstruction", "common": common, "whole": whole, "versions": versions()}
    with job.run(about, len(images), batch_size, measure, save.begin if save is not None else None) as batches:
        if batches is None:
            report_broken(images)
            return []
        sets, replaced = {k: Gathered(measures) for k in ("real", *lengths)}, 0
        with saving(save, len(images)) as keep_image:
            for numbers, columns in batches:
                for k, gathered in sets.items():
                    gathered.update(strip(columns, f"{k} "), numbers, columns["labels"])
                keep_image(strip(columns, f"{saved} "), numbers)
                replaced += int(columns.get("replaced", 0))  # blocks of older versions lack it
        report_broken(images)
        if options:
            common["sampler"] = f"{options['solver']}, {columns['evaluations'].item():g} evaluations an image"
        common["reference"] = told_of = images_told(images, of or split_of(images))
        compared = references or sets["real"].compared(told_of)
        records = [
            record_of(number, "reconstruction", measures, compared, keep=k, note=replaced_text(replaced), **common)
            for k in lengths
            for number in sets[k].numbers(compared)
        ]
        for number in sets["real"].agreement():
            number = replace(number, note="the test images themselves")
            note = replaced_text(replaced)
            records.append(record_of(number, "reconstruction", measures, compared, note=note, **common))
        if job.finish is not None:
            job.finish(records)
    return records


def judge_name(judge: Any) -> str:
    """name@hash of a judge network, for records."""
    return f"{getattr(judge, 'label', 'fashion-mnist-cnn')}@{fingerprint(judge)}"

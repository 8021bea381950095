"""Writes reconstructions and samples of trained models as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tok1d.config.options import check_counts
from tok1d.data.broken import replaced_images, replaced_indices
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import DataError
from tok1d.files import clear
from tok1d.generators.base import Generator
from tok1d.images.overview import labelled_grid
from tok1d.inference.budget import Budget, budget, check_budgeting
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.draw import Drawing
from tok1d.inference.nearest import Training
from tok1d.inference.request import ReconstructionPictures, SamplePictures
from tok1d.inference.sampling import DECODER_NOISE, decoder_options, noise_of
from tok1d.inference.search import Checked
from tok1d.losses.pixel import psnr_per_image
from tok1d.pictures import save_png, to_pil
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts


@torch.no_grad()
def reconstruct(
    tokenizer: Tokenizer, images: ImageSet, out: Path, how: ReconstructionPictures
) -> tuple[dict[int, float], Budget | None]:
    """Write a PNG file of each reconstruction, and overview.png: the originals, then a row for each number of tokens.

    With `how.quality` the last row is decoded from as many tokens as each image needs, and is the only one without
    `how.keep`. Reconstructions have the size of the images. Images that cannot be read are left out.

    Returns:
        Mean PSNR in dB for each number of tokens, and with `how.quality` the numbers of tokens of the images.

    Raises:
        InputError: numbers of tokens, decoder settings or a condition that the tokenizer does not have.
        DataError: none of the images can be read.
    """
    check_budgeting(tokenizer, how.budgeting)
    keep = token_counts(tokenizer.spec, check_counts(list(how.keep), "--keep", 0, tokenizer.spec.length))
    keep = [] if how.quality is not None and not how.keep else keep
    options = decoder_options(tokenizer, how.decoding, "--")
    device = next(tokenizer.parameters()).device
    x, cond = _readable(tokenizer, subset(images, how.num), how.label)
    x = x.to(device)
    tokens = tokenizer.encode(x, cond)
    if x.shape[-2:] != (tokenizer.config.image_size,) * 2:
        options["size"] = (x.shape[-2], x.shape[-1])
    rows: list[Tensor] = [x]
    for k in keep:
        noise = [noise_of(how.seed, DECODER_NOISE, i) for i in range(len(x))]
        rows.append(tokenizer.decode(tokens, cond, keep=k, generator=noise, **options))
    names, labels = ["original", *(f"keep{k:03d}" for k in keep)], ["original", *(_tokens(k) for k in keep)]
    found = None
    if how.quality is not None:
        metric, by = how.quality_metric, how.quality_by
        found = budget(tokenizer, x, cond, quality=how.quality, metric=metric, by=by, seed=how.seed, options=options)
        rows.append(found.images)
        names.append("quality")
        labels.append(f"{how.quality:g} dB, {found.mean:.1f} tokens")
    clear(out, r"image\d+_(keep\d+|original|quality)\.png|overview\.png")
    for name, row in zip(names, rows, strict=True):
        for i, image in enumerate(row):
            save_png(to_pil(image), out / f"image{i:03d}_{name}.png")
    save_png(labelled_grid(torch.cat(rows), len(x), labels), out / "overview.png")
    return {k: float(psnr_per_image(row, x).mean()) for k, row in zip(keep, rows[1:])}, found


def _tokens(count: int) -> str:
    """The label of a row of images from so many tokens."""
    return f"{count} token{'s' * (count != 1)}"


def _readable(tokenizer: Tokenizer, images: ImageSet, label: str | None) -> tuple[Tensor, Tensor | None]:
    """The images (B, C, H, W) that can be read, and their conditions."""
    x, _, cond = ConditionedImages(tokenizer, images, label).batch(range(len(images)))
    replaced = replaced_indices(images, range(len(images)))
    if not replaced:
        return x, cond
    kept = torch.tensor([i for i in range(len(x)) if i not in replaced])
    if not len(kept):
        name, why = replaced_images(images)[0]
        raise DataError(f"{name}: {why}; none of the other chosen images can be read either")
    return x[kept], None if cond is None else cond[kept.to(cond.device)]


def judged(judge: Checked, samples: Drawing, found: Tensor, plain: Tensor) -> str:
    """One line: the scores of samples of a search and of samples without it, by a judge that the search did not see."""
    labels = [samples.label(key) for key in samples.keys]
    means = [float(judge(images, labels).mean()) for images in (found, plain)]
    line = f"judge {judge.name}: {judge.unit} {means[0]:.4g}, without search {means[1]:.4g}"
    if (hits := getattr(judge.function, "hits", None)) is None:
        return line
    shares = [float(hits(images, labels).float().mean()) for images in (found, plain)]
    return f"{line}; the class is the most likely one of {shares[0]:.1%}, without search {shares[1]:.1%}"


@torch.no_grad()
def generate(
    generator: Generator,
    tokenizer: Tokenizer,
    out: Path,
    how: SamplePictures,
    *,
    guidance: Guidance | None = None,
    training: Training | None = None,
    opened: Callable[[str, Drawing, str], Checked] | None = None,
) -> list[Path]:
    """Write a PNG file of each sample, and overview.png with all samples.

    Args:
        training: the training images; nearest.png then shows the nearest one of each sample.
        guidance: replaces the guidance settings of `how`, for example with a weak model in memory.
        opened: opens the verifier and the judge of a search from their texts, see `evaluate.verifiers.open_verifier`.

    Returns:
        The paths of overview.png and, with `how.decode_keep`, of progressive.png, with `training` of nearest.png.

    Raises:
        InputError: settings, classes or captions that the generator or the tokenizer does not have.
    """
    samples, judge = Drawing(generator, tokenizer, how, guidance), None
    if opened is not None and samples.plan is not None:
        samples.use(opened(how.verifier, samples, "--verifier"))
    if opened is not None and how.judge:
        judge = opened(how.judge, samples, "--judge")
    samples.conditioning.say()
    keys = samples.keys
    _, images = samples.draw(how.batch_size)
    sampled = images[samples.length]
    if samples.search is not None:
        print(samples.search.said())
    if judge is not None:
        no_search = replace(how, search="", search_candidates=None, search_every=1, verifier="", judge="")
        plain = Drawing(generator, tokenizer, replace(no_search, decode_keep=""), guidance)
        print(judged(judge, samples, sampled, plain.draw(how.batch_size)[1][plain.length]))
    clear(out, r"(class\d+_|image(\d+_)?)\d+\.png|(overview|progressive|nearest)\.png")
    for i, image in enumerate(sampled):
        save_png(to_pil(image), out / samples.name(keys[i], i))
    found = [samples.label(key) for key in keys[:: how.num]]
    named = ["" if label is None else str(label) for label in found]
    written = [save_png(labelled_grid(sampled, how.num, named), out / "overview.png")]
    if samples.prefixes:
        rows = torch.cat([images[k] for k in samples.prefixes])
        labels = [_tokens(k) for k in samples.prefixes]
        written.append(save_png(labelled_grid(rows, len(keys), labels), out / "progressive.png"))
    if training is not None:
        near = training.images.batch(training.nearest(sampled)[1].tolist())[0]
        parts = [part for both in zip(sampled.split(how.num), near.split(how.num)) for part in both]
        labels = [label for name in named for label in (name, "nearest training images")]
        written.append(save_png(labelled_grid(torch.cat(parts), how.num, labels), out / "nearest.png"))
    return written

"""Writes reconstructions and samples of trained models as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tok1d.config.classes import Classes, chosen, drawn, model_classes
from tok1d.config.condition import is_conditional, text_condition
from tok1d.config.options import check_counts, parse_counts
from tok1d.data.broken import replaced_images, replaced_indices
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.data.words import CaptionIds
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import DataError, InputError
from tok1d.files import clear
from tok1d.generators.base import Generator
from tok1d.images.overview import zoom_for
from tok1d.inference.captions import caption_reader
from tok1d.inference.conditions import ConditionedImages, check_conditions, conditioning_of, read_captions
from tok1d.inference.nearest import Training
from tok1d.inference.request import ReconstructionPictures, SamplePictures
from tok1d.inference.sampling import DECODER_NOISE, decoder_options, guidance_of, noise_of
from tok1d.losses.pixel import psnr_per_image
from tok1d.pictures import grid, save_png, to_pil
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, images: ImageSet, out: Path, how: ReconstructionPictures) -> dict[int, float]:
    """Write a PNG file of each reconstruction, and overview.png: the originals, then a row for each number of tokens.

    Reconstructions have the size of the images. Images that cannot be read are left out.

    Returns:
        Mean PSNR in dB for each number of tokens.

    Raises:
        InputError: numbers of tokens, decoder settings or a condition that the tokenizer does not have.
        DataError: none of the images can be read.
    """
    keep = token_counts(tokenizer.spec, check_counts(list(how.keep), "--keep", 0, tokenizer.spec.length))
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
    clear(out, r"image\d+_(keep\d+|original)\.png|overview\.png")
    for name, row in zip(("original", *(f"keep{k:03d}" for k in keep)), rows, strict=True):
        for i, image in enumerate(row):
            save_png(to_pil(image), out / f"image{i:03d}_{name}.png")
    save_png(grid(torch.cat(rows), len(x), zoom=zoom_for(x)), out / "overview.png")
    return {k: float(psnr_per_image(row, x).mean()) for k, row in zip(keep, rows[1:], strict=True)}


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


class _Samples:
    """Samples of classes or captions, in batches.

    The random numbers of a sample depend only on the seed, its class or caption and its number, not on the batch size
    or the other samples.
    """

    def __init__(
        self, generator: Generator, tokenizer: Tokenizer, how: SamplePictures, guidance: Guidance | None
    ) -> None:
        self.generator, self.tokenizer, self.how = generator, tokenizer, how
        sampling, config = how.sampling, generator.config
        captions = read_captions(how.captions)
        check_conditions(generator, how.classes, captions, unconditional=sampling.unconditional)
        ids = drawn_ids(generator, how)
        self.length, self.prefixes = _lengths(generator, how)
        self.guidance = guidance_of(generator, sampling) if guidance is None else guidance
        guided = self.guidance.scale != 1 and self.guidance.weak_model is None
        if guided and not generator.label_embed.has_null:
            raise InputError(
                "--guidance: this generator was trained without class dropout and cannot be guided; pass 1"
            )
        self.num_classes = config.num_classes if is_conditional(config) and not sampling.unconditional else 0
        condition = None if sampling.unconditional else text_condition(config)
        if condition is not None and condition.kind == "words":
            CaptionIds(condition, captions).check("--captions")
        self.embed = None if condition is None else caption_reader(condition, captions)
        conditions: Sequence[int | str] = captions or [0]
        if self.num_classes:
            conditions = ids
        self.keys = [(each, copy) for each in conditions for copy in range(how.num)]
        token_counts(tokenizer.spec, [self.length, *self.prefixes])
        classes = model_classes(generator) if self.num_classes else Classes(0)
        self.conditioning = conditioning_of(tokenizer, classes, captioned=self.embed is not None)
        self.settings = sampling.settings
        self.settings.check(generator.kind, config.name, "--")
        self.decoder_options = decoder_options(tokenizer, how.decoding, "--decoder-")

    def batch(self, keys: Sequence[tuple[int | str, int]]) -> dict[int, Tensor]:
        """Generate samples; return images (B, C, H, W) by the number of leading tokens that are decoded."""
        device, seed = next(self.generator.parameters()).device, self.how.seed
        cond = torch.tensor([label for label, _ in keys], device=device) if self.num_classes else None
        if self.embed is not None:
            cond = self.embed([str(caption) for caption, _ in keys], device)
        noise = [noise_of(seed, 0, *key) for key in keys]
        tokens = self.generator.sample(
            cond,
            num=len(keys),
            length=None if self.generator.parallel else self.how.keep,
            generator=noise,
            guidance=self.guidance,
            settings=self.settings,
        )
        found = {}
        for k in dict.fromkeys((self.length, *self.prefixes)):
            noise = [noise_of(seed, 1, *key) for key in keys]
            given = self.conditioning.of(cond, device)
            found[k] = self.tokenizer.decode(tokens, given, keep=k, generator=noise, **self.decoder_options).cpu()
        return found

    def name(self, key: tuple[int | str, int], number: int) -> str:
        """The file name of the sample with this number."""
        condition, copy = key
        if self.num_classes:
            return f"class{condition:03d}_{copy:03d}.png"
        return f"image{'' if self.embed is None else f'{number // self.how.num:03d}_'}{copy:03d}.png"


def drawn_ids(generator: Generator, how: SamplePictures) -> list[int]:
    """The ids of the classes to sample, by default all; raises InputError for classes that the generator lacks."""
    classes = model_classes(generator)
    return chosen(how.classes, classes, "--classes") if how.classes else list(range(classes.num))


def classes_text(generator: Generator, how: SamplePictures) -> str:
    """One line: the classes to sample, "classes: car (index 0), 2 (index 4)"; "" without classes.

    Raises:
        InputError: classes that the generator does not have.
    """
    check_conditions(generator, how.classes, how.captions, unconditional=how.unconditional)
    if how.unconditional or not generator.config.num_classes:
        return ""
    return drawn(drawn_ids(generator, how), model_classes(generator))


def _lengths(generator: Generator, how: SamplePictures) -> tuple[int, list[int]]:
    """The number of tokens of a sample, and the further numbers of tokens to decode from."""
    most = generator.config.num_tokens
    if how.keep is not None and how.keep > most:
        raise InputError(f"--keep: expected 1..{most}, got {how.keep}")
    length = how.keep or most
    if how.decode_keep == "every":
        return length, list(range(1, length + 1))
    return length, parse_counts(how.decode_keep, "--decode-keep", 0, length) if how.decode_keep else []


@torch.no_grad()
def generate(
    generator: Generator,
    tokenizer: Tokenizer,
    out: Path,
    how: SamplePictures,
    *,
    guidance: Guidance | None = None,
    training: Training | None = None,
) -> list[Path]:
    """Write a PNG file of each sample, and overview.png with all samples.

    Args:
        training: the training images; nearest.png then shows the nearest one of each sample.
        guidance: replaces the guidance settings of `how`, for example with a weak model in memory.

    Returns:
        The paths of overview.png and, with `how.decode_keep`, of progressive.png, with `training` of nearest.png.

    Raises:
        InputError: settings, classes or captions that the generator or the tokenizer does not have.
    """
    samples = _Samples(generator, tokenizer, how, guidance)
    samples.conditioning.say()
    keys = samples.keys
    batches = [samples.batch(keys[start : start + how.batch_size]) for start in range(0, len(keys), how.batch_size)]
    images = {k: torch.cat([batch[k] for batch in batches]) for k in batches[0]}
    sampled = images[samples.length]
    clear(out, r"(class\d+_|image(\d+_)?)\d+\.png|(overview|progressive|nearest)\.png")
    for i, image in enumerate(sampled):
        save_png(to_pil(image), out / samples.name(keys[i], i))
    written = [save_png(grid(sampled, how.num, zoom=zoom_for(sampled)), out / "overview.png")]
    if samples.prefixes:
        rows = torch.cat([images[k] for k in samples.prefixes])
        written.append(save_png(grid(rows, len(keys), zoom=zoom_for(rows)), out / "progressive.png"))
    if training is not None:
        near = training.images.batch(training.nearest(sampled)[1].tolist())[0]
        parts = [part for both in zip(sampled.split(how.num), near.split(how.num)) for part in both]
        written.append(save_png(grid(torch.cat(parts), how.num, zoom=zoom_for(sampled)), out / "nearest.png"))
    return written

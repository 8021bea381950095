"""What a person does with finished models: reconstruct and generate into a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.config.condition import text_condition
from tok1d.data.broken import replaced_images, replaced_indices
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import DataError, InputError
from tok1d.files import clear
from tok1d.inference.labels import ConditionedImages, label_used, labels_given
from tok1d.inference.parse import check_wanted
from tok1d.inference.sampling import (
    DECODER_NOISE,
    decoder_options,
    generator_guidance,
    noise_of,
    samples_all_at_once,
    sampling_options,
)
from tok1d.losses.pixel import psnr_per_image
from tok1d.pictures import grid, save_png, to_pil
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.pretrained.text import CaptionEmbeddings


@torch.no_grad()
def reconstruct(
    tokenizer: Any,
    images: ImageSet,
    out: Path,
    *,
    keep: Sequence[int],
    num: int = 8,
    steps: int | None = None,
    guidance: float | Guidance = 1.0,
    solver: str | None = None,
    seed: int = 0,
    label: str | None = None,
) -> dict[int, float]:
    """Write overview.png (originals above their reconstructions, one row a prefix) and a PNG each; PSNR per keep.

    Images of another size than the training's are painted at their own. Those that cannot be decoded are left out.

    Args:
        keep: numbers of leading tokens; of tokens without an order only all.
        num: so many images, see `subset`.
        label: of a tokenizer that wants one, "true" or "null"; default: see `label_used`.

    Raises:
        InputError: prefixes, steps, guidance, a solver or labels that the tokenizer does not have.
    """
    keep = token_counts(tokenizer.spec, keep)
    options = decoder_options(tokenizer, steps=steps, guidance=guidance, solver=solver)
    device = next(tokenizer.parameters()).device
    images = subset(images, num)
    x, _, cond = ConditionedImages(tokenizer, images, label).batch(range(len(images)))
    if stand_ins := replaced_indices(images, range(len(images))):  # they could not be decoded: no originals to show
        whole = torch.tensor([i for i in range(len(x)) if i not in stand_ins])
        if not len(whole):
            name, why = replaced_images(images)[0]
            raise DataError(f"{name}: {why}; nor can the other images be decoded that were chosen")
        x, cond = x[whole], None if cond is None else cond[whole.to(cond.device)]
    x = x.to(device)
    tokens = tokenizer.encode(x, cond)
    if x.shape[-2:] != (tokenizer.config.image_size,) * 2:
        options["size"] = (x.shape[-2], x.shape[-1])
    rows: list[Tensor] = [x]
    psnr = {}
    for k in keep:
        sources = [noise_of(seed, DECODER_NOISE, i) for i in range(len(x))]
        y = tokenizer.decode(tokens, cond, keep=k, generator=sources, **options)
        rows.append(y)
        psnr[k] = float(psnr_per_image(y, x).mean())
    clear(out, r"image\d+_(keep\d+|original)\.png|overview\.png")
    for k, y in zip(keep, rows[1:], strict=True):
        for i, image in enumerate(y):
            save_png(to_pil(image), out / f"image{i:03d}_keep{k:03d}.png")
    for i, image in enumerate(x):
        save_png(to_pil(image), out / f"image{i:03d}_original.png")
    save_png(grid(torch.cat(rows), len(x), zoom=zoom_for(x)), out / "overview.png")
    return psnr


def zoom_for(images: Tensor) -> int:
    """A whole factor that makes small images at least some 80 pixels wide."""
    return max(1, round(84 / images.shape[-1]))


@torch.no_grad()
def generate(
    generator: Any,
    tokenizer: Any,
    out: Path,
    *,
    classes: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
    num: int = 16,
    keep: int | None = None,
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
    prefixes: Sequence[int] = (),
    batch_size: int = 100,
    seed: int = 0,
) -> Path:
    """Draw `num` images of every class or caption (or of an unconditional model); a PNG each and overview.png.

    Noise belongs to (seed, class or caption, number of the image): neither the other images nor `batch_size` change a
    picture.

    Args:
        classes: default: all. captions: of a model that is told those.
        keep: only the first tokens; a causal generator makes no more, of a whole sequence the others are not decoded.
            prefixes: also paint the same samples from that many of their tokens, into progressive.png, a row a number.
        unconditional: draw the null condition of a conditional model.
        guidance, temperature, steps, sampler, top_k, top_p: of the generator, those it has; a plain guidance scale
            follows `generator_guidance`. decoder_steps, decoder_solver, decoder_guidance: of the tokenizer's decoder.

    Raises:
        InputError: whatever the generator or the tokenizer cannot do.
    """
    device = next(generator.parameters()).device
    guidance = generator_guidance(generator, guidance)
    if guidance.scale != 1 and guidance.weak_model is None and not generator.label_embed.has_null:
        raise InputError("--guidance: this generator was trained without class dropout and cannot be guided; pass 1")
    check_wanted(generator, classes, captions, unconditional=unconditional)
    told = None if unconditional else text_condition(generator.config)
    num_classes = 0 if unconditional else generator.config.num_classes
    wanted: Sequence[int | str] = captions or [0]
    if num_classes:
        wanted = range(num_classes) if classes is None else classes
    embed = None if told is None else CaptionEmbeddings(told, captions or [])
    keys = [(what, copy) for what in wanted for copy in range(num)]
    length = keep or generator.config.num_tokens
    token_counts(tokenizer.spec, [length, *prefixes])
    whole, used = samples_all_at_once(generator), label_used(tokenizer, num_classes, captioned=embed is not None)
    how = sampling_options(
        generator, "--", temperature=temperature, steps=steps, sampler=sampler, top_k=top_k, top_p=top_p
    )
    options = decoder_options(
        tokenizer, steps=decoder_steps, guidance=decoder_guidance, solver=decoder_solver, prefix="--decoder-"
    )
    images: list[Tensor] = []
    progress: dict[int, list[Tensor]] = {k: [] for k in prefixes}
    for start in range(0, len(keys), batch_size):
        part = keys[start : start + batch_size]
        cond = torch.tensor([label for label, _ in part], device=device) if num_classes else None
        if embed is not None:
            cond = embed([str(caption) for caption, _ in part], device)
        tokens = generator.sample(
            cond,
            num=len(part),
            length=None if whole else keep,
            generator=[noise_of(seed, 0, *key) for key in part],
            guidance=guidance,
            **how,
        )
        for k, painted in ((length, images), *progress.items()):
            sources = [noise_of(seed, 1, *key) for key in part]
            given = labels_given(used, cond, device)
            painted.append(tokenizer.decode(tokens, given, keep=k, generator=sources, **options).cpu())
    drawn = torch.cat(images)
    clear(out, r"(class\d+_|image(\d+_)?)\d+\.png|(overview|progressive)\.png")
    for i, image in enumerate(drawn):
        what, copy = keys[i]
        name = f"class{what:03d}_" if num_classes else f"image{'' if embed is None else f'{i // num:03d}_'}"
        save_png(to_pil(image), out / f"{name}{copy:03d}.png")
    if progress:
        rows = torch.cat([image for painted in progress.values() for image in painted])
        save_png(grid(rows, len(keys), zoom=zoom_for(rows)), out / "progressive.png")
    return save_png(grid(drawn, num, zoom=zoom_for(drawn)), out / "overview.png")

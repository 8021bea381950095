"""`tok1d reconstruct` and `tok1d generate`: images from trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import (
    DATA_HELP,
    PATH,
    DataRoot,
    Device,
    Model,
    OnBroken,
    Overwrite,
    expanded,
    load_tokenizer,
    one_of,
    output_folder,
)
from tok1d.inference.request import ReconstructionPictures, SamplePictures

Out = Annotated[Path, typer.Option(help="folder for the images")]


@expanded
def reconstruct(
    model: Model,
    images: Annotated[str, typer.Argument(help=f"{DATA_HELP}; or an image file", show_default=False), PATH],
    out: Out,
    how: ReconstructionPictures,
    on_broken: OnBroken = "skip",
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Encode images, decode them from their leading tokens, and write overview.png and a PNG file of each image."""
    from tok1d.data.broken import replaced_indices, report_broken
    from tok1d.data.labels import image_classes
    from tok1d.data.subset import subset
    from tok1d.inference import images as sources
    from tok1d.inference import pictures
    from tok1d.inference.conditions import conditioning_of

    one_of("--on-broken", on_broken, ("stop", "skip"))
    folder = output_folder(out, overwrite=overwrite)
    tokenizer = load_tokenizer(model, device)
    source = sources.open_own(
        images, tokenizer, split=how.split, data_root=data_root, on_broken=on_broken, size=how.size
    )
    conditioning = conditioning_of(tokenizer, image_classes(source), how.label, captioned=any(source.captions))
    conditioning.say()
    psnr, budget = pictures.reconstruct(tokenizer, source, folder, how)
    report_broken(source)
    if conditioning.label is not None:
        print(f"condition of the tokenizer: {conditioning.label}")
    shown = subset(source, how.num)
    count = len(shown) - len(replaced_indices(shown, range(len(shown))))
    mean = f" (mean of {count} images)" if count != 1 else ""
    for k, value in psnr.items():
        print(f"keep {k:4d} of {tokenizer.spec.length}: PSNR {value:.2f} dB{mean}")
    if budget is not None:
        kind = "predicted " * (how.quality_by == "head") + how.quality_metric
        print(
            f"quality {how.quality:g} dB: {budget.mean:.2f} tokens on average ({int(budget.keep.min())} to "
            f"{int(budget.keep.max())}), {kind} {float(budget.quality.mean()):.2f} dB; as many tokens for every image "
            f"{budget.fixed_quality:.2f} dB"
        )
    print(f"pictures: {folder / 'overview.png'}")


@expanded
def generate(
    model: Model,
    out: Out,
    how: SamplePictures,
    tokenizer: Annotated[
        str, typer.Option(help="the tokenizer of the generator's tokens; default: the one that its card names"), PATH
    ] = "",
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate tokens from classes or captions, decode them with the generator's tokenizer, and write PNG files."""
    from tok1d import devices
    from tok1d.errors import InputError
    from tok1d.evaluate.verifiers import open_verifier
    from tok1d.images.framing import padding_of
    from tok1d.inference import draw, pictures
    from tok1d.inference import images as sources
    from tok1d.inference.nearest import Training, too_many
    from tok1d.zoo.checkpoints import load_pair

    folder = output_folder(out, overwrite=overwrite)
    generator, decoder = load_pair(model, device=devices.pick_device(device), tokenizer=tokenizer or None)
    if text := draw.classes_text(generator, how):
        print(f"{text}; {how.num} sample{'s' * (how.num != 1)} of each")
    training = None
    if how.nearest:
        images = sources.open_data(how.nearest, decoder, split="train", generator=generator)
        if reason := too_many(images):
            raise InputError(f"--nearest: {reason}")
        training = Training(images, padding_of(decoder))
    written = pictures.generate(generator, decoder, folder, how, training=training, opened=open_verifier)
    print(f"pictures: {', '.join(map(str, written))}")

"""`tok1d analyze prefix`, `increments`, `swap`, `mixture` and `idle`: what the tokens of several tokenizers hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.analyze.request import IncrementProducts, MixtureFits, PrefixCurves, Swaps, TokenUses, label_of
from tok1d.cli.options import ChosenImages, DataRoot, Device, Overwrite, expanded, output_folder, with_paths
from tok1d.cli.several import (
    Models,
    fitting,
    lengths_of,
    open_subjects,
    reported,
    write_analysis,
)

analyze_app = typer.Typer(help="Analyze the information in the tokens of tokenizers.", no_args_is_help=True)


@analyze_app.command("prefix")
@with_paths
@expanded
def analyze_prefix(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for prefix.json and prefix.png")],
    chosen: ChosenImages,
    how: PrefixCurves,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """The PCA-like curve: how much the first k tokens lower the denoising loss, relative to all tokens.

    Of tokenizers without a diffusion decoder, the squared error of reconstructions in place of the denoising loss.
    """
    from dataclasses import replace

    from tok1d.analyze.prefix import check_prefix, check_times, judged, plot_prefixes, prefix
    from tok1d.images.framing import padding_of

    opened = open_subjects(models, device, chosen)
    subjects, without = fitting(opened, lambda each: check_prefix(each.tokenizer, how.partial))
    check_times([each.tokenizer for each in subjects], how.times)
    lengths = [lengths_of(how.keep, each.tokenizer) for each in subjects]
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, keep in zip(subjects, lengths, strict=True):
        own = replace(how, label=label_of(each, subjects, how.label))
        result = found[each.name] = prefix(each.tokenizer, each.images, own, keep=keep, name=each.name)
        records.append(reported(each, result, seed=how.seed))
        pad = padding_of(each.tokenizer)
        shared = {"num_images": how.num, "batch_size": how.batch_size, "seed": how.seed}
        if said := judged(each.tokenizer, each.images, pad=pad, **shared):
            print(f"{each.name}: {said}")
    said_of = [each.said() for each in found.values()]
    write_analysis(folder, "prefix", records, said_of, plot_prefixes(found), without)


@analyze_app.command("increments")
@with_paths
@expanded
def analyze_increments(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for increments.json and increments.png")],
    chosen: ChosenImages,
    how: IncrementProducts,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Correlations and energies of the increments that the tokens add to the prediction.

    Like those of principal components, different increments should be orthogonal in expectation: their correlation is
    0, and their energies add up to the fall of the denoising loss. Of tokenizers without a diffusion decoder, the
    decoded image is the prediction.
    """
    from tok1d.analyze.increments import TIMES, check_increments, increments, plot_increments
    from tok1d.analyze.prefix import check_times

    opened = open_subjects(models, device, chosen)
    subjects, without = fitting(opened, lambda each: check_increments(each.tokenizer))
    check_times([each.tokenizer for each in subjects], how.times)
    lengths = [lengths_of(how.keep, each.tokenizer) for each in subjects]
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, keep in zip(subjects, lengths, strict=True):
        result = found[each.name] = increments(
            each.tokenizer,
            each.images,
            keep=keep,
            num_images=how.num,
            num_times=how.times or TIMES,
            batch_size=how.batch_size,
            seed=how.seed,
            label=label_of(each, subjects, how.label),
            name=each.name,
        )
        records.append(reported(each, result, seed=how.seed))
    said = [each.said() for each in found.values()]
    write_analysis(folder, "increments", records, said, plot_increments(found), without)


@analyze_app.command("swap")
@with_paths
@expanded
def analyze_swap(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for swap.json and swap.png")],
    chosen: ChosenImages,
    how: Swaps,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Decode tokens with another class, or from the class alone, to see what class and tokens determine.

    For tokenizers that are conditioned on the class (SMAP). Beside it: encoder or decoder alone with the class, and the
    mean training image of the class.
    """
    from tok1d.analyze.swap import check_swap, class_means, swap
    from tok1d.analyze.swap_plots import plot_swaps, swap_picture
    from tok1d.evaluate import protocol
    from tok1d.images.framing import padding_of
    from tok1d.inference import images as sources

    opened = open_subjects(models, device, chosen)
    subjects, without = fitting(opened, lambda each: check_swap(each.tokenizer, each.images, how.label))
    folder = output_folder(out, overwrite=overwrite)
    found, records, pictures = {}, [], {}
    for each in subjects:
        place, pad = next(each.tokenizer.parameters()).device, padding_of(each.tokenizer)
        train = sources.open_data(each.data, each.tokenizer, split="train", data_root=chosen.data_root, report=False)
        means = class_means(train, how.num_train, name=f"{each.name}, means")
        classifier = protocol.classifier_for(each.data, each.tokenizer.config, place, pad=pad)
        paired = {"num_images": how.num, "batch_size": how.batch_size}
        result = found[each.name] = swap(
            each.tokenizer, each.images, classifier, keep=how.keep, pad=pad, label=how.label, means=means,
            name=each.name, **paired,
        )  # fmt: skip
        keep = max(how.keep, default=each.tokenizer.spec.length)
        pictures[f"{each.name}, {keep} tokens"] = swap_picture(
            each.tokenizer, each.images, keep=keep, label=how.label, means=means, **paired
        )
        records.append(reported(each, result, seed=None))
    said = [each.said() for each in found.values()]
    write_analysis(folder, "swap", records, said, plot_swaps(found, pictures), without)


@analyze_app.command("mixture")
@with_paths
@expanded
def analyze_mixture(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for mixture.json and mixture.png")],
    how: MixtureFits,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit Gaussian mixtures to the principal components of the tokens: their likelihood shows the number of modes.

    The mixtures are fitted to training images and measured on them and on test images, for all models in the same
    number of dimensions.
    """
    from tok1d.analyze.mixture import COMPONENTS, NATS, Space, check_mixture, common_dims, plot_mixtures, token_batches
    from tok1d.analyze.mixture import fit_space as fit
    from tok1d.data.subset import subset
    from tok1d.inference import images as sources

    opened = open_subjects(models, device, ChosenImages(split="test", data_root=data_root))
    subjects, without = fitting(opened, lambda each: check_mixture(each.tokenizer))
    folder = output_folder(out, overwrite=overwrite)
    spaces, rows, sets, labels, seeds = {}, {}, {}, {}, how.seeds or (0,)
    for each in subjects:
        train = sources.open_data(each.data, each.tokenizer, split="train", data_root=data_root, report=False)
        chosen = sets[each.name] = subset(train, how.num_train), subset(each.images, how.num)
        shared = {"label": label_of(each, subjects, how.label), "batch_size": how.batch_size}
        made = [token_batches(each.tokenizer, images, name=each.name, **shared) for images in chosen]
        rows[each.name], labels[each.name] = [batches for batches, _ in made], made[0][1]
        spaces[each.name] = Space.of(rows[each.name][0])
    dims = common_dims(spaces, how.variance) if how.dims is None else how.dims
    found, records = {}, []
    for each in subjects:
        fitted, heldout = rows[each.name]
        result = found[each.name] = fit(
            spaces[each.name], fitted, how.components or COMPONENTS, dims=dims, covariance=how.covariance,
            seeds=seeds, heldout=heldout, name=each.name,
        )  # fmt: skip
        training = sets[each.name][0].fingerprint()
        records.append(
            reported(each, result, seed=seeds[0], seeds=list(seeds), training=training, label=labels[each.name])
        )
    print(NATS)
    write_analysis(folder, "mixture", records, [each.said() for each in found.values()], plot_mixtures(found), without)


@analyze_app.command("idle")
@with_paths
@expanded
def analyze_idle(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for idle.json and idle.png")],
    chosen: ChosenImages,
    how: TokenUses,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """What each token adds: the error without it, with another image's, and what earlier tokens predict of it."""
    from tok1d.analyze.idle import plot_uses, token_uses

    subjects = open_subjects(models, device, chosen)
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each in subjects:
        shared = {"num_images": how.num, "batch_size": how.batch_size, "seed": how.seed}
        label = label_of(each, subjects, how.label)
        result = found[each.name] = token_uses(each.tokenizer, each.images, label=label, name=each.name, **shared)
        records.append(reported(each, result, seed=how.seed))
    write_analysis(folder, "idle", records, [each.said() for each in found.values()], plot_uses(found))

"""`tok1d analyze`: the information in the tokens of a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tok1d.cli.options import (
    ChosenImages,
    Data,
    Device,
    Model,
    Overwrite,
    Seed,
    expanded,
    load_tokenizer,
    one_of,
    output_folder,
    with_paths,
)
from tok1d.config.options import parse_counts

if TYPE_CHECKING:
    from tok1d.data.images import ImageSet
    from tok1d.tokenizers.base import Tokenizer

HELD_OUT = "number of test images: the first ones of fashion_mnist, of other data spread evenly over the set"
KEEP_HELP = "prefix lengths separated by commas, or all; 0 and the number of tokens are always included"
Times = Annotated[int, typer.Option(min=1, help="number of times, the midpoints of equal parts of the time interval")]
BatchSize = Annotated[int, typer.Option(min=1, help="images at once")]
analyze_app = typer.Typer(help="Analyze the information in the tokens of a tokenizer.", no_args_is_help=True)


def lengths_of(text: str, tokenizer: Tokenizer) -> list[int] | None:
    """The prefix lengths of `--keep`: None for "", every length for "all"; raises InputError for anything else."""
    length = tokenizer.spec.length
    if text == "all":
        return list(range(length + 1))
    return parse_counts(text, "--keep", 0, length) if text else None


def facts(model: str, data: str, tokenizer: Tokenizer, images: ImageSet, num: int, **settings: Any) -> dict[str, Any]:
    """What every record of an analysis begins with: model, hash of its weights, data, fingerprint, and `settings`."""
    from tok1d.data.subset import subset
    from tok1d.zoo.weights import fingerprint

    return {
        "model": model,
        "weights_hash": fingerprint(tokenizer),
        "data": data,
        "reference": subset(images, num).fingerprint(),
        **settings,
    }


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record as JSON and print its place."""
    import json

    from tok1d import files

    files.write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(f"record: {path}")


@analyze_app.command("prefix")
@with_paths
@expanded
def analyze_prefix(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for curve.json and curve.png")],
    chosen: ChosenImages,
    keep: Annotated[str, typer.Option(help=f"{KEEP_HELP}; default: all up to 16 tokens, else the powers of two")] = "",
    num: Annotated[int, typer.Option(min=1, help=HELD_OUT)] = 500,
    times: Times = 20,
    batch_size: BatchSize = 100,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """The PCA-like curve: how much the first k tokens reduce the denoising loss, relative to all tokens."""
    from dataclasses import asdict

    from tok1d.analyze.prefix import explained_curve, judged, plot_curve
    from tok1d.images.framing import padding_of
    from tok1d.inference import images as sources
    from tok1d.pictures import save_png

    tokenizer = load_tokenizer(model, device)
    lengths = lengths_of(keep, tokenizer)
    folder = output_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    points = explained_curve(
        tokenizer, images, keep=lengths, num_images=num, num_times=times, batch_size=batch_size, seed=seed
    )
    for point in points:
        share = "unavailable (the tokens do not reduce the loss)" if point.share is None else f"{point.share:7.1%}"
        print(f"keep {point.keep:4d}: loss {point.loss:.5f}, share {share}")
    if said := judged(tokenizer, images, pad=padding_of(tokenizer), num_images=num, batch_size=batch_size, seed=seed):
        print(said)
    save_png(plot_curve({model: points}), folder / "curve.png")
    used = min(num, len(images))
    content = facts(model, data, tokenizer, images, num, num_images=used, seed=seed, times=times)
    write_record(folder / "curve.json", {**content, "points": [asdict(point) for point in points]})
    print(f"plot: {folder / 'curve.png'}")


@analyze_app.command("increments")
@with_paths
@expanded
def analyze_increments(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for increments.json and increments.png")],
    chosen: ChosenImages,
    keep: Annotated[
        str, typer.Option(help=f"{KEEP_HELP}; each increment is between two of them. Default: all, one per token")
    ] = "",
    num: Annotated[int, typer.Option(min=1, help=HELD_OUT)] = 500,
    times: Times = 10,
    batch_size: BatchSize = 100,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Correlations and energies of the increments that the tokens add to the prediction.

    Like those of principal components, different increments should be orthogonal in expectation: their correlation is
    0, and their energies add up to the fall of the denoising loss.
    """
    from tok1d.analyze.increments import increments, plot_correlations
    from tok1d.inference import images as sources
    from tok1d.pictures import save_png

    tokenizer = load_tokenizer(model, device)
    lengths = lengths_of(keep, tokenizer)
    folder = output_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    found = increments(
        tokenizer, images, keep=lengths, num_images=num, num_times=times, batch_size=batch_size, seed=seed
    )
    for line in found.describe():
        print(line)
    picture = plot_correlations(found.keep, found.correlation, found.residual_correlation, model)
    save_png(picture, folder / "increments.png")
    used = min(num, len(images))
    content = facts(model, data, tokenizer, images, num, num_images=used, seed=seed, times=times)
    write_record(folder / "increments.json", {**content, **found.to_json()})
    print(f"plot: {folder / 'increments.png'}")


@analyze_app.command("swap")
@with_paths
@expanded
def analyze_swap(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for swap.json and swap.png")],
    chosen: ChosenImages,
    num: Annotated[int, typer.Option(min=2, help=f"{HELD_OUT}; pairs are formed from them")] = 500,
    label: Annotated[
        str | None, typer.Option(help="true: classes by position where their names do not agree; default: by name")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Decode tokens with another class, or from the class alone, to see what class and tokens determine.

    For tokenizers that are conditioned on the class (SMAP).
    """
    from tok1d.analyze.swap import swap, swap_picture
    from tok1d.config.classes import stated
    from tok1d.evaluate import protocol
    from tok1d.evaluate.reconstruction import classifier_name
    from tok1d.images.framing import padding_of
    from tok1d.inference import images as sources
    from tok1d.pictures import save_png

    if label is not None:
        one_of("--label", label, ("true",))
    tokenizer = load_tokenizer(model, device)
    pad, place = padding_of(tokenizer), next(tokenizer.parameters()).device
    folder = output_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    classifier = protocol.classifier_for(data, tokenizer.config, place, pad=pad)
    found = swap(tokenizer, images, classifier, num_images=num, pad=pad, label=label)
    save_png(swap_picture(tokenizer, images, num_images=num, label=label), folder / "swap.png")
    content = {
        **facts(model, data, tokenizer, images, num),
        "class_names": stated(images.class_names),
        "judge": None if classifier is None else classifier_name(classifier),
        "variants": [each.to_json() for each in found],
    }
    print(f"{found[0].num} images in pairs of different classes; rows of the image: originals, then these variants")
    for each in found:
        print(f"{each.variant:30s} {each.describe()}")
    write_record(folder / "swap.json", content)
    print(f"image: {folder / 'swap.png'}")


@analyze_app.command("mixture")
@with_paths
@expanded
def analyze_mixture(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for mixture.json")],
    chosen: ChosenImages,
    components: Annotated[str, typer.Option(help="numbers of mixture components, separated by commas")] = "5,10,20",
    dims: Annotated[
        int | None, typer.Option(min=1, help="number of principal components; default: as many as --variance needs")
    ] = None,
    variance: Annotated[
        float, typer.Option(help="share of the variance that the principal components must explain")
    ] = 0.9,
    covariance: Annotated[str, typer.Option(help="covariance of a mixture component: diag or full")] = "diag",
    seeds: Annotated[str, typer.Option(help="seeds of the fits, separated by commas")] = "0",
    num: Annotated[int, typer.Option(min=1, help=HELD_OUT)] = 5000,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit Gaussian mixtures to the principal components of the tokens: their likelihood shows the number of modes."""
    from dataclasses import asdict

    from tok1d.analyze.mixture import collect_tokens, fit_mixtures
    from tok1d.inference import images as sources

    one_of("--covariance", covariance, ("diag", "full"))
    counts = parse_counts(components, "--components", 1, num)
    fit_seeds = parse_counts(seeds, "--seeds", 0, 2**32 - 1)
    tokenizer = load_tokenizer(model, device)
    folder = output_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    tokens = collect_tokens(tokenizer, images, num=num)
    found = fit_mixtures(tokens, counts, dims=dims, variance=variance, covariance=covariance, seeds=fit_seeds)  # type: ignore[arg-type]
    print(f"{found.num} images, {found.dims} principal components with {found.variance:.1%} of the variance")
    for point in found.points:
        print(
            f"{point.components:4d} components, seed {point.seed}: {point.nll:9.3f} nats, "
            f"largest norm of a mean {point.mean_norm:.3f}"
        )
    write_record(folder / "mixture.json", {**facts(model, data, tokenizer, images, num), **asdict(found)})


@analyze_app.command("idle")
@with_paths
@expanded
def analyze_idle(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for idle.json")],
    chosen: ChosenImages,
    num: Annotated[int, typer.Option(min=2, help=HELD_OUT)] = 2000,
    batch_size: Annotated[int, typer.Option(min=2, help="images at once")] = 250,
    label: Annotated[
        str | None, typer.Option(help="true: classes by position where their names do not agree; default: by name")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """What each token adds: the error without it, with another image's, and what earlier tokens predict of it."""
    from tok1d.analyze.idle import token_uses
    from tok1d.inference import images as sources

    if label is not None:
        one_of("--label", label, ("true",))
    tokenizer = load_tokenizer(model, device)
    folder = output_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    found = token_uses(tokenizer, images, num_images=num, batch_size=batch_size, seed=seed, label=label)
    for line in found.describe():
        print(line)
    content = facts(model, data, tokenizer, images, num, seed=seed)
    write_record(folder / "idle.json", {**content, **found.to_json()})

"""`tok1d analyze`: the information in the tokens of a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import ChosenImages, Data, Device, Model, Overwrite, Seed, expanded, load_tokenizer, one_of
from tok1d.config.options import parse_counts

HELD_OUT = "number of test images: the first ones of fashion_mnist, of other data spread evenly over the set"
analyze_app = typer.Typer(help="Analyze the information in the tokens of a tokenizer.", no_args_is_help=True)


@analyze_app.command("prefix")
@expanded
def analyze_prefix(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for curve.json and curve.png")],
    chosen: ChosenImages,
    num: Annotated[int, typer.Option(min=1, help=HELD_OUT)] = 500,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """The PCA-like curve: how much the first k tokens reduce the denoising loss, relative to all tokens."""
    import json
    from dataclasses import asdict

    from tok1d import files
    from tok1d.analyze.prefix import explained_curve, plot_curve
    from tok1d.inference import images as sources
    from tok1d.pictures import save_png

    tokenizer = load_tokenizer(model, device)
    folder = files.new_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    points = explained_curve(tokenizer, images, num_images=num, seed=seed)
    save_png(plot_curve({model: points}), folder / "curve.png")
    files.write_text(folder / "curve.json", json.dumps([asdict(point) for point in points], indent=1) + "\n")
    for point in points:
        share = "unavailable (the tokens do not reduce the loss)" if point.share is None else f"{point.share:7.1%}"
        print(f"keep {point.keep:4d}: loss {point.loss:.5f}, share {share}")
    print(f"plot: {folder / 'curve.png'}")


@analyze_app.command("increments")
@expanded
def analyze_increments(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for increments.json")],
    chosen: ChosenImages,
    num: Annotated[int, typer.Option(min=1, help=HELD_OUT)] = 500,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Cosines and energies of the increments that each token adds to the prediction.

    Like principal components, increments of different tokens should be orthogonal (cosine 0).
    """
    import json

    from tok1d import files
    from tok1d.analyze.increments import increments
    from tok1d.inference import images as sources

    tokenizer = load_tokenizer(model, device)
    folder = files.new_folder(out, overwrite=overwrite)
    found = increments(
        tokenizer,
        sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root),
        num_images=num,
        seed=seed,
    )
    content = {name: getattr(found, name).tolist() for name in ("cosine", "absolute", "energy")}
    files.write_text(folder / "increments.json", json.dumps(content, indent=1) + "\n")
    total = float(found.energy.sum())
    for k, energy in enumerate(found.energy.tolist(), start=1):
        print(f"token {k:4d}: {energy / total:6.1%} of the energy of all increments")
    print(f"mean |cosine| of different tokens {found.off_diagonal:.3f} (0 is orthogonal)")
    print(f"mean cosine of successive tokens {found.neighbours:+.3f}")
    print(f"matrix: {folder / 'increments.json'}")


@analyze_app.command("swap")
@expanded
def analyze_swap(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for swap.json and swap.png")],
    chosen: ChosenImages,
    num: Annotated[int, typer.Option(min=2, help=f"{HELD_OUT}; pairs are formed from them")] = 500,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Decode tokens with another class, or from the class alone, to see what class and tokens determine.

    For tokenizers that are conditioned on the class (SMAP).
    """
    import json

    from tok1d import files
    from tok1d.analyze.swap import swap, swap_picture
    from tok1d.evaluate import protocol
    from tok1d.evaluate.reconstruction import classifier_name
    from tok1d.inference import images as sources
    from tok1d.pictures import save_png
    from tok1d.zoo.card import padding_of
    from tok1d.zoo.weights import fingerprint

    tokenizer = load_tokenizer(model, device)
    pad, place = padding_of(tokenizer), next(tokenizer.parameters()).device
    folder = files.new_folder(out, overwrite=overwrite)
    images = sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root)
    classifier = protocol.classifier_for(data, tokenizer.config, place, pad=pad)
    found = swap(tokenizer, images, classifier, num_images=num, pad=pad)
    save_png(swap_picture(tokenizer, images, num_images=num), folder / "swap.png")
    content = {
        "model": model,
        "data": data,
        "weights_hash": fingerprint(tokenizer),
        "reference": images.fingerprint(),
        "judge": None if classifier is None else classifier_name(classifier),
        "variants": [each.to_json() for each in found],
    }
    files.write_text(folder / "swap.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(f"{found[0].num} images in pairs of different classes; rows of the image: originals, then these variants")
    for each in found:
        print(f"{each.variant:30s} {each.describe()}")
    print(f"record: {folder / 'swap.json'}")
    print(f"image: {folder / 'swap.png'}")


@analyze_app.command("mixture")
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
    import json
    from dataclasses import asdict

    from tok1d import files
    from tok1d.analyze.mixture import collect_tokens, fit_mixtures
    from tok1d.inference import images as sources

    one_of("--covariance", covariance, ("diag", "full"))
    counts = parse_counts(components, "--components", 1, num)
    fit_seeds = parse_counts(seeds, "--seeds", 0, 2**32 - 1)
    tokenizer = load_tokenizer(model, device)
    folder = files.new_folder(out, overwrite=overwrite)
    tokens = collect_tokens(
        tokenizer, sources.open_data(data, tokenizer, split=chosen.split, data_root=chosen.data_root), num=num
    )
    found = fit_mixtures(tokens, counts, dims=dims, variance=variance, covariance=covariance, seeds=fit_seeds)  # type: ignore[arg-type]
    files.write_text(
        folder / "mixture.json", json.dumps({"model": model, "data": data, **asdict(found)}, indent=1) + "\n"
    )
    print(f"{found.num} images, {found.dims} principal components with {found.variance:.1%} of the variance")
    for point in found.points:
        print(
            f"{point.components:4d} components, seed {point.seed}: {point.nll:9.3f} nats, "
            f"largest norm of a mean {point.mean_norm:.3f}"
        )
    print(f"record: {folder / 'mixture.json'}")

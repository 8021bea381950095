"""`tok1d analyze`: one command for each analysis of `tok1d.api.analyses`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.analyze.request import (
    Budgets,
    IncrementProducts,
    JudgedReconstructions,
    Maps,
    MixtureFits,
    PrefixCurves,
    Probes,
    Spectra,
    Swaps,
    TokenUses,
)
from tok1d.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    PATH,
    ChosenImages,
    DataRoot,
    Device,
    Overwrite,
    expanded,
    output_folder,
    with_paths,
)
from tok1d.studies.request import Learning, ModeSettings, Ordering

analyze_app = typer.Typer(help="Analyze the information in the tokens of tokenizers.", no_args_is_help=True)

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... DATA",
        help=f"one or several models, then the data. A model: {MODEL_HELP}. The data: {DATA_HELP}",
        show_default=False,
    ),
    PATH,
]


def _run(
    name: str, given: list[str], how: object, chosen: ChosenImages, device: str | None, out: Path, overwrite: bool
) -> None:
    """Run an analysis of `given`, models and then the data; print what it says, and write its files."""
    from tok1d.api import analyses

    folder = output_folder(out, overwrite=overwrite)
    *models, data = given or [""]
    options = {"split": chosen.split, "data_root": chosen.data_root, "device": device}
    found = analyses.run(name, models, data, how, say=print, **options)
    found.save(folder)
    print(f"{found.said}\nrecord: {folder / f'{name}.json'}\nplot: {folder / f'{name}.png'}")


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
    _run("prefix", models, how, chosen, device, out, overwrite)


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
    _run("increments", models, how, chosen, device, out, overwrite)


@analyze_app.command("spectrum")
@with_paths
@expanded
def analyze_spectrum(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for spectrum.json and spectrum.png")],
    chosen: ChosenImages,
    how: Spectra,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Power spectra of reconstructions by number of tokens against the originals, and semantic agreement beside them.

    Few decoding steps, a low temperature or a shift remove high frequencies at every number of tokens and hide the
    effect of the tokens: --steps 25 --temperature 1 --shift 1 samples a flow decoder without them.
    """
    _run("spectrum", models, how, chosen, device, out, overwrite)


@analyze_app.command("probe")
@with_paths
@expanded
def analyze_probe(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for probe.json and probe.png")],
    how: Probes,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Accuracy of a linear probe on the first tokens, concatenated and averaged, with pixels and PCA beside it.

    Fits ridge regressions on the training images and measures them on the test images; nothing is random. The encoder
    of a class-conditional tokenizer receives the null class.
    """
    _run("probe", models, how, ChosenImages(data_root=data_root), device, out, overwrite)


@analyze_app.command("semantics")
@with_paths
@expanded
def analyze_semantics(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for semantics.json and semantics.png")],
    chosen: ChosenImages,
    how: JudgedReconstructions,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Accuracy of a classifier or pretrained network on reconstructions by number of tokens, against the originals.

    Measured as judge_accuracy and semantic_agreement of tok1d evaluate reconstruction.
    """
    _run("semantics", models, how, chosen, device, out, overwrite)


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
    _run("mixture", models, how, ChosenImages(data_root=data_root), device, out, overwrite)


@analyze_app.command("map")
@with_paths
@expanded
def analyze_map(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for map.json and map.png")],
    chosen: ChosenImages,
    how: Maps,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Map of the tokens coloured by class (t-SNE or UMAP), with silhouette and nearest-neighbour accuracy beside it.

    Silhouette and accuracy are measured between the tokens, not on the map, and beside them between the pixels.
    """
    _run("map", models, how, chosen, device, out, overwrite)


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
    _run("swap", models, how, chosen, device, out, overwrite)


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
    _run("idle", models, how, chosen, device, out, overwrite)


@analyze_app.command("budget")
@with_paths
@expanded
def analyze_budget(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for budget.json and budget.png")],
    chosen: ChosenImages,
    how: Budgets,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """As many leading tokens as an image needs for a quality, against as many for every image; which images need many.

    Numbers are chosen by decoding all prefixes and, where the tokenizer has one, by its budget head.
    """
    _run("budget", models, how, chosen, device, out, overwrite)


@analyze_app.command("learnability")
@with_paths
@expanded
def analyze_learnability(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for learnability.json and learnability.png")],
    how: Learning,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """How easily a small generator learns the tokens: held-out loss over steps, and distances of its samples.

    Distances: of samples to reconstructions of training images, of these to the images, and of samples to the images.
    """
    _run("learnability", models, how, ChosenImages(data_root=data_root), device, out, overwrite)


@analyze_app.command("order")
@with_paths
@expanded
def analyze_order(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for order.json and order.png")],
    how: Ordering,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Held-out loss of a small causal generator on the tokens in order, reversed, and in one fixed random order.

    CARD for continuous tokens, LlamaGen for ids. --repeats 3 shows how much of a difference is of the training's seed.
    """
    _run("order", models, how, ChosenImages(data_root=data_root), device, out, overwrite)


@analyze_app.command("modes")
@with_paths
@expanded
def analyze_modes(
    out: Annotated[Path, typer.Option(help="folder for modes.json and modes.png")],
    how: ModeSettings,
    overwrite: Overwrite = False,
) -> None:
    """Error of a small SiT on synthetic tokens with a known score, by number of modes and of training samples.

    The tokens are a mixture of Gaussians, so the exact score is known at every time. Needs no model and no data.
    """
    _run("modes", [], how, ChosenImages(), None, out, overwrite)

"""`tok1d analyze spectrum`, `probe`, `map` and `semantics`: analyses of several tokenizers in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.analyze.request import JudgedReconstructions, Maps, Probes, Spectra
from tok1d.cli.analyze import analyze_app
from tok1d.cli.options import ChosenImages, DataRoot, Device, Overwrite, expanded, output_folder, with_paths
from tok1d.cli.several import Models, models_and_data


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
    _run("spectrum", models, how, chosen, device, output_folder(out, overwrite=overwrite))


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
    _run(
        "probe",
        models,
        how,
        ChosenImages(split="test", data_root=data_root),
        device,
        output_folder(out, overwrite=overwrite),
    )


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
    _run("map", models, how, chosen, device, output_folder(out, overwrite=overwrite))


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
    _run("semantics", models, how, chosen, device, output_folder(out, overwrite=overwrite))


def _run(name: str, models: list[str], how: object, chosen: ChosenImages, device: str | None, folder: Path) -> None:
    from tok1d.api.analyses import ANALYSES, open_subjects

    names, data = models_and_data(models)
    found = ANALYSES[name][1](open_subjects(names, data, chosen.split, chosen.data_root, device), how, print)
    found.save(folder)
    print(found.said)
    print(f"record: {folder / f'{name}.json'}\nplot: {folder / f'{name}.png'}")

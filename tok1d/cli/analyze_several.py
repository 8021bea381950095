"""`tok1d analyze spectrum`, `probe`, `map` and `semantics`: analyses of several tokenizers in one call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tok1d.analyze.request import JudgedReconstructions, Maps, Probes, Spectra
from tok1d.cli.analyze import analyze_app
from tok1d.cli.options import ChosenImages, DataRoot, Device, Overwrite, expanded, output_folder, with_paths
from tok1d.cli.several import Models, label_of, open_subjects, reported, training_images, write_analysis


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
    from tok1d.analyze.judged import judges, settings_of_each
    from tok1d.analyze.spectrum import plot_spectra, spectrum

    subjects = open_subjects(models, device, chosen)
    tokenizers = [each.tokenizer for each in subjects]
    settings = settings_of_each(tokenizers, how, partial=how.partial, components=how.components)
    measures = [
        judges(each.tokenizer, each.data, how.network, ("semantic",), each.images.class_names) for each in subjects
    ]
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        fitted = training_images(each, chosen.data_root) if how.components else None
        result = spectrum(each.tokenizer, each.images, own, measured, training=fitted, name=each.name)
        found[each.name] = result
        records.append(reported(each, result, seed=how.seed))
        for reason in measured.missing.values():
            print(f"{each.name}: no semantic agreement: {reason}")
    write_analysis(folder, "spectrum", records, [each.said() for each in found.values()], plot_spectra(found))


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
    from tok1d.analyze.probe import plot_probes, probe
    from tok1d.data.subset import subset

    subjects = open_subjects(models, device, ChosenImages(split="test", data_root=data_root))
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each in subjects:
        train = training_images(each, data_root)
        own = replace(how, label=label_of(each, subjects, how.label))
        result = found[each.name] = probe(each.tokenizer, train, each.images, own, name=each.name)
        records.append(reported(each, result, seed=None, training=subset(train, result.num_train).fingerprint()))
    write_analysis(folder, "probe", records, [each.said() for each in found.values()], plot_probes(found))


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
    from tok1d.analyze.token_map import plot_maps, token_map

    subjects = open_subjects(models, device, chosen)
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each in subjects:
        own = replace(how, label=label_of(each, subjects, how.label))
        result = found[each.name] = token_map(each.tokenizer, each.images, own, name=each.name)
        records.append(reported(each, result, seed=how.seed))
    write_analysis(folder, "map", records, [each.said() for each in found.values()], plot_maps(found))


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
    from tok1d.analyze.judged import judges, settings_of_each
    from tok1d.analyze.semantics import METRICS, check_networks, plot_semantics, semantics

    subjects = open_subjects(models, device, chosen)
    settings = settings_of_each([each.tokenizer for each in subjects], how)
    measures = [judges(each.tokenizer, each.data, how.network, METRICS, each.images.class_names) for each in subjects]
    for measured in measures:
        check_networks(measured)
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        result = found[each.name] = semantics(each.tokenizer, each.images, own, measured)
        records.append(reported(each, result, seed=how.seed))
    write_analysis(folder, "semantics", records, [each.said() for each in found.values()], plot_semantics(found))

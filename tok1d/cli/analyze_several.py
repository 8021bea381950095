"""`tok1d analyze spectrum`, `probe`, `map` and `semantics`: analyses of several tokenizers in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.analyze.request import Spectra
from tok1d.cli.analyze import analyze_app, facts
from tok1d.cli.options import ChosenImages, Device, Overwrite, expanded, output_folder, with_paths
from tok1d.cli.several import Models, open_subjects, write_analysis


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
    settings = settings_of_each([each.tokenizer for each in subjects], how, partial=how.partial)
    measures = [judges(each.tokenizer, each.data, how.network, ("semantic",)) for each in subjects]
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        result = found[each.name] = spectrum(each.tokenizer, each.images, own, measured, name=each.name)
        missing = [f"no semantic agreement: {reason}" for reason in measured.missing.values()]
        for line in (*result.describe(), *missing):
            print(f"{each.name}: {line}")
        about = facts(each.name, each.data, each.tokenizer, each.images, result.num, seed=how.seed)
        records.append({**about, **result.to_json()})
    write_analysis(folder, "spectrum", records, [each.said() for each in found.values()], plot_spectra(found))

"""`tok1d compare`: the training curves of runs and of their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import PATH, Overwrite, hold_output, output_folder


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, finished or in progress", show_default=False)],
    to: Annotated[
        str,
        typer.Option(help="recipe, curve file or run to compare with; default: the most similar recipe with a curve"),
        PATH,
    ] = "",
    out: Annotated[Path | None, typer.Option(help="folder for curves.png, curves.html and compare.json")] = None,
    save_curve: Annotated[
        Path | None,
        typer.Option(help="only write the curve of a finished run to this file, to distribute it with its recipe"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare the training curves of runs with the stored curve of their recipe.

    Prints whether a run stays within the band of the curve, or the step from which it is outside. Recipe, batch size or
    number of steps may differ from those of the curve; the differences are listed.
    """
    import json

    from tok1d.compare import curves
    from tok1d.compare import runs as module
    from tok1d.errors import InputError
    from tok1d.evaluate.baselines import learned_nothing

    read = [curves.read_run(run) for run in runs]
    if save_curve is not None:
        if len(read) != 1:
            raise InputError(f"--save-curve: expected one run, got {len(read)}")
        hold_output(save_curve)
        if save_curve.exists() and not overwrite:
            raise InputError(f"--save-curve: {save_curve} exists; pass --overwrite to replace it")
        curves.save_curve(read[0], save_curve)
        print(f"curve: {save_curve}")
        return
    folder = output_folder(out, overwrite=overwrite) if out is not None else None
    compared = module.compare_all(read, to)
    if as_json:
        print(json.dumps([each.to_json() for each in compared], indent=1))
    for each in () if as_json else compared:
        print(each.verdict)
        for line in (*each.difference_lines(), *each.final_lines(), *filter(None, [learned_nothing(each.run.final)])):
            print(f"  {line}")
    if folder is not None:
        module.write(compared, folder)
        if not as_json:
            print(f"plot: {folder / 'curves.png'}\npage: {folder / 'curves.html'}")

"""`tok1d compare`: runs and the curve of their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import Overwrite


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, finished or in progress", show_default=False)],
    to: Annotated[
        str,
        typer.Option(help="compare with the curve of this recipe, curve file or run; default: of the nearest recipe"),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="folder for curves.png, curves.html and compare.json")] = None,
    save_curve: Annotated[
        Path | None, typer.Option(help="write the curve of a finished run to this file, to ship with its recipe")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare runs with the shipped curve of their recipe: within its band, or outside since which step.

    A run may have another recipe, batch size or number of steps than the reference; the differences are listed.
    """
    import json

    from tok1d import files
    from tok1d.compare import curves
    from tok1d.compare import runs as module
    from tok1d.errors import InputError

    read = [curves.read_run(run) for run in runs]
    if save_curve is not None:
        if len(read) != 1:
            raise InputError(f"--save-curve: expected one run, got {len(read)}")
        if save_curve.exists() and not overwrite:
            raise InputError(f"--save-curve: {save_curve} exists; pass --overwrite to replace it")
        curves.save_curve(read[0], save_curve)
        print(f"curve: {save_curve}")
        return
    folder = files.new_folder(out, overwrite=overwrite) if out is not None else None
    compared = [module.compare(run, curves.reference_for(run, to)) for run in read]
    if as_json:
        print(json.dumps([each.to_json() for each in compared], indent=1))
    for each in () if as_json else compared:
        print(each.verdict)
        for line in (*each.difference_lines(), *each.final_lines()):
            print(f"  {line}")
    if folder is not None:
        module.write(compared, folder)
        if not as_json:
            print(f"picture: {folder / 'curves.png'}\npage: {folder / 'curves.html'}")

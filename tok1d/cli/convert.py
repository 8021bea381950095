"""`tok1d export` and `tok1d convert`: weights to share, and published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import Overwrite, one_of, print_records


def export(
    run: Annotated[Path, typer.Argument(help="the run's folder")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    overrides: Annotated[list[str] | None, typer.Argument(help="evaluate.KEY=VALUE, as many as wanted")] = None,
    dtype: Annotated[str, typer.Option(help="how weights are stored: float16 or float32")] = "float16",
    generator: Annotated[str, typer.Option(help="for a tokenizer: name of a generator made for it")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Cast the weights of a finished run, measure them after the cast, and write them with their card."""
    from tok1d import files
    from tok1d.train import export as module

    one_of("--dtype", dtype, ("float16", "float32"))
    folder = files.new_folder(out, overwrite=overwrite)
    print_records(module.export(run, folder, dtype=dtype, generator=generator, overrides=overrides or ()))
    print(f"model: {folder}")


def convert(
    format: Annotated[
        str,
        typer.Argument(
            help="semanticist-tokenizer or -ar, maetok-tokenizer, -sit or -dit, lightningdit, titok, llamagen, "
            "maskgit, kl16"
        ),
    ],
    path: Annotated[Path, typer.Argument(help="published weights: .safetensors, .pt or .pkl")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, what the file alone cannot tell; a wrong key lists those of the format"),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="of a generator: the model whose tokens it makes, so that its samples can be decoded")
    ] = "",
    overwrite: Overwrite = False,
) -> None:
    """Turn published weights into a tok1d model folder."""
    from tok1d import files
    from tok1d.zoo import convert as module

    folder = files.new_folder(out, overwrite=overwrite)
    print(f"model: {module.convert(format, path, folder, options or [], tokenizer=tokenizer)}")

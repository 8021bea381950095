"""`tok1d export`, `export-onnx` and `convert`: model folders from runs and published weights, graphs of tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tok1d.cli.options import PATH, Model, Overwrite, one_of, output_folder, print_records


def export(
    run: Annotated[Path, typer.Argument(help="folder of the run")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="evaluate.KEY=VALUE, changes of the recipe's evaluation; repeatable")
    ] = None,
    dtype: Annotated[str, typer.Option(help="type of the stored weights: float16 or float32")] = "float16",
    generator: Annotated[
        str,
        typer.Option(
            help="for a tokenizer: the model of a generator trained on its tokens, which tok1d generate then finds"
        ),
        PATH,
    ] = "",
    tokenizer: Annotated[
        str,
        typer.Option(help="for a generator: its tokenizer, if it is no longer where the training found it"),
        PATH,
    ] = "",
    licence: Annotated[
        str, typer.Option(help="licence of the weights for the card, such as cc-by-4.0; default: that of the run")
    ] = "",
    picture: Annotated[
        bool | None,
        typer.Option(
            "--picture/--no-picture",
            help="a picture of the model's output in the card; default: not of own images, which it would show",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cast the weights of a finished run to another type, evaluate them, and write a model folder with its card."""
    from tok1d.train import export as module

    one_of("--dtype", dtype, ("float16", "float32"))
    folder = output_folder(out, overwrite=overwrite)
    names = {"generator": generator, "tokenizer": tokenizer, "licence": licence}
    print_records(module.export(run, folder, dtype=dtype, picture=picture, overrides=overrides or (), **names))
    print(f"model: {folder}")


def export_onnx(
    model: Model,
    out: Annotated[Path, typer.Option(help="folder to write")],
    part: Annotated[
        str,
        typer.Option(
            help="encoder, decoder or all; of a flow decoder the network, which the sampler calls at each step"
        ),
    ] = "all",
    overwrite: Overwrite = False,
) -> None:
    """Export a tokenizer to ONNX, checked against PyTorch, with a description for programs without torch."""
    from tok1d.zoo.onnx import export as module

    one_of("--part", part, ("encoder", "decoder", "all"))
    folder = output_folder(out, overwrite=overwrite)
    print(module.export_onnx(model, folder, part=part, overwrite=overwrite))
    print(f"description: {folder / module.DESCRIPTION}")


def _help_options(wanted: bool) -> None:
    """Print the options of every format, with the published defaults, and end the command."""
    if not wanted:
        return
    from tok1d.zoo.adapters.settings import declared
    from tok1d.zoo.convert import FORMATS

    for format, function in FORMATS.items():
        print(format)
        for each in declared(function):
            print(f"  {each.key}: {each.setting.help}; {each.kind}; default: {each.default_text}")
    raise typer.Exit


def convert(
    format: Annotated[
        str,
        typer.Argument(
            help="semanticist-tokenizer or -ar, maetok-tokenizer, -sit or -dit, lightningdit, titok, llamagen, "
            "maskgit, kl16, vavae"
        ),
    ],
    path: Annotated[Path, typer.Argument(help="published weights: .safetensors, .pt or .pkl")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, settings that the file does not state, see --help-options"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="of a file or folder with both: ema (averaged weights) or raw; default: ema where there are some"
        ),
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="for a generator: the model of its tokenizer"), PATH] = "",
    help_options: Annotated[
        bool,
        typer.Option("--help-options", is_eager=True, callback=_help_options, help="list the options of every format"),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert published weights to a tok1d model folder."""
    from tok1d.zoo import convert as module

    if weights is not None:
        one_of("--weights", weights, ("ema", "raw"))
    folder = output_folder(out, overwrite=overwrite)
    which: Any = weights
    print(f"model: {module.convert(format, path, folder, options or [], tokenizer=tokenizer, weights=which)}")

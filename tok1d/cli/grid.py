"""The command that measures every combination of lists of settings: `tok1d evaluate grid`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tok1d.cli.evaluate import AnyReference, Metrics, Network, Quiet, ReferenceFile, Shard
from tok1d.cli.options import DATA_HELP, DataRoot, Device, EightBit, Seed, Unconditional, WeakModel, one_of

if TYPE_CHECKING:
    from tok1d.evaluate.grid import Cell
    from tok1d.evaluate.job import Job
    from tok1d.evaluate.request import Opened, Request


def evaluate_grid(
    model: Annotated[
        str,
        typer.Argument(
            help="MODEL[,MODEL...]: generators, or tokenizers; folders, names, checkpoints RUN/checkpoints/step-...pt",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="folder of cells/, grid.json and grid.csv; what is finished there is not done again")
    ],
    data: Annotated[
        str,
        typer.Argument(help=f"{DATA_HELP}; of generators default: fashion_mnist, for those that were trained on it"),
    ] = "",
    more: Annotated[
        list[str] | None, typer.Option("--model", help="one more model, its name taken whole; may come again")
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="also every checkpoint that is kept of MODEL, a run RUN or RUN/model")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="of checkpoints: ema, raw, or both with a comma; default: ema where there is one")
    ] = "",
    guidance: Annotated[str, typer.Option(help="scales, such as 1,1.5,2; of tokenizers the decoder's")] = "",
    guidance_schedule: Annotated[str, typer.Option(help="some of constant,linear,power_cosine")] = "",
    guidance_interval: Annotated[str, typer.Option(help="when it guides, such as 0:1,0.2:0.8")] = "",
    sampler: Annotated[str, typer.Option(help="of the generator, such as sde,euler")] = "",
    steps: Annotated[str, typer.Option(help="of the generator, such as 10,25; of tokenizers the decoder's")] = "",
    temperature: Annotated[str, typer.Option(help="such as 0.9,1; what of, tok1d generate --help says")] = "",
    top_k: Annotated[str, typer.Option(help="LlamaGen: such as 0,100")] = "",
    top_p: Annotated[str, typer.Option(help="LlamaGen: such as 0.9,1")] = "",
    keep: Annotated[str, typer.Option(help="numbers of leading tokens to decode, all in one pass of a cell")] = "",
    decoder_steps: Annotated[str, typer.Option(help="of a generator's diffusion decoder, such as 4,10")] = "",
    decoder_guidance: Annotated[str, typer.Option(help="of a generator's decoder by the tokens, such as 1,2")] = "",
    decoder_solver: Annotated[str, typer.Option(help="of a generator's decoder, such as euler,heun")] = "",
    solver: Annotated[str, typer.Option(help="of a tokenizer's decoder, such as euler,heun")] = "",
    label: Annotated[str, typer.Option(help="given to SMAP tokenizers, such as true,null")] = "",
    num: Annotated[
        int | None, typer.Option(min=1, help="samples, default 1000; of tokenizers the first images, default all")
    ] = None,
    classes: Annotated[str, typer.Option(help="of the samples: balanced (default), random, or train")] = "",
    split: Annotated[str, typer.Option(help="reference of the samples: images of train (default) or test")] = "",
    unconditional: Unconditional = False,
    weak_model: WeakModel = "",
    metrics: Metrics = "",
    network: Network = None,
    reference: ReferenceFile = None,
    allow_other_reference: AnyReference = False,
    eight_bit: EightBit = None,
    best: Annotated[
        str, typer.Option(help="sort the table by this metric, such as label_agreement, fd or fd@inception")
    ] = "",
    shard: Shard = "",
    quiet: Quiet = False,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 250,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Evaluate every combination of lists of settings, models and checkpoints; one table, the best marked.

    A cell is what evaluate generation (of tokenizers reconstruction) measures;
    DIR/cells/NAME.json is its --out. Before any is measured, each makes one image.
    Interrupted, the same command goes on, also inside a cell; longer lists measure
    what is new.
    """
    from tok1d.evaluate import grid
    from tok1d.evaluate.generation import CLASSES
    from tok1d.evaluate.setup import parse_metrics
    from tok1d.inference.labels import LABELS

    kinds = grid.word_list(weights, "--weights") if weights else []
    for each in kinds:
        one_of("--weights", each, ("ema", "raw"))
    models = _models([*grid.word_list(model, "MODEL"), *(more or [])], checkpoints, kinds)
    lists = {
        "sampler": sampler,
        "solver": solver,
        "steps": steps,
        "guidance_schedule": guidance_schedule,
        "guidance_interval": guidance_interval,
        "guidance": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "label": label,
        "decoder_solver": decoder_solver,
        "decoder_steps": decoder_steps,
        "decoder_guidance": decoder_guidance,
    }
    fixed: dict[str, Any] = {
        "classes": classes,
        "split": split,
        "unconditional": unconditional,
        "weak_model": weak_model,
    }
    kind = _kind(models, [name for name, value in {**lists, **fixed}.items() if value])
    axes = {"model": models, **grid.parse_axes(lists)}
    for name, choices in (("label", LABELS), ("classes", tuple(CLASSES)), ("split", ("train", "test"))):
        for each in axes.get(name, [fixed[name]] if fixed.get(name) else []):
            one_of(grid.option(name), each, choices)
    base = kind(
        model=models[0],
        data=data,
        keep=keep,
        num=num,
        metrics=parse_metrics(metrics),
        network=tuple(network or ()),
        reference=tuple(reference or ()),
        allow_other_reference=allow_other_reference,
        eight_bit=eight_bit,
        batch_size=batch_size,
        seed=seed,
        data_root=data_root,
        device=device,
        **{name: value for name, value in fixed.items() if value},
    )
    _run(grid.cells_of(base, axes), axes, out, best, shard, quiet)


def _models(names: list[str], checkpoints: bool, weights: list[str]) -> list[str]:
    """The models of a grid: those named, and checkpoints in the kinds of weights that are wanted of them."""
    from tok1d.errors import InputError
    from tok1d.zoo.checkpoints import is_checkpoint, kept_checkpoints

    found: list[str] = []
    kept = {name: kept_checkpoints(name) if checkpoints else [] for name in names}
    if checkpoints and not any(kept.values()):
        raise InputError(f"--checkpoints: expected the folder of a run that keeps some, got none in {names[0]}")
    for name in names:
        is_run = bool(kept[name]) and not (Path(name) / "config.json").is_file()
        for each in kept[name] if is_run else [*kept[name], name]:
            found += [f"{each}:{kind}" for kind in weights] if weights and each.endswith(".pt") else [each]
    if weights and not any(is_checkpoint(name) for name in found):
        raise InputError("--weights: chooses between weights of checkpoints, there are none; pass --checkpoints")
    return list(dict.fromkeys(found))


def _kind(models: list[str], given: list[str]) -> type[Request]:
    """What is measured of the models, samples or reconstructions; options of the other are refused."""
    from dataclasses import fields

    from tok1d.errors import InputError
    from tok1d.evaluate.grid import option
    from tok1d.evaluate.request import Generation, Reconstruction
    from tok1d.zoo.checkpoints import is_generator

    drawing = [is_generator(model) for model in models]
    if len(set(drawing)) > 1:
        pair = [models[drawing.index(kind)] for kind in (True, False)]
        raise InputError(f"MODEL: expected only generators or only tokenizers, got {pair[0]} and {pair[1]}")
    kind = Generation if drawing[0] else Reconstruction
    known = {field.name for field in fields(kind)}
    for name in given:
        if name not in known:
            what = "a generator" if drawing[0] else "a tokenizer"
            other = {"solver": "--decoder-solver"} if drawing[0] else {}
            other |= {each: f"--{each.removeprefix('decoder_')}" for each in given if each.startswith("decoder_")}
            remedy = f"use {other[name]}" if name in other else "leave it out"
            raise InputError(f"{option(name)}: {models[0]} is {what} and has none; {remedy}")
    return kind


def _run(requests: list[Request], axes: dict[str, list[Any]], out: Path, best: str, shard: str, quiet: bool) -> None:
    from tok1d.devices import process_part
    from tok1d.errors import InputError
    from tok1d.evaluate.grid import Cell, described, find_metric, varying
    from tok1d.evaluate.request import Opened
    from tok1d.evaluate.setup import open_job
    from tok1d.inference.cache import parse_part
    from tok1d.zoo.record import read_records

    if out.exists() and not out.is_dir():
        raise InputError(f"--out: expected a folder, {out} is a file")
    part = parse_part(shard) if shard else process_part()
    opened, own = Opened(), varying(axes)
    paths, metrics = [], dict[str, None]()
    for request in requests:
        name, names = _attempted(request, opened, out / "cells", described(request, own))
        paths.append(out / "cells" / f"{name}.json")
        metrics |= dict.fromkeys(names)
    chosen = find_metric(best, list(metrics)) if best else ""
    for number, (request, path) in enumerate(zip(requests, paths), start=1):
        if path.exists():
            _tidy(path)
            continue
        where = f"cell {number}/{len(requests)}"
        if not quiet:
            print(f"{where}: {described(request, own) or request.model}", flush=True)
        _measure(request, opened, path, open_job(path, shard, quiet=quiet, label=where))
    if not all(path.exists() for path in paths):
        print(f"part {part[0]}/{part[1]} is done; the last part to finish writes {out / 'grid.json'}")
        return
    _tell([Cell(request, path.stem, read_records(path)) for request, path in zip(requests, paths)], axes, out, chosen)


def _attempted(request: Request, opened: Opened, folder: Path, about: str) -> tuple[str, list[str]]:
    """A cell's name and what it may measure; if it is not finished, it has made one image as a trial."""
    from tok1d.errors import Tok1dError
    from tok1d.evaluate.grid import cell_name
    from tok1d.evaluate.measures import names_of

    try:
        prepared = request.prepare(opened)
        name = cell_name(request, prepared.identity)
        if not (folder / f"{name}.json").exists():
            prepared.attempt()
    except Tok1dError as error:
        raise type(error)(f"{error} (in the cell {about})" if about else str(error)) from None
    return name, names_of(prepared.measures, request.kind)


def _tidy(path: Path) -> None:
    """Remove what a kill left beside a cell's finished record: its blocks, and torn files."""
    import shutil

    from tok1d.evaluate.job import drop_torn

    drop_torn(path)
    shutil.rmtree(path.with_name(f"{path.name}.parts"), ignore_errors=True)


def _measure(request: Request, opened: Opened, path: Path, job: Job) -> None:
    from tok1d.evaluate.job import drop_torn
    from tok1d.zoo.record import write_records

    def finish(records: list[Any]) -> None:
        drop_torn(path)
        write_records(path, records)

    job.finish = finish
    request.prepare(opened).measure(job)


def _tell(cells: list[Cell], axes: dict[str, list[Any]], out: Path, best: str) -> None:
    """Write grid.json and grid.csv, and show the table."""
    import json

    from rich.console import Console

    from tok1d.evaluate import grid
    from tok1d.evaluate.report import shared_protocol
    from tok1d.files import write_text

    rows = grid.rows_of(cells)
    write_text(out / "grid.json", json.dumps(grid.to_json(cells, axes), indent=1, allow_nan=False) + "\n")
    write_text(out / "grid.csv", grid.csv_text(rows, list(axes)))
    console = Console(highlight=False, markup=False)
    console.print(grid.table(grid.sorted_by(rows, best) if best else rows, grid.varying(axes)))
    console.print(grid.legend(rows))
    if shared := shared_protocol([record for cell in cells for record in cell.records]):
        console.print(shared)
    print(f"records: {out / 'grid.json'}, table: {out / 'grid.csv'}")

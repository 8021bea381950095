"""`tok1d evaluate grid`: evaluates all combinations of lists of settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tok1d.cli.options import SHARD_HELP, parameter_of, signed, text_parameter
from tok1d.config.fields import option
from tok1d.config.options import Option, flag_of, options_of, parse_words
from tok1d.evaluate.request import Generation, Reconstruction, Request

if TYPE_CHECKING:
    from tok1d.evaluate.grid import Axes, Cell
    from tok1d.evaluate.job import Job
    from tok1d.evaluate.prepare import Opened
    from tok1d.zoo.record import Record

KINDS: tuple[type[Request], ...] = (Generation, Reconstruction)
# Every option of a request by name, for a generator and for a tokenizer.
OPTIONS: list[dict[str, Option]] = [{each.name: each for each in options_of(kind)} for kind in KINDS]


@dataclass(frozen=True)
class GridSettings:
    """The models of a grid, and how the grid is evaluated."""

    model: str = option(
        help="one or more models, separated by commas, all generators or all tokenizers: folders, names, or "
        "checkpoints RUN/checkpoints/step-...pt",
        argument=True,
        path="listed",
    )
    out: Path = option(
        help="folder for the results: cells/, grid.json and grid.csv; finished cells are not measured again"
    )
    more: tuple[str, ...] = option(
        (), "one more model; its name may contain commas; repeatable", repeated=True, flags="--model", path="path"
    )
    checkpoints: bool = option(False, "also evaluate all checkpoints of the run MODEL (RUN or RUN/model)")
    weights: tuple[str, ...] = option(
        (), "weights of checkpoints: ema, raw or ema,raw; default: ema if the run has them"
    )
    best: str = option("", "sort the table by this metric, such as label_agreement, fd or fd@inception")
    shard: str = option("", SHARD_HELP)
    quiet: bool = option(False, "no progress bar")


def _evaluate_grid(grid: GridSettings, given: dict[str, object]) -> None:
    """Evaluate all combinations of lists of settings, models and checkpoints, and print a table.

    Each combination is a cell, which is measured as by evaluate generation, or for
    tokenizers by evaluate reconstruction. Its records are in OUT/cells/NAME.json.
    To find wrong settings early, one image is made for each cell first. After an
    interruption the same command resumes. If lists become longer, only the new
    cells are measured.
    """
    from tok1d.cli.options import one_of
    from tok1d.evaluate.grid import cells_of

    for each in grid.weights:
        one_of("--weights", each, ("ema", "raw"))
    models = _models([*parse_words(grid.model, "MODEL"), *grid.more], grid.checkpoints, list(grid.weights))
    kind, options = _kind(models, list(given))
    axes: dict[str, list[Any]] = {"model": models}
    fixed: dict[str, Any] = {}
    for name, value in given.items():
        if options[name].is_axis:
            axes[name] = options[name].values(str(value))
        else:
            fixed[name] = options[name].value(value)
    base = kind(model=models[0], **fixed)
    _run(cells_of(base, axes), axes, grid)


def _parameters() -> Iterator[inspect.Parameter]:
    """The options of the grid, then those of both kinds of requests."""
    yield from map(parameter_of, options_of(GridSettings))
    for name in dict.fromkeys(name for options in OPTIONS for name in options if name != "model"):
        kinds = [options[name] for options in OPTIONS if name in options]
        helps = list(dict.fromkeys(each.help for each in kinds))
        text = "; tokenizers: ".join(helps)
        if kinds[0].is_axis:
            form = "LOW:HIGH" if kinds[0].hint == tuple[float, float] else "values"
            yield text_parameter(name, f"comma-separated {form}: {text}")
        elif kinds[0].choices:
            yield text_parameter(name, f"{text}; default: {kinds[0].default}")
        else:
            yield parameter_of(replace(kinds[0], help=text))


def _command() -> Callable[..., None]:
    own = list(options_of(GridSettings))
    parameters = list(_parameters())
    defaults = {each.name: each.default for each in parameters}

    def run(**values: object) -> None:
        grid = GridSettings(**{each.name: each.value(values.pop(each.name)) for each in own})
        _evaluate_grid(grid, {name: value for name, value in values.items() if value not in (defaults[name], None, "")})

    return signed(run, _evaluate_grid, parameters)


evaluate_grid = _command()


def _models(names: list[str], checkpoints: bool, weights: list[str]) -> list[str]:
    """The models of a grid: the named ones, and checkpoints with each of the chosen kinds of weights."""
    from tok1d.errors import InputError
    from tok1d.zoo.checkpoints import is_checkpoint, kept_checkpoints

    found: list[str] = []
    kept = {name: kept_checkpoints(name) if checkpoints else [] for name in names}
    if checkpoints and not any(kept.values()):
        raise InputError(f"--checkpoints: expected the folder of a run with checkpoints, got none in {names[0]}")
    for name in names:
        is_run = bool(kept[name]) and not (Path(name) / "config.json").is_file()
        for each in kept[name] if is_run else [*kept[name], name]:
            found += [f"{each}:{kind}" for kind in weights] if weights and each.endswith(".pt") else [each]
    if weights and not any(is_checkpoint(name) for name in found):
        raise InputError("--weights: expected checkpoints among the models, got none; pass --checkpoints")
    return list(dict.fromkeys(found))


def _kind(models: list[str], given: list[str]) -> tuple[type[Request], dict[str, Option]]:
    """The kind of request for the models, and its options.

    Raises:
        InputError: models of both kinds, or a given option that this kind does not have.
    """
    from tok1d.errors import InputError
    from tok1d.zoo.checkpoints import is_generator

    generates = [is_generator(model) for model in models]
    if len(set(generates)) > 1:
        pair = [models[generates.index(kind)] for kind in (True, False)]
        raise InputError(f"MODEL: expected only generators or only tokenizers, got {pair[0]} and {pair[1]}")
    index = 0 if generates[0] else 1
    for name in given:
        if name not in OPTIONS[index]:
            what = "a tokenizer" if index else "a generator"
            remedy = f"use {flag_of(name.removeprefix('decoder_'))}" if name.startswith("decoder_") else "leave it out"
            raise InputError(f"{flag_of(name)}: {models[0]} is {what} without this option; {remedy}")
    return KINDS[index], OPTIONS[index]


def _run(requests: list[Request], axes: Axes, grid: GridSettings) -> None:
    from tok1d.devices import process_part
    from tok1d.evaluate.grid import Cell, described, find_metric, varying
    from tok1d.evaluate.prepare import Opened
    from tok1d.evaluate.setup import open_job
    from tok1d.inference.cache import parse_part
    from tok1d.zoo.record import read_records

    out, own = grid.out, varying(axes)
    _check_out(out)
    part, opened = parse_part(grid.shard) if grid.shard else process_part(), Opened()
    paths, metrics = [], dict[str, None]()
    for request in requests:
        name, names = _attempted(request, opened, out / "cells", described(request, own))
        paths.append(out / "cells" / f"{name}.json")
        metrics |= dict.fromkeys(names)
    best = find_metric(grid.best, list(metrics)) if grid.best else ""
    for number, (request, path) in enumerate(zip(requests, paths), start=1):
        if path.exists():
            _remove_left(path)
            continue
        where = f"cell {number}/{len(requests)}"
        if not grid.quiet:
            print(f"{where}: {described(request, own) or request.model}", flush=True)
        _measure(request, opened, path, open_job(path, grid.shard, quiet=grid.quiet, label=where))
    if not all(path.exists() for path in paths):
        print(f"part {part[0]}/{part[1]} is done; the last part to finish writes {out / 'grid.json'}")
        return
    _report([Cell(request, path.stem, read_records(path)) for request, path in zip(requests, paths)], axes, out, best)


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something else than a grid; raises InputError."""
    from tok1d.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out: expected a folder, {out} is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / "cells").is_dir():
        raise InputError(f"--out: expected a new or empty folder or that of a grid, {out} holds other files")


def _attempted(request: Request, opened: Opened, folder: Path, about: str) -> tuple[str, list[str]]:
    """The name of a cell and its metrics; if the cell is not finished, it decodes one image as a trial."""
    from tok1d.errors import Tok1dError
    from tok1d.evaluate.grid import cell_name
    from tok1d.evaluate.measures import names_of
    from tok1d.evaluate.prepare import prepare

    try:
        prepared = prepare(request, opened)
        name = cell_name(request, prepared.identity)
        if not (folder / f"{name}.json").exists():
            prepared.attempt()
    except Tok1dError as error:
        raise type(error)(f"{error} (in the cell {about})" if about else str(error)) from None
    return name, names_of(prepared.measures, request.kind)


def _remove_left(path: Path) -> None:
    """Remove the blocks and temporary files that a killed process left of a finished cell."""
    import shutil

    from tok1d.evaluate.job import remove_temporary

    remove_temporary(path)
    shutil.rmtree(path.with_name(f"{path.name}.parts"), ignore_errors=True)


def _measure(request: Request, opened: Opened, path: Path, job: Job) -> None:
    from tok1d.evaluate.job import remove_temporary
    from tok1d.evaluate.prepare import prepare
    from tok1d.zoo.record import write_records

    def finish(records: list[Record]) -> None:
        remove_temporary(path)
        write_records(path, records)

    job.finish = finish
    prepare(request, opened).measure(job=job)


def _report(cells: list[Cell], axes: Axes, out: Path, best: str) -> None:
    """Write grid.json and grid.csv, and print the table."""
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

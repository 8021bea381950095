"""`tok1d evaluate`: metrics of reconstructions and samples; the grid and the comparison are in files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tok1d.cli.explain import evaluate_explain
from tok1d.cli.grid import evaluate_grid
from tok1d.cli.options import SHARD_HELP, expanded, print_records
from tok1d.config.fields import option
from tok1d.evaluate.request import Generation, Reconstruction, Request

if TYPE_CHECKING:
    from tok1d.evaluate.job import Job
    from tok1d.evaluate.samples import Save
    from tok1d.zoo.record import Record


@dataclass(frozen=True)
class Output:
    """What an evaluation writes, and which part of it this process does."""

    out: Path | None = option(
        None,
        "write the records to this JSON file; finished blocks are kept in FILE.parts, so that the same command resumes",
    )
    save_samples: Path | None = option(None, "write the images to this .npz file, as the ADM evaluator reads them")
    save_images: Path | None = option(None, "write the images as PNG files into this folder, which is new or empty")
    shard: str = option("", SHARD_HELP)
    quiet: bool = option(False, "no progress bar")


@expanded
def evaluate_reconstruction(request: Reconstruction, output: Output) -> None:
    """Compare reconstructions with their originals: PSNR, SSIM, ... and distances by feature networks."""
    _run(request, output)


@expanded
def evaluate_generation(request: Generation, output: Output) -> None:
    """Compare samples with reference images: label agreement, distances, precision, recall, ... by feature networks."""
    _run(request, output)


def _run(request: Request, output: Output) -> None:
    from tok1d.evaluate.prepare import prepare

    job, save = _job(output)
    _report(prepare(request).measure(job=job, save=save), job, output.out, save)


def _job(output: Output) -> tuple[Job, Save | None]:
    """The job and the images it saves; the records are written before its blocks are removed."""
    from tok1d.errors import ConfigError
    from tok1d.evaluate.job import drop_torn
    from tok1d.evaluate.samples import Save
    from tok1d.evaluate.setup import open_job
    from tok1d.zoo.record import write_records

    out, samples, pictures = output.out, output.save_samples, output.save_images
    for flag, path in (("--out", out), ("--save-samples", samples)):
        if pictures is not None and path is not None and path.resolve().is_relative_to(pictures.resolve()):
            raise ConfigError(f"{flag}: expected a file outside the folder of --save-images, got {path}")
    save = Save(samples, pictures) if samples or pictures else None

    def finish(records: list[Record]) -> None:
        if out is not None:
            write_records(out, records)
        drop_torn(*(path for path in (out, samples) if path is not None))

    return open_job(out, output.shard, quiet=output.quiet, finish=finish, fallback=samples or pictures), save


def _report(records: Sequence[Record], job: Job, out: Path | None, save: Save | None) -> None:
    """Print the records, or which part is done while other processes have not finished theirs."""
    if job.waiting:
        print(f"part {job.part[0]}/{job.part[1]} is done; the last part to finish writes {out or 'the images'}")
        return
    print_records(records)
    if save is not None:
        print(f"images: {', '.join(str(place) for place in (save.batch, save.folder) if place)}")
    if out is not None:
        print(f"records: {out}")


evaluate_app = typer.Typer(help="Measure a model; every number states its protocol.", no_args_is_help=True)
evaluate_app.command("reconstruction")(evaluate_reconstruction)
evaluate_app.command("generation")(evaluate_generation)
evaluate_app.command("grid")(evaluate_grid)
evaluate_app.command("explain")(evaluate_explain)

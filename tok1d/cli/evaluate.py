"""`tok1d evaluate`: metrics of reconstructions and samples. For grid and explain see their modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tok1d.cli.explain import evaluate_explain
from tok1d.cli.grid import evaluate_grid
from tok1d.cli.options import SHARD_HELP, expanded, print_records, with_paths
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
        "write the records to this JSON file; finished blocks are stored in FILE.parts, from which the same command "
        "resumes",
    )
    save_samples: Path | None = option(None, "also write the images to this .npz file, for the ADM evaluator")
    save_images: Path | None = option(None, "also write the images as PNG files into this new or empty folder")
    shard: str = option("", SHARD_HELP)
    quiet: bool = option(False, "no progress bar")
    overwrite: bool = option(False, "replace existing files of --out and --save-samples")


@expanded
def evaluate_reconstruction(request: Reconstruction, output: Output) -> None:
    """Measure reconstructions: PSNR, SSIM, LPIPS, and distances of features such as rFID."""
    _run(request, output)


@expanded
def evaluate_generation(request: Generation, output: Output) -> None:
    """Measure samples of a generator: gFID, KID, Inception Score, precision, recall, label agreement and others."""
    _run(request, output)


def _run(request: Request, output: Output) -> None:
    from tok1d.evaluate.prepare import prepare

    job, save = _job(output)
    prepared = prepare(request)
    records = prepared.measure(job=job, save=save, with_baselines=True)
    _report(records, job, output.out, save, judged=prepared.all_tokens)


def _job(output: Output) -> tuple[Job, Save | None]:
    """The job of an evaluation, and where to save images. The job writes the records before it removes its blocks."""
    from tok1d.errors import ConfigError
    from tok1d.evaluate.job import remove_temporary
    from tok1d.evaluate.samples import Save
    from tok1d.evaluate.setup import open_job
    from tok1d.zoo.record import write_records

    out, samples, pictures, overwrite = output.out, output.save_samples, output.save_images, output.overwrite
    for flag, path in (("--out", out), ("--save-samples", samples)):
        if pictures is not None and path is not None and path.resolve().is_relative_to(pictures.resolve()):
            raise ConfigError(f"{flag}: expected a file outside the folder of --save-images, got {path}")
    if samples is not None and out is not None and samples.exists() and not (overwrite or _parts(out).is_dir()):
        raise ConfigError(f"--save-samples: {samples} exists; pass --overwrite to replace it, or choose another")
    save = Save(samples, pictures) if samples or pictures else None

    def finish(records: list[Record]) -> None:
        if out is not None:
            write_records(out, records)
        remove_temporary(*(path for path in (out, samples) if path is not None))

    fallback = samples or pictures
    job = open_job(out, output.shard, quiet=output.quiet, finish=finish, fallback=fallback, overwrite=overwrite)
    return job, save


def _parts(out: Path) -> Path:
    """The folder of the finished blocks of an evaluation."""
    return out.with_name(f"{out.name}.parts")


def _report(records: Sequence[Record], job: Job, out: Path | None, save: Save | None, *, judged: bool) -> None:
    """Print the records; if other processes have not finished their part, print which part is done.

    Args:
        judged: say if the tokenizer has learned nothing, which only images from all tokens show.
    """
    from tok1d.evaluate.baselines import verdict

    if job.waiting:
        print(f"part {job.part[0]}/{job.part[1]} is done; the last part to finish writes {out or 'the images'}")
        return
    print_records(records)
    if judged and (said := verdict(records)):
        print(said)
    if save is not None:
        print(f"images: {', '.join(str(place) for place in (save.batch, save.folder) if place)}")
    if out is not None:
        print(f"records: {out}")


evaluate_app = typer.Typer(help="Measure a model; each result is stored with all its settings.", no_args_is_help=True)
evaluate_app.command("reconstruction")(with_paths(evaluate_reconstruction))
evaluate_app.command("generation")(with_paths(evaluate_generation))
evaluate_app.command("grid")(with_paths(evaluate_grid))
evaluate_app.command("explain")(with_paths(evaluate_explain))

"""The commands that measure: `tok1d evaluate reconstruction` and `tok1d evaluate generation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tok1d.cli.options import (
    DATA_HELP,
    SHARD_HELP,
    Data,
    DataRoot,
    DecoderGuidance,
    DecoderSolver,
    DecoderSteps,
    Device,
    EightBit,
    Guide,
    Interval,
    Label,
    Model,
    Sampler,
    SamplerSteps,
    Schedule,
    Seed,
    Solver,
    Steps,
    Temperature,
    TokensInterval,
    TopK,
    TopP,
    Unconditional,
    WeakModel,
    one_of,
    print_records,
)
from tok1d.cli.reference import NETWORK_HELP

if TYPE_CHECKING:
    from tok1d.evaluate.job import Job
    from tok1d.evaluate.request import Request
    from tok1d.evaluate.samples import Save

Out = Annotated[
    Path | None,
    typer.Option(
        help="write the records to this JSON file; finished blocks wait in FILE.parts, so a killed one goes on"
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        help="all, or some of psnr,mse,ssim,lpips,labels,fd,sfd,kid,score,precision,recall,density,coverage; default: "
        "those that need nothing missing here"
    ),
]
Network = Annotated[list[str] | None, typer.Option(help=f"feature network, repeatable: {NETWORK_HELP}")]
ReferenceFile = Annotated[
    list[str] | None, typer.Option("--reference", help="statistics of tok1d reference or ADM, one a network")
]
AnyReference = Annotated[
    bool, typer.Option("--allow-other-reference", help="take the reference of the other measurement too")
]
SaveSamples = Annotated[Path | None, typer.Option(help="write the images to this .npz file, in ADM's form")]
SaveImages = Annotated[
    Path | None, typer.Option(help="write the images as pictures into this folder, for which it is empty or new")
]
Shard = Annotated[str, typer.Option(help=SHARD_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


def evaluate_reconstruction(
    model: Model,
    data: Data,
    keep: Annotated[
        str, typer.Option(help="numbers of leading tokens; default: 1,2,4,...,all (SMAP: 0 too); without order all")
    ] = "",
    num: Annotated[
        int | None,
        typer.Option(
            min=1, help="so many images only: the first of fashion_mnist, of others spread evenly; default: all"
        ),
    ] = None,
    metrics: Metrics = "",
    network: Network = None,
    reference: ReferenceFile = None,
    allow_other_reference: AnyReference = False,
    eight_bit: EightBit = None,
    steps: Steps = None,
    solver: Solver = "",
    guidance: DecoderGuidance = 1.0,
    guidance_interval: Interval = "",
    label: Label = "",
    out: Out = None,
    save_samples: SaveSamples = None,
    save_images: SaveImages = None,
    shard: Shard = "",
    quiet: Quiet = False,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 250,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Reconstructions against their originals: PSNR, SSIM, ... from prefixes, and distances by feature networks."""
    from tok1d.evaluate.request import Reconstruction
    from tok1d.evaluate.setup import parse_metrics
    from tok1d.inference.labels import LABELS

    if label:
        one_of("--label", label, LABELS)
    request = Reconstruction(
        model=model,
        data=data,
        keep=keep,
        num=num,
        metrics=parse_metrics(metrics),
        network=tuple(network or ()),
        reference=tuple(reference or ()),
        allow_other_reference=allow_other_reference,
        eight_bit=eight_bit,
        steps=steps,
        solver=solver,
        guidance=guidance,
        guidance_interval=guidance_interval,
        label=label,
        batch_size=batch_size,
        seed=seed,
        data_root=data_root,
        device=device,
    )
    _run(request, out, save_samples, save_images, shard, quiet)


def evaluate_generation(
    model: Model,
    data: Annotated[
        str, typer.Argument(help=f"{DATA_HELP}; default: fashion_mnist, for models that were trained on it")
    ] = "",
    num: Annotated[int, typer.Option(min=1, help="samples")] = 1000,
    classes: Annotated[str, typer.Option(help="of the samples: balanced, random, or train: as often as there")] = (
        "balanced"
    ),
    split: Annotated[str, typer.Option(help="whose images are the reference: train (gFID) or test")] = "train",
    unconditional: Unconditional = False,
    keep: Annotated[str, typer.Option(help="numbers of leading tokens to decode; default: all generated")] = "",
    metrics: Metrics = "",
    network: Network = None,
    reference: ReferenceFile = None,
    allow_other_reference: AnyReference = False,
    eight_bit: EightBit = None,
    guidance: Guide = None,
    guidance_schedule: Schedule = "",
    guidance_interval: TokensInterval = "",
    weak_model: WeakModel = "",
    temperature: Temperature = 1.0,
    sampler: Sampler = "",
    steps: SamplerSteps = None,
    top_k: TopK = None,
    top_p: TopP = None,
    decoder_guidance: DecoderGuidance = 1.0,
    decoder_solver: DecoderSolver = "",
    decoder_steps: DecoderSteps = None,
    batch_size: Annotated[int, typer.Option(min=1, help="samples at a time")] = 250,
    out: Out = None,
    save_samples: SaveSamples = None,
    save_images: SaveImages = None,
    shard: Shard = "",
    quiet: Quiet = False,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Samples against a reference: label agreement, distances, precision, recall, ... by feature networks."""
    from tok1d.evaluate.generation import CLASSES
    from tok1d.evaluate.request import Generation
    from tok1d.evaluate.setup import parse_metrics

    one_of("--classes", classes, tuple(CLASSES))
    one_of("--split", split, ("train", "test"))
    request = Generation(
        model=model,
        data=data,
        num=num,
        classes=classes,
        split=split,
        unconditional=unconditional,
        keep=keep,
        metrics=parse_metrics(metrics),
        network=tuple(network or ()),
        reference=tuple(reference or ()),
        allow_other_reference=allow_other_reference,
        eight_bit=eight_bit,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
        guidance_interval=guidance_interval,
        weak_model=weak_model,
        temperature=temperature,
        sampler=sampler,
        steps=steps,
        top_k=top_k,
        top_p=top_p,
        decoder_guidance=decoder_guidance,
        decoder_solver=decoder_solver,
        decoder_steps=decoder_steps,
        batch_size=batch_size,
        seed=seed,
        data_root=data_root,
        device=device,
    )
    _run(request, out, save_samples, save_images, shard, quiet)


def _run(
    request: Request, out: Path | None, samples: Path | None, pictures: Path | None, shard: str, quiet: bool
) -> None:
    job, save = _job(out, samples, pictures, shard, quiet)
    _tell(request.prepare().measure(job, save), job, out, save)


def _job(
    out: Path | None, samples: Path | None, pictures: Path | None, shard: str, quiet: bool
) -> tuple[Job, Save | None]:
    """The job and what images it keeps; the records are written before its blocks are removed."""
    from tok1d.errors import ConfigError
    from tok1d.evaluate.job import drop_torn
    from tok1d.evaluate.samples import Save
    from tok1d.evaluate.setup import open_job
    from tok1d.zoo.record import write_records

    for option, path in (("--out", out), ("--save-samples", samples)):
        if pictures is not None and path is not None and path.resolve().is_relative_to(pictures.resolve()):
            raise ConfigError(f"{option}: expected a file outside the folder of --save-images, got {path}")
    save = Save(samples, pictures) if samples or pictures else None

    def finish(records: list[Any]) -> None:
        if out is not None:
            write_records(out, records)
        drop_torn(*(path for path in (out, samples) if path is not None))

    return open_job(out, shard, quiet=quiet, finish=finish, beside=samples or pictures), save


def _tell(records: Any, job: Job, out: Path | None, save: Save | None) -> None:
    if job.waiting:
        print(f"part {job.part[0]}/{job.part[1]} is done; the last part to finish writes {out or 'the images'}")
        return
    print_records(records)
    if save is not None:
        print(f"images: {', '.join(str(place) for place in (save.batch, save.folder) if place)}")
    if out is not None:
        print(f"records: {out}")

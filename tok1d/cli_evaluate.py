"""The commands that measure: `tok1d evaluate reconstruction` and `tok1d evaluate generation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tok1d.cli_options import (
    SHARD_HELP,
    Data,
    DataRoot,
    DecoderGuidance,
    DecoderSolver,
    DecoderSteps,
    Device,
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
from tok1d.cli_reference import NETWORK_HELP

if TYPE_CHECKING:
    from tok1d.evaluate.job import Job
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
EightBit = Annotated[
    bool | None,
    typer.Option("--eight-bit/--float", help="round images first, as files are; default: but for the bundled judge"),
]
SaveSamples = Annotated[Path | None, typer.Option(help="write the images to this .npz file, in ADM's form")]
SaveImages = Annotated[Path | None, typer.Option(help="write the images as pictures into this folder")]
Shard = Annotated[str, typer.Option(help=SHARD_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


def evaluate_reconstruction(
    model: Model,
    data: Data,
    keep: Annotated[
        str, typer.Option(help="numbers of leading tokens; default: 1,2,4,...,all (SMAP: 0 too); without order all")
    ] = "",
    num: Annotated[int | None, typer.Option(min=1, help="first images only; default: all")] = None,
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
    from tok1d import apply
    from tok1d.diffusion.guidance import Guidance
    from tok1d.errors import InputError
    from tok1d.evaluate import setup
    from tok1d.evaluate.labels import LABELS
    from tok1d.evaluate.reconstruction import evaluate_reconstruction as measure
    from tok1d.train import run
    from tok1d.train.tasks import padding_of
    from tok1d.train.trained import load_model

    if label:
        one_of("--label", label, LABELS)
    wanted = setup.parse_metrics(metrics)
    job, save = _job(out, save_samples, save_images, shard, quiet)
    tokenizer = load_model(model, device=setup.pick_device(device))
    if not hasattr(tokenizer, "spec"):
        raise InputError(f"{model}: expected a tokenizer, this is the model {tokenizer.config.name}")
    pad, place = padding_of(tokenizer), next(tokenizer.parameters()).device
    counts = apply.parse_counts(keep, "--keep", 0, tokenizer.spec.length) if keep else []
    interval = apply.parse_interval(guidance_interval, "--guidance-interval")
    measures = setup.open_measures(
        "reconstruction",
        wanted,
        network or [],
        data=data,
        config=tokenizer.config,
        device=place,
        pad=pad,
        eight_bit=eight_bit,
    )
    known = setup.open_references(
        "reconstruction", reference or [], measures.networks, allow_other=allow_other_reference
    )
    records = measure(
        tokenizer,
        run.first(apply.open_data(data, tokenizer, data_root=data_root), num),
        keep=counts,
        steps=steps,
        guidance=Guidance(guidance, interval=interval),
        solver=solver or None,
        batch_size=batch_size,
        seed=seed,
        pad=pad,
        label=label or None,
        protocol=run.protocol_of(tokenizer, pad=pad),
        measures=measures,
        references=known,
        job=job,
        save=save,
    )
    _tell(records, job, out, save)


def evaluate_generation(
    model: Model,
    data: Annotated[
        str, typer.Argument(help="fashion_mnist, or a folder of images; default: those that the model was trained on")
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
    from tok1d import apply
    from tok1d.condition import is_conditional
    from tok1d.errors import InputError
    from tok1d.evaluate import setup
    from tok1d.evaluate.generation import CLASSES
    from tok1d.evaluate.generation import evaluate_generation as measure
    from tok1d.train import run
    from tok1d.train.tasks import padding_of
    from tok1d.train.trained import load_pair

    one_of("--classes", classes, tuple(CLASSES))
    one_of("--split", split, ("train", "test"))
    wanted = setup.parse_metrics(metrics)
    job, save = _job(out, save_samples, save_images, shard, quiet)
    generator, tokenizer = load_pair(model, device=setup.pick_device(device))
    pad, place = padding_of(tokenizer), next(tokenizer.parameters()).device
    data = data or ("fashion_mnist" if generator.card.data == "fashion_mnist" else "")
    measures = setup.open_measures(
        "generation",
        wanted,
        network or [],
        data=data,
        config=tokenizer.config,
        device=place,
        pad=pad,
        eight_bit=eight_bit,
    )
    known = setup.open_references("generation", reference or [], measures.networks, allow_other=allow_other_reference)
    if not data and known is None:
        raise InputError(f"{model}: expected DATA, a folder of images, or --reference FILE to compare its samples with")
    guided = apply.guidance_for(
        generator,
        guidance,
        schedule=guidance_schedule,
        interval=guidance_interval,
        weak_model=weak_model,
        conditional=not unconditional and is_conditional(generator.config),
    )
    images: Any = None
    if data:
        images = apply.open_data(data, tokenizer, split=split, data_root=data_root, generator=generator)
    records = measure(
        generator,
        tokenizer,
        images,
        num=num,
        keep=apply.parse_counts(keep, "--keep", 1, generator.config.num_tokens) if keep else [],
        unconditional=unconditional,
        classes=classes,
        guidance=guided,
        temperature=temperature,
        steps=steps,
        sampler=sampler or None,
        top_k=top_k,
        top_p=top_p,
        decoder_steps=decoder_steps,
        decoder_solver=decoder_solver or None,
        decoder_guidance=decoder_guidance,
        batch_size=batch_size,
        seed=seed,
        pad=pad,
        protocol=run.protocol_of(generator),
        measures=measures,
        references=known or (lambda: setup.image_references(images, measures, of=split, about=f"{data}, {split}")),
        job=job,
        save=save,
    )
    _tell(records, job, out, save)


def _job(
    out: Path | None, samples: Path | None, pictures: Path | None, shard: str, quiet: bool
) -> tuple[Job, Save | None]:
    """The job and what images it keeps; the records are written before its blocks are removed."""
    from tok1d.evaluate.job import drop_torn
    from tok1d.evaluate.report import write_records
    from tok1d.evaluate.samples import Save
    from tok1d.evaluate.setup import open_job

    save = Save(samples, pictures) if samples or pictures else None

    def finish(records: list[Any]) -> None:
        if out is not None:
            write_records(out, records)
        drop_torn(*(path for path in (out, samples) if path is not None))

    return open_job(out, shard, quiet=quiet, finish=finish, beside=samples or pictures), save


def _tell(records: Any, job: Job, out: Path | None, save: Save | None) -> None:
    if not records:
        print(f"part {job.part[0]}/{job.part[1]} is done; the last part to finish writes {out or 'the images'}")
        return
    print_records(records)
    if save is not None:
        print(f"images: {', '.join(str(place) for place in (save.batch, save.folder) if place)}")
    if out is not None:
        print(f"records: {out}")

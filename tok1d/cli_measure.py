"""The commands that measure: `tok1d evaluate` and `tok1d analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli_options import (
    Data,
    DataRoot,
    DecoderGuidance,
    Device,
    HeadSampler,
    HeadSteps,
    Interval,
    Model,
    Overwrite,
    Schedule,
    Seed,
    Solver,
    Steps,
    load_tokenizer,
    one_of,
    write_records,
)

evaluate_app = typer.Typer(help="Measure a model with numbers that state their protocol.", no_args_is_help=True)
analyze_app = typer.Typer(help="Look inside a tokenizer's code.", no_args_is_help=True)


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    model: Model,
    data: Data,
    keep: Annotated[str, typer.Option(help="numbers of leading tokens; default: 1,2,4,...,all")] = "",
    num: Annotated[int | None, typer.Option(min=1, help="first images only; default: all")] = None,
    steps: Steps = None,
    solver: Solver = "",
    guidance: DecoderGuidance = 1.0,
    guidance_interval: Interval = "",
    out: Annotated[Path | None, typer.Option(help="write the records to this JSON file")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 250,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """PSNR and squared error from prefixes; with a judge for the data, its accuracy and Fréchet distance."""
    from tok1d import apply
    from tok1d.diffusion.guidance import Guidance
    from tok1d.evaluate.reconstruction import evaluate_reconstruction as measure
    from tok1d.train import run

    tokenizer = load_tokenizer(model, device)
    counts = apply.parse_counts(keep, "--keep", 0, tokenizer.spec.length) if keep else []
    interval = apply.parse_interval(guidance_interval, "--guidance-interval")
    images = run.first(apply.open_data(data, tokenizer, data_root=data_root), num)
    records = measure(
        tokenizer,
        images,
        keep=counts,
        steps=steps,
        guidance=Guidance(guidance, interval=interval),
        solver=solver or None,
        batch_size=batch_size,
        seed=seed,
        judge=run.judge_for(data, tokenizer),
        protocol=run.protocol_of(tokenizer),
    )
    write_records(records, out)


@evaluate_app.command("generation")
def evaluate_generation(
    model: Model,
    data: Data,
    num: Annotated[int, typer.Option(min=1, help="samples, spread evenly over the classes")] = 1000,
    keep: Annotated[str, typer.Option(help="numbers of leading tokens to decode; default: all generated")] = "",
    guidance: Annotated[float, typer.Option(min=0, help="guidance over the tokens; 1 is off")] = 2.0,
    guidance_schedule: Schedule = "linear",
    temperature: Annotated[float, typer.Option(min=0, help="of the head's sampling noise (sde, ancestral)")] = 1.0,
    head_sampler: HeadSampler = "",
    head_steps: HeadSteps = None,
    decoder_guidance: DecoderGuidance = 1.0,
    solver: Solver = "",
    steps: Steps = None,
    out: Annotated[Path | None, typer.Option(help="write the records to this JSON file")] = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Label agreement and Fréchet distance of samples, by the judge for the data."""
    from tok1d import apply
    from tok1d.diffusion.guidance import Guidance
    from tok1d.errors import InputError
    from tok1d.evaluate.generation import evaluate_generation as measure
    from tok1d.train import run
    from tok1d.zoo import store

    one_of("--guidance-schedule", guidance_schedule, ("linear", "constant"))
    generator, tokenizer = store.load_pair(model, device=apply.pick_device(device))
    judge = run.judge_for(data, tokenizer)
    if judge is None:
        raise InputError(f"{data}: no judge network is bundled for this data set; expected fashion_mnist")
    length = generator.config.num_tokens
    records = measure(
        generator,
        tokenizer,
        apply.open_data(data, tokenizer, data_root=data_root),
        judge,
        num=num,
        keep=apply.parse_counts(keep, "--keep", 1, length) if keep else [],
        guidance=Guidance(guidance, schedule=guidance_schedule),  # type: ignore[arg-type]
        temperature=temperature,
        head_steps=head_steps,
        head_sampler=head_sampler or None,
        steps=steps,
        solver=solver or None,
        decoder_guidance=decoder_guidance,
        seed=seed,
        protocol=run.protocol_of(generator),
    )
    write_records(records, out)


@analyze_app.command("prefix")
def analyze_prefix(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for curve.json and curve.png")],
    num: Annotated[int, typer.Option(min=1, help="held-out images")] = 500,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """The PCA-like curve: the share of the denoising-loss reduction that the first k tokens bring."""
    import json
    from dataclasses import asdict

    from tok1d import apply
    from tok1d.analyze.prefix import explained_curve, plot_curve
    from tok1d.pictures import save_png

    tokenizer = load_tokenizer(model, device)
    folder = apply.new_folder(out, overwrite=overwrite)
    images = apply.open_data(data, tokenizer, data_root=data_root)
    points = explained_curve(tokenizer, images, num_images=num, seed=seed)
    save_png(plot_curve({model: points}), folder / "curve.png")
    apply.write_text(folder / "curve.json", json.dumps([asdict(point) for point in points], indent=1) + "\n")
    for point in points:
        share = "unavailable (the tokens bring no gain)" if point.share is None else f"{point.share:7.1%}"
        print(f"keep {point.keep:4d}: loss {point.loss:.5f}, share {share}")
    print(f"picture: {folder / 'curve.png'}")


@analyze_app.command("increments")
def analyze_increments(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for increments.json")],
    num: Annotated[int, typer.Option(min=1, help="held-out images")] = 500,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Are tokens like principal components? Cosines and energies of what each token adds to the prediction."""
    import json

    from tok1d import apply
    from tok1d.analyze.increments import increments

    tokenizer = load_tokenizer(model, device)
    folder = apply.new_folder(out, overwrite=overwrite)
    found = increments(tokenizer, apply.open_data(data, tokenizer, data_root=data_root), num_images=num, seed=seed)
    content = {name: getattr(found, name).tolist() for name in ("cosine", "absolute", "energy")}
    apply.write_text(folder / "increments.json", json.dumps(content, indent=1) + "\n")
    total = float(found.energy.sum())
    for k, energy in enumerate(found.energy.tolist(), start=1):
        print(f"token {k:4d}: {energy / total:6.1%} of the energy of all increments")
    print(f"mean |cosine| of different tokens {found.off_diagonal:.3f} (0 is orthogonal)")
    print(f"mean cosine of successive tokens {found.neighbours:+.3f}")
    print(f"matrix: {folder / 'increments.json'}")

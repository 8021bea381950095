"""The command line: every command a thin call; nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.analyze import analyze_app, evaluate_app
from tok1d.cli.compare import compare
from tok1d.cli.cost import print_cost
from tok1d.cli.launch import PASSED_ON, launch
from tok1d.cli.options import (
    DATA_HELP,
    SHARD_HELP,
    VIEWS_HELP,
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
    OnBroken,
    Overrides,
    Overwrite,
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
    load_tokenizer,
    one_of,
    print_records,
)
from tok1d.cli.reference import reference
from tok1d.cli.replay import replay

# Threads that wait by spinning make two jobs on one machine many times slower; set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="tok1d",
    help="Structured 1D image tokenizers and the generators trained on their tokens. Start with tok1d demo.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(short_help="A command as a job on a SLURM cluster.", context_settings=PASSED_ON)(launch)
app.command(short_help="Show again a step that stopped a training.")(replay)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(analyze_app, name="analyze")
app.command(short_help="Statistics of an image set, to compare with.")(reference)
app.command("compare", short_help="Hold runs against their recipe's curve.")(compare)


@app.command(short_help="Train small models from scratch; a report with pictures.")
def demo(
    out: Annotated[Path, typer.Option(help="folder of the demo's runs and report")] = Path("runs/demo"),
    data_root: DataRoot = None,
    overwrite: Overwrite = False,
) -> None:
    """Real images, a tokenizer, a generator, a report with pictures: about ten minutes on two CPU cores.

    Shows the bundled models first, then trains small ones from scratch. Interrupted, the same command goes on.
    """
    from tok1d.demo import run as module

    module.run(out, overwrite=overwrite, data_root=data_root)


@app.command(short_help="List the recipes, their numbers and cost.")
def recipes() -> None:
    """List the recipes: what each trains, the paper's number, ours, the cost."""
    from textwrap import fill

    from tok1d.config.load import load_card, recipe_names

    for name in recipe_names():
        card = load_card(name)
        print(name)
        for label in ("about", "reproduces", "paper", "ours", "cost"):
            if text := getattr(card, label):
                print(fill(text, 100, initial_indent=f"  {label:11s}", subsequent_indent=" " * 13))
    print("\ntok1d config RECIPE shows one whole; tok1d train RECIPE [key=value ...] runs it")


@app.command(short_help="Print a recipe as it would run.")
def config(
    recipe: Annotated[str, typer.Argument(help="a name that tok1d recipes lists, or a YAML file")],
    overrides: Overrides = None,
    fields: Annotated[bool, typer.Option("--fields", help="list every field with type, default and help")] = False,
) -> None:
    """Print a recipe as it would run, after key=value overrides."""
    from tok1d.config.load import field_rows, load_recipe, to_yaml

    resolved = load_recipe(recipe, overrides or ())
    if not fields:
        print(to_yaml(resolved), end="")
        return
    for row in field_rows(resolved):
        print(f"{row.key}={row.value}\n    {row.help} ({row.type}; default {row.default})")


@app.command(short_help="Train a recipe; the same command resumes.")
def train(
    recipe: Annotated[str, typer.Argument(help="a name that tok1d recipes lists, or a YAML file")],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    minutes: Annotated[float | None, typer.Option(min=0, help="stop after so much training; go on later")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell parameters, steps, memory, FLOPs")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="with --dry-run: time steps here, tell the hours")] = False,
    measure_steps: Annotated[int | None, typer.Option(min=1, help="steps that --measure times; default: 10")] = None,
) -> None:
    """Train a tokenizer, a generator or a classifier. The same command resumes.

    --dry-run looks at neither data nor weights; with --measure it reads the data that are here. Neither writes.
    """
    from tok1d.config.load import load_recipe
    from tok1d.errors import InputError

    if measure and not dry_run:
        raise InputError("--measure: it belongs to --dry-run, give both")
    if measure_steps is not None and not measure:
        raise InputError("--measure-steps: it belongs to --dry-run --measure, give all three")
    if dry_run:
        print_cost(load_recipe(recipe, overrides or ()), (measure_steps or 10) if measure else None)
        return
    from tok1d.train import run
    from tok1d.zoo.record import read_records

    out = run.train(
        load_recipe(recipe, overrides or ()),
        overwrite=overwrite,
        name=recipe,
        seconds=None if minutes is None else minutes * 60,
    )
    if int(os.environ.get("RANK", "0")):
        return  # the first process tells
    if run.is_finished(out):
        print_records(read_records(out / "report.json"))
        print(f"model: {out / 'model'}\nreport: {out / 'report.json'}")
    else:
        print(f"stopped; the same command goes on from the checkpoint in {out / 'checkpoints'}")


@app.command(short_help="Write a data set's tokens into a cache.")
def encode(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the token cache")],
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    views: Annotated[str, typer.Option(help=VIEWS_HELP)] = "center",
    num_tokens: Annotated[int | None, typer.Option(min=1, help="keep the first tokens only; default: all")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16 (continuous tokens)")] = "float32",
    moments: Annotated[
        bool,
        typer.Option("--moments", help="KL tokenizers: means and standard deviations, for sample_latents=true"),
    ] = False,
    shard: Annotated[str, typer.Option(help=SHARD_HELP)] = "",
    rows_per_shard: Annotated[int, typer.Option(min=1, help="rows of a file, the least one process writes")] = 65536,
    seed: Annotated[int, typer.Option(min=0, help="seed of --views random")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell rows, size and free space")] = False,
    on_broken: OnBroken = "skip",
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the tokens of a data set into a cache that generators train on. Interrupted, it resumes.

    ImageNet, 1,281,167 images in 20 views, 32 tokens of 16 bfloat16 numbers: 26.2 GB on disk, at 256 tokens 210 GB.
    The published code: 52.5 and 419.8 GB (float32, in shared memory).

    Several processes may share the work: torchrun, or jobs that see the same folder, each with --shard I/N. Any may
    die and run again; the last one finishes the cache.
    """
    from tok1d import devices
    from tok1d.data.broken import replaced_text
    from tok1d.inference import cache
    from tok1d.inference import images as sources

    one_of("--split", split, ("train", "test"))
    one_of("--views", views, ("center", "center+flip", "random", "tencrop"))
    one_of("--dtype", dtype, ("float32", "float16", "bfloat16"))
    one_of("--on-broken", on_broken, ("stop", "skip"))
    part = cache.parse_part(shard) if shard else devices.process_part()
    tokenizer = load_tokenizer(model, device or devices.process_device())
    cache.tokens_kept(tokenizer.spec, num_tokens)
    if moments:
        cache.check_variational(tokenizer, "--moments")
    images = cache.with_views(
        sources.open_data(data, tokenizer, split=split, data_root=data_root, on_broken=on_broken),
        views,  # type: ignore[arg-type]
    )
    if dry_run:
        sizes = {"num_tokens": num_tokens, "dtype": dtype, "rows_per_shard": rows_per_shard, "moments": moments}
        count = images.transform.num_views
        print(cache.forecast(cache.cache_layout(tokenizer.spec, count, **sizes), len(images), count, out))  # type: ignore
        return
    made = cache.encode_images(
        tokenizer,
        images,
        out,
        num_tokens=num_tokens,
        dtype=dtype,
        part=part,
        seed=seed,
        rows_per_shard=rows_per_shard,
        moments=moments,
        overwrite=overwrite,
    )
    if made is None:
        print(f"shard {part[0]}/{part[1]} is written; {out} is finished when the others are")
    else:
        replaced = replaced_text(len(getattr(images, "replaced", [])))
        print(f"{len(made)} rows of {made.num_tokens} tokens in {out}{', ' if replaced else ''}{replaced}")


@app.command(short_help="Decode images from their first tokens.")
def reconstruct(
    model: Model,
    images: Annotated[str, typer.Argument(help=f"{DATA_HELP}, or one image file", show_default=False)],
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    keep: Annotated[
        str,
        typer.Option(
            help="numbers of leading tokens, such as 1,4,8; default: 1,2,4,...,all (SMAP: 0 too); without order all"
        ),
    ] = "",
    num: Annotated[
        int, typer.Option(min=1, help="how many of the images, spread evenly; of fashion_mnist the first")
    ] = 8,
    steps: Steps = None,
    solver: Solver = "",
    guidance: DecoderGuidance = 1.0,
    guidance_interval: Interval = "",
    size: Annotated[
        int | None, typer.Option(min=1, help="side of the images read and painted, in pixels; default: the model's own")
    ] = None,
    seed: Seed = 0,
    label: Label = "",
    on_broken: OnBroken = "skip",
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Encode images and decode them from their first tokens; writes overview.png and one PNG each."""
    from tok1d import files
    from tok1d.data.broken import replaced_indices, report_broken
    from tok1d.data.subset import subset
    from tok1d.diffusion.guidance import Guidance
    from tok1d.inference import images as sources
    from tok1d.inference import parse
    from tok1d.inference import pictures as apply
    from tok1d.inference.labels import LABELS, label_used
    from tok1d.tokenizers.prefix import token_counts

    one_of("--on-broken", on_broken, ("stop", "skip"))
    if label:
        one_of("--label", label, LABELS)
    tokenizer = load_tokenizer(model, device)
    length = tokenizer.spec.length
    counts = token_counts(tokenizer.spec, parse.parse_counts(keep, "--keep", 0, length) if keep else [])
    guided = Guidance(guidance, interval=parse.parse_interval(guidance_interval, "--guidance-interval"))
    folder = files.new_folder(out, overwrite=overwrite)
    source = sources.open_own(images, tokenizer, data_root=data_root, on_broken=on_broken, size=size)
    used = label_used(tokenizer, source.num_classes, label or None, captioned=any(source.captions))
    psnr = apply.reconstruct(
        tokenizer,
        source,
        folder,
        keep=counts,
        num=num,
        steps=steps,
        guidance=guided,
        solver=solver or None,
        seed=seed,
        label=used,
    )
    report_broken(source)
    if used is not None:
        print(f"label given to encoder and decoder: {used}")
    shown = subset(source, num)
    count = len(shown) - len(replaced_indices(shown, range(len(shown))))
    for k, value in psnr.items():
        print(f"keep {k:4d} of {length}: PSNR {value:.2f} dB (mean of {count} images)")
    print(f"pictures: {folder / 'overview.png'}")


@app.command(short_help="Draw images of classes or captions.")
def generate(
    model: Model,
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    classes: Annotated[str, typer.Option(help="class ids, such as 3,7; default: all")] = "",
    captions: Annotated[
        list[str] | None,
        typer.Option(help="of models that are told those: a caption, or a .txt file with one a line; may come again"),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="images of every class or caption; without any, images")] = 8,
    unconditional: Unconditional = False,
    keep: Annotated[int | None, typer.Option(min=1, help="only the first tokens; default: all")] = None,
    decode_keep: Annotated[
        str,
        typer.Option(
            help="also paint the same samples from so many first tokens, such as 1,2,4, or every; "
            "writes progressive.png, a row a number"
        ),
    ] = "",
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
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw images of classes or captions: tokens from the generator, pixels from its tokenizer."""
    from tok1d import devices, files
    from tok1d.config.condition import is_conditional
    from tok1d.errors import InputError
    from tok1d.inference import parse
    from tok1d.inference import pictures as apply
    from tok1d.zoo import store

    generator, tokenizer = store.load_pair(model, device=devices.pick_device(device))
    texts = parse.parse_captions(captions or [])
    parse.check_wanted(generator, classes, texts, unconditional=unconditional)
    wanted = parse.parse_counts(classes, "--classes", 0, generator.config.num_classes - 1) if classes else None
    if keep is not None and keep > generator.config.num_tokens:
        raise InputError(f"--keep: expected 1..{generator.config.num_tokens}, got {keep}")
    length = keep or generator.config.num_tokens
    every = list(range(1, length + 1)) if decode_keep == "every" else []
    prefixes = parse.parse_counts(decode_keep, "--decode-keep", 0, length) if decode_keep and not every else every
    guided = parse.guidance_for(
        generator,
        guidance,
        schedule=guidance_schedule,
        interval=guidance_interval,
        weak_model=weak_model,
        conditional=is_conditional(generator.config) and not unconditional,
    )
    folder = files.new_folder(out, overwrite=overwrite)
    overview = apply.generate(
        generator,
        tokenizer,
        folder,
        classes=wanted,
        captions=texts or None,
        num=num,
        keep=keep,
        unconditional=unconditional,
        guidance=guided,
        temperature=temperature,
        steps=steps,
        sampler=sampler or None,
        top_k=top_k,
        top_p=top_p,
        decoder_steps=decoder_steps,
        decoder_solver=decoder_solver or None,
        decoder_guidance=decoder_guidance,
        prefixes=prefixes,
        seed=seed,
    )
    print(f"pictures: {overview}" + (f", {folder / 'progressive.png'}" if prefixes else ""))


@app.command(short_help="Weights of a finished run, to give away.")
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


@app.command(short_help="Published weights to a model folder.")
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


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    from tok1d.errors import Tok1dError

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=arguments, prog_name="tok1d", standalone_mode=False)
        if code == 130:  # how typer tells of Ctrl-C
            return _interrupted(arguments)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except Tok1dError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            return 2
        if hasattr(error, "format_message"):  # what typer raises for wrong arguments
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "tok1d"
            return _fail(f"{error.format_message().rstrip('.')}; see {command} --help")
        if type(error).__name__ == "Abort":
            return _interrupted(arguments)
        raise


def _interrupted(arguments: list[str]) -> int:
    command = arguments[:1]
    resumes = command in (["demo"], ["train"], ["encode"]) or arguments[:2] == ["evaluate", "grid"]
    resumes |= command == ["evaluate"] and any(word.partition("=")[0] == "--out" for word in arguments)
    again = "run the command again" + (" with --overwrite" if command in (["reconstruct"], ["generate"]) else "")
    return _fail(f"interrupted; {'the same command goes on' if resumes else again}", 130)


def main() -> None:
    """Entry point of the `tok1d` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()

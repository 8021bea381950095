"""What the commands share: the types of their options, and small helpers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = (
    "a model folder (of a run: RUN/model), a bundled name such as fashion-mnist-semanticist, or OWNER/NAME on the hub"
)
DATA_HELP = (
    "fashion_mnist, a folder of images, webdataset shards (a folder of .tar files), or a folder that Hugging Face "
    "datasets' save_to_disk wrote"
)
OVERRIDES_HELP = "key=value, such as train.lr=1e-3; tok1d config RECIPE --fields lists the keys"
VIEWS_HELP = "of an image: center (1), center+flip (2), random (1, crop and flip), tencrop (20)"
SHARD_HELP = (
    "I/N, write the I-th (from 0) of N parts, such as $SLURM_ARRAY_TASK_ID/64; "
    "default: all, or this process's part under torchrun"
)

Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Data = Annotated[str, typer.Argument(help=DATA_HELP, show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU where there is one")]
Seed = Annotated[int, typer.Option(min=0, help="seed of all noise")]
DataRoot = Annotated[str | None, typer.Option(help="folder of Fashion-MNIST's files; default: found or fetched")]
Steps = Annotated[int | None, typer.Option(min=1, help="decoding steps; default: the model's own")]
Solver = Annotated[
    str, typer.Option(help="of the decoder: euler or heun (flow), ancestral or ddim (DDPM); default: the model's own")
]
DecoderGuidance = Annotated[float, typer.Option(min=0, help="guidance of the decoder by the tokens; 1 is off")]
Interval = Annotated[
    str,
    typer.Option(help="when the decoder is guided, from 0 (noise) to 1 (image), such as 0.2,0.8; default: always"),
]
Guide = Annotated[float | None, typer.Option(min=0, help="guidance; 1 is off; default: 2, without classes 1")]
Schedule = Annotated[
    str,
    typer.Option(
        help="guidance over the tokens that are drawn one after the other, or over MaskGIT's steps: constant, or "
        "growing to its scale, linear or power_cosine; default: the model's own"
    ),
]
TokensInterval = Annotated[
    str,
    typer.Option(
        help="when tokens are guided: SiT, DiT and kin in time from 0 (noise) to 1 (tokens), such as 0.25,1; "
        "LlamaGen and MaskGIT in shares of the tokens or steps; default: always"
    ),
]
WeakModel = Annotated[
    str, typer.Option(help="guide away from this earlier or smaller model (SiT, DiT and kin), not from the null class")
]
Unconditional = Annotated[bool, typer.Option("--unconditional", help="draw without classes")]
Temperature = Annotated[
    float,
    typer.Option(
        min=0,
        help="of the sampling noise (sde, ancestral, MaskGIT; CARD: also of its start), or of LlamaGen's probabilities",
    ),
]
TopK = Annotated[int | None, typer.Option(min=0, help="LlamaGen: draw from so many likeliest ids; 0 and default: all")]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="LlamaGen: draw from the likeliest ids of this probability; default: all"),
]
Sampler = Annotated[
    str, typer.Option(help="of the generator: sde, euler, heun; of DDPM: ancestral, ddim; default: the model's own")
]
SamplerSteps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="of the generator, for a token or a whole sequence; default: the model's own"),
]
DecoderSteps = Annotated[int | None, typer.Option(min=1, help="of a diffusion decoder; default: the model's own")]
DecoderSolver = Annotated[
    str, typer.Option(help="of the decoder: euler or heun (flow), ancestral or ddim (DDPM); default: the model's own")
]
Label = Annotated[
    str,
    typer.Option(
        help="for tokenizers that are told the class (SMAP): true, the images' own, or null, none; default: true where "
        "the images have the classes of the training"
    ),
]
EightBit = Annotated[
    bool | None,
    typer.Option("--eight-bit/--float", help="round images first, as files are; default: but for the bundled judge"),
]
OnBroken = Annotated[str, typer.Option(help="what an unreadable image does: stop, or skip (it is counted)")]


def load_tokenizer(model: str, device: str | None) -> Any:
    """The tokenizer of that name on a device; any other model is a one-line error."""
    from tok1d import devices
    from tok1d.errors import InputError
    from tok1d.zoo import store

    loaded = store.load(model, device=devices.pick_device(device))
    if not hasattr(loaded, "spec"):
        raise InputError(f"{model}: expected a tokenizer, this is the model {loaded.config.name}")
    return loaded


def one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    from tok1d.errors import InputError

    if value not in choices:
        raise InputError(f"{what}: expected {' or '.join(choices)}, got {value!r}")


def print_records(records: Any) -> None:
    """Show metric records as a table."""
    from rich.console import Console

    from tok1d.evaluate.report import shared_protocol, table

    Console().print(table(records))
    if shared := shared_protocol(records):
        Console().print(shared, markup=False, highlight=False)


def write_records(records: Any, out: Path | None) -> None:
    """Show metric records and, with `out`, keep them as JSON."""
    from tok1d.zoo import record

    print_records(records)
    if out is not None:
        record.write_records(out, records)
        print(f"records: {out}")

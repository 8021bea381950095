"""Options made from dataclasses, the options that several commands share, and helpers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_type_hints

import typer

from tok1d.config.fields import as_given, option
from tok1d.config.options import Option, flag_of, options_of

if TYPE_CHECKING:
    from tok1d.tokenizers.base import Tokenizer
    from tok1d.zoo.record import Record

MODEL_HELP = (
    "a model folder, the folder of a run (before its end its newest checkpoint is taken), a bundled model such as "
    "fashion-mnist-semanticist, or OWNER/NAME on the Hugging Face hub"
)
DATA_HELP = (
    "fashion_mnist, emoji, a folder of images, a folder of webdataset shards (.tar files), or a folder written by "
    "save_to_disk of Hugging Face datasets"
)
OVERRIDES_HELP = "key=value, such as train.lr=1e-3; tok1d config RECIPE --fields lists the keys"
SPLIT_HELP = (
    "split of the data: train, test or all; default: test, or all of a folder without class folders or splits and of "
    "one named like a test split (val2017)"
)
SHARD_HELP = (
    "I/N: only do part I (from 0) of N, such as $SLURM_ARRAY_TASK_ID/64; default: all, or under torchrun the part of "
    "this process"
)

PATH = "path"  # in an annotation: the text is, or may be, a path
Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False), PATH]
Data = Annotated[str, typer.Argument(help=DATA_HELP, show_default=False), PATH]
Overrides = Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing files")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one")]
Seed = Annotated[int, typer.Option(min=0, help="seed of all random numbers")]
DataRoot = Annotated[
    str | None,
    typer.Option(help="folder with the files of Fashion-MNIST; default: searched for, else downloaded"),
    PATH,
]
RecipeName = Annotated[
    str, typer.Argument(help="a name that tok1d recipes lists, a YAML file, or the folder of a run"), PATH
]
OnBroken = Annotated[str, typer.Option(help="at an unreadable image: stop, or skip it (skipped images are reported)")]
Shard = Annotated[str, typer.Option(help=SHARD_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


@dataclass(frozen=True)
class ChosenImages:
    """The part of the data that a command reads."""

    split: Literal["train", "test", "all"] | None = option(None, SPLIT_HELP)
    data_root: str | None = option(
        None, "folder with the files of Fashion-MNIST; default: searched for, else downloaded", path="path"
    )


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is annotated with a dataclass by one option for each field.

    Type, help, bounds and default of an option are those of the field, see `tok1d.config.fields.option`. Further
    metadata of a field: `argument` makes it positional, `repeated` allows the option several times, `flags` names the
    two flags of a boolean option.

    The command raises InputError for a value that the field does not accept.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[Option]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            options = list(options_of(hints[name]))
            groups[name] = (hints[name], options)
            parameters += [parameter_of(option) for option in options]
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**given: object) -> None:
        for name, (cls, options) in groups.items():
            given[name] = cls(**{option.name: option.value(given.pop(option.name)) for option in options})
        command(**given)

    return signed(run, command, parameters)


def with_paths(command: Callable[..., None]) -> Callable[..., None]:
    """A command that receives its paths (parameters of the type Path or with the mark PATH) as `files.as_path`.

    Its other text is `files.readable`. Every command is registered this way.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters
    marks = {name: {"path": "path"} if PATH in get_args(hint) else {} for name, hint in hints.items()}

    def run(**given: object) -> None:
        command(**{name: as_given(value, marks[name]) for name, value in given.items()})

    return signed(run, command, [each.replace(annotation=hints[name]) for name, each in parameters.items()])


def signed(
    run: Callable[..., None], command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give `run` the name and docstring of a command and the signature that typer reads."""
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    return run


def parameter_of(option: Option) -> inspect.Parameter:
    """The parameter of a command for an option."""
    hint, default = option.hint, option.default
    flag = option.metadata.get("flags", flag_of(option.name))
    if option.metadata.get("argument"):
        info: object = typer.Argument(help=option.help, show_default=False)
        default = inspect.Parameter.empty if default is MISSING else default
    elif hint is bool:
        info = typer.Option(flag, help=option.help)
        hint = bool | None if default is None else bool
    elif hint in (int, float):
        low, high = (option.bounds.get(f"{sign}=", option.bounds.get(sign)) for sign in "><")
        info = typer.Option(flag, min=low, max=high, help=option.help)
        hint = hint | None if default is None else hint
    elif option.metadata.get("repeated"):
        info = typer.Option(flag, help=option.help)
        hint, default = list[str] | None, None
    elif hint is Path:
        info = typer.Option(flag, help=option.help)
        hint = Path if default is MISSING else Path | None
        default = inspect.Parameter.empty if default is MISSING else default
    else:  # a list, an interval or one of several choices is parsed from text
        text = text_parameter(option.name, option.help, default if isinstance(default, str) else "")
        return text.replace(annotation=Annotated[text.annotation, PATH]) if option.metadata.get("path") else text
    annotation: object = Annotated[hint, info, PATH] if option.metadata.get("path") else Annotated[hint, info]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def text_parameter(name: str, help: str, default: str = "") -> inspect.Parameter:
    """A parameter of a command whose value is text."""
    info = typer.Option(flag_of(name), help=help)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[str, info])


def load_tokenizer(model: str, device: str | None) -> Tokenizer:
    """Load a tokenizer on a device; raises InputError for another model."""
    from tok1d import devices
    from tok1d.errors import InputError
    from tok1d.zoo.checkpoints import load_model

    loaded = load_model(model, device=devices.pick_device(device))
    if not hasattr(loaded, "spec"):
        raise InputError(f"{model}: expected a tokenizer, this is the model {loaded.config.name}")
    return loaded


_held = ExitStack()  # locks of what the running command writes


def hold_output(out: Path) -> None:
    """Keep other commands from writing a file or folder until `release_outputs`, at the end of the command.

    Raises:
        ConfigError: another command writes there.
    """
    from tok1d import locks

    _held.enter_context(locks.hold_output(out))


def output_folder(out: Path, *, overwrite: bool) -> Path:
    """Check that a command may write into a folder, and hold its lock; it is not created.

    Raises:
        ConfigError: another command writes there, or see `tok1d.files.new_folder`.
    """
    from tok1d import files

    hold_output(out)
    return files.new_folder(out, overwrite=overwrite)


def release_outputs() -> None:
    """Release all locks of `hold_output`."""
    _held.close()


def one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise InputError if a value is not one of the choices."""
    from tok1d.errors import InputError

    if value not in choices:
        raise InputError(f"{what}: expected {' or '.join(choices)}, got {value!r}")


def print_records(records: Sequence[Record]) -> None:
    """Print metric records as a table."""
    from rich.console import Console

    from tok1d.evaluate.report import shared_protocol, table

    Console(markup=False).print(table(records))
    if shared := shared_protocol(records):
        Console().print(shared, markup=False, highlight=False)

"""The command line: its commands, and errors as one line with an exit code.

For a short start-up time, torch and models are imported only in the functions of the commands.
"""

from __future__ import annotations

import codecs
import io
import os
import platform
import sys
from typing import Annotated

import typer

from tok1d.cli.analyze import analyze_app
from tok1d.cli.compare import compare
from tok1d.cli.convert import convert, export, export_onnx
from tok1d.cli.demo import demo
from tok1d.cli.encode import encode
from tok1d.cli.evaluate import evaluate_app
from tok1d.cli.launch import PASSED_ON, launch
from tok1d.cli.models import models
from tok1d.cli.options import release_outputs, with_paths
from tok1d.cli.pictures import generate, reconstruct
from tok1d.cli.reference import reference
from tok1d.cli.replay import replay
from tok1d.cli.reproduce import reproduce
from tok1d.cli.serve import serve
from tok1d.cli.study import study_app
from tok1d.cli.train import config, recipes, train

# Threads that spin for long while they wait slow down other jobs on the machine; threads that never spin halve the
# speed of small models on two cores. So they spin for less than a millisecond. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

app = typer.Typer(
    name="tok1d",
    help="Structured 1D image tokenizers and the generators trained on their tokens. Start with tok1d demo.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo", short_help="Train small models from scratch and write a report.")(with_paths(demo))
app.command("recipes", short_help="List the recipes with their results and cost.")(with_paths(recipes))
app.command("models", short_help="List the bundled models.")(with_paths(models))
app.command("config", short_help="Print a recipe with all its values.")(with_paths(config))
app.command("train", short_help="Train a model with a recipe, or resume a training.")(with_paths(train))
app.command("encode", short_help="Write the tokens of a data set into a cache.")(with_paths(encode))
app.command("reconstruct", short_help="Encode images and decode them from their leading tokens.")(
    with_paths(reconstruct)
)
app.command("generate", short_help="Generate images from classes or captions.")(with_paths(generate))
app.command("export", short_help="Cast and evaluate the weights of a finished run.")(with_paths(export))
app.command("export-onnx", short_help="Export a tokenizer to ONNX.")(with_paths(export_onnx))
app.command("convert", short_help="Convert published weights to a model folder.")(with_paths(convert))
app.command("reference", short_help="Compute reference statistics of an image set.")(with_paths(reference))
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(analyze_app, name="analyze")
app.add_typer(study_app, name="study")
app.command("serve", short_help="Serve a page to try models in a browser.")(with_paths(serve))
app.command("compare", short_help="Compare runs with the training curve of their recipe.")(with_paths(compare))
app.command("reproduce", short_help="Train and measure what claims of the papers need; print verdicts.")(
    with_paths(reproduce)
)
app.command("launch", short_help="Run a command as a job on a SLURM cluster.", context_settings=PASSED_ON)(
    with_paths(launch)
)
app.command("replay", short_help="Repeat the step that stopped a training.")(with_paths(replay))

IMPORT_HELP = "module or .py file to import first, for example to register a model; repeatable; goes before the command"


FULL_HASH_HELP = (
    "fingerprints of data sets see every byte of the image files, not only the first and last 8 KiB of each; also "
    "TOK1D_FULL_HASH=1; goes before the command"
)


def print_version(wanted: bool) -> None:
    """Print the versions and end the command."""
    from importlib.metadata import version

    from tok1d import __version__

    if wanted:
        print(f"tok1d {__version__} (Python {platform.python_version()}, PyTorch {version('torch')})")
        raise typer.Exit


@app.callback()
def before_commands(
    context: typer.Context,
    imports: Annotated[list[str] | None, typer.Option("--import", metavar="MODULE", help=IMPORT_HELP)] = None,
    full_hash: Annotated[bool, typer.Option("--full-hash", help=FULL_HASH_HELP)] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="print the versions of tok1d, Python and PyTorch"
        ),
    ] = False,
) -> None:
    """Structured 1D image tokenizers and the generators trained on their tokens. Start with tok1d demo."""
    if full_hash:
        from tok1d.data import prints

        context.with_resource(prints.full_hash())
    if imports:
        from tok1d.config.imports import import_module

        for name in imports:
            import_module(name)


def split_imports(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options before the command (--import, --full-hash), and the command with its arguments."""
    i = 0
    while i < len(arguments) and arguments[i].partition("=")[0] in ("--import", "--full-hash"):
        i += 1 if "=" in arguments[i] or arguments[i] == "--full-hash" else 2
    return arguments[:i], arguments[i:]


# Options that were renamed: the old name, the new one, and the commands that have it.
RENAMED = {"--solver": "--sampler", "--decoder-solver": "--decoder-sampler"}
RENAMED_IN = ("reconstruct", "generate", "evaluate")


def with_new_names(arguments: list[str]) -> list[str]:
    """The command line with the new names of renamed options; prints a warning to stderr for each."""
    if not arguments or arguments[0] not in RENAMED_IN:
        return arguments
    found = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if name in RENAMED:
            print(f"warning: {name} is now called {RENAMED[name]}", file=sys.stderr)
            word = RENAMED[name] + equals + value
        found.append(word)
    return found


def refuse_empty(arguments: list[str]) -> None:
    """Check that no argument of a command is empty, as that of a shell variable without a value is.

    Raises:
        InputError: the message names the option or the argument before it.
    """
    from tok1d.errors import InputError

    for place, word in enumerate(arguments if arguments[:1] != ["launch"] else []):
        option, equals, value = word.partition("=")
        if not word or (option.startswith("--") and equals and not value):
            before = option or (arguments[place - 1] if place else "tok1d")
            raise InputError(f"{before}: expected a value, got ''")


def use_utf8() -> None:
    """Make stdout and stderr print every text: UTF-8 where the locale has only ASCII, and see `files.encodable`."""
    from tok1d.files import encodable

    def escaped(error: UnicodeError) -> tuple[bytes, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = encodable(error.object[error.start : error.end])
        return text.encode(error.encoding, "backslashreplace"), error.end

    codecs.register_error("tok1d", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="tok1d")


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {' '.join(message.split())}\n", end="", file=sys.stderr)  # one write: processes share the terminal
    return code


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    from tok1d.errors import Tok1dError

    use_utf8()
    imports, arguments = split_imports(sys.argv[1:] if arguments is None else arguments)
    arguments = with_new_names(arguments)
    try:
        refuse_empty(arguments)
        code = app(args=[*imports, *arguments], prog_name="tok1d", standalone_mode=False, obj=run)
        if code == 130:  # what typer returns after Ctrl-C
            return _interrupted(arguments)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except Tok1dError as error:
        return 2 if error.elsewhere else _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            return 2
        if hasattr(error, "format_message"):  # typer's errors for wrong arguments
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "tok1d"
            return _fail(f"{error.format_message().rstrip('.')}; see {command} --help")
        if type(error).__name__ == "Abort":
            return _interrupted(arguments)
        raise
    finally:
        release_outputs()


def _interrupted(arguments: list[str]) -> int:
    command = arguments[:1]
    resumes = command in (["demo"], ["train"], ["encode"], ["reproduce"]) or arguments[:2] == ["evaluate", "grid"]
    resumes |= command == ["evaluate"] and any(word.partition("=")[0] == "--out" for word in arguments)
    if command == ["train"] and any(word.partition("=")[0] == "--more" for word in arguments):
        return _fail("interrupted; tok1d train and the folder of the run, without --more, resumes", 130)
    again = "run the command again" + (" with --overwrite" if command in (["reconstruct"], ["generate"]) else "")
    return _fail(f"interrupted; {'the same command resumes' if resumes else again}", 130)


def main() -> None:
    """Entry point of the `tok1d` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()

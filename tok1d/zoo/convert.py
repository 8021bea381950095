"""Conversion of published weights to model folders, by the name of their format."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, get_args

from torch import nn

from tok1d.config import fields as config_fields
from tok1d.config.fields import to_mapping
from tok1d.config.load import stored_recipe
from tok1d.config.nearest import nearest
from tok1d.config.registry import build_model_config
from tok1d.config.written import read_override
from tok1d.errors import ConfigError, InputError, Tok1dError, WeightsError, reason_of
from tok1d.generators.base import Generator
from tok1d.zoo import store
from tok1d.zoo.adapters import autoencoder, llamagen, maetok, maskgit, semanticist, sit, titok, vavae
from tok1d.zoo.adapters.averages import Choice, Which
from tok1d.zoo.adapters.keymap import published_options
from tok1d.zoo.adapters.settings import declared
from tok1d.zoo.card import Card
from tok1d.zoo.checkpoints import is_checkpoint
from tok1d.zoo.pairs import check_tokens
from tok1d.zoo.portable import portable
from tok1d.zoo.weights import fingerprint

# Format -> conversion. Its parameters with a `Setting` are the options of `tok1d convert`.
FORMATS: dict[str, Callable[..., nn.Module]] = {
    "semanticist-tokenizer": semanticist.convert_tokenizer,
    "semanticist-ar": semanticist.convert_ar,
    "maetok-tokenizer": maetok.convert_tokenizer,
    "maetok-sit": sit.convert_sit,
    "maetok-dit": sit.convert_dit,
    "titok": titok.convert_titok,
    "lightningdit": sit.convert_lightningdit,
    "llamagen": llamagen.convert_llamagen,
    "maskgit": maskgit.convert_maskgit,
    "kl16": autoencoder.load_mar,
    "vavae": vavae.load_vavae,
}
AUTOENCODERS = ("kl16", "vavae")


def parse_options(function: Callable[..., nn.Module], options: Sequence[str]) -> dict[str, object]:
    """Keyword arguments of a conversion from texts key=value.

    Raises:
        InputError: an unknown option, or a value that is of another type or out of range.
    """
    known = declared(function)
    hints = {each.key: each.hint for each in known}
    given: dict[str, object] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in hints:
            near = nearest(key, hints)
            advice = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"option {option!r}: expected key=value with a key of {', '.join(hints)}{advice}")
        given[key] = read_override(text)
    # Each option that is text is the name or folder of a model, or a file.
    paths: dict[str, Any] = {key: {"path": "path"} for key, hint in hints.items() if str in (hint, *get_args(hint))}
    fields = [
        (each.key, each.hint, config_fields.option(each.default, **each.bounds, **paths.get(each.key, {})))
        for each in known
    ]
    try:
        checked: Any = config_fields.build(dataclasses.make_dataclass("Options", fields), given)
    except ConfigError as error:
        raise InputError(f"option {error}") from None
    return {key: getattr(checked, key) for key in given}


def convert(
    format: str,
    path: Path,
    out: Path,
    options: Sequence[str] = (),
    *,
    tokenizer: str = "",
    weights: Which | None = None,
) -> Path:
    """Read published weights and write a model folder, or for the `AUTOENCODERS` a diffusers folder.

    Args:
        format: a key of `FORMATS`.
        options: texts key=value for settings that the file does not determine, such as heads=16.
        tokenizer: for a generator, the name or folder of the tokenizer of its tokens; kept in the card, so that
            commands find it.
        weights: "ema" for averaged weights, "raw" for the others; None: averaged ones if the file has some. A line on
            stderr states what was taken if the file has both.

    Raises:
        InputError: an unknown format or option, weights that the file does not have, a file that is not a published
            one, or a tokenizer for a model that is not a generator.
        ConfigError: a tokenizer of other tokens.
        WeightsError: files that do not fit the format.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    arguments = parse_options(FORMATS[format], options)
    _check_foreign(Path(path))
    choice = Choice(weights)
    model = _converted(format, path, {"weights": choice, **arguments})
    if format in AUTOENCODERS:
        with store.replacing(out) as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
        return out
    config: Any = model.config
    try:
        build_model_config(to_mapping(config))  # the same checks as when the folder is loaded
    except ConfigError as error:
        raise WeightsError(f"{path}: an unsupported configuration: {error}") from None
    source, source_fingerprint = _of_tokenizer(model, tokenizer, format, out) if tokenizer else ("", "")
    card = Card(
        tokenizer=source,
        tokenizer_fingerprint=source_fingerprint,
        recipe_name=f"converted from {Path(path).name} ({format})",
        weights=choice.taken,
        trained={"assumed": assumed} if (assumed := _assumed(format, path, arguments, config)) else {},
        fingerprint=fingerprint(model),
        licence="that of the published weights",
    )
    store.save_model(model, out, card)
    return out


def _converted(format: str, path: Path, arguments: Mapping[str, object]) -> nn.Module:
    """The model of a conversion; its notes are printed on stderr. Raises Tok1dError naming the path."""
    try:
        with redirect_stderr(io.StringIO()) as notes:  # printed only if the conversion succeeds
            model = FORMATS[format](path, **arguments)
    except Tok1dError as error:
        message = str(error).removeprefix("published weights: ")
        if str(path) not in message and not isinstance(error, InputError):
            message = f"{path}: {message}"
        raise type(error)(message + _choice_noted(notes.getvalue())) from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: weights or a config.json of other shapes or types than those of {format} "
            f"({type(error).__name__}: {reason_of(error)}); is this the right file and format?"
            + _choice_noted(notes.getvalue())
        ) from error
    print(notes.getvalue(), end="", file=sys.stderr)
    return model


def _choice_noted(notes: str) -> str:
    """The note about raw and averaged weights, for the end of an error; "" without one."""
    return "".join(f"; {line[line.index('weights: ') :]}" for line in notes.splitlines() if " also there: " in line)


def _of_tokenizer(model: nn.Module, name: str, format: str, out: Path) -> tuple[str, str]:
    """The name and fingerprint of the tokenizer for a generator's card, after a check that its tokens fit."""
    if not isinstance(model, Generator):
        raise InputError(f"--tokenizer: expected the format of a generator, got {format}; leave --tokenizer out")
    tokenizer: Any = store.load(name)
    if not hasattr(tokenizer, "spec"):
        raise InputError(f"--tokenizer: expected a tokenizer, got {name}, a {tokenizer.config.name}")
    check_tokens(model.config, tokenizer.spec, model.config.num_tokens)
    return portable(name, out), fingerprint(tokenizer)


def _check_foreign(path: Path) -> None:
    """Raise InputError for a run, a checkpoint or a model folder of this package, which need no conversion."""
    if is_checkpoint(path.name) and _is_run(path.absolute().parent.parent):
        raise InputError(
            f"{path}: a checkpoint of a tok1d run, which needs no conversion: give it to a command as "
            f"{path}:ema or {path}:raw, or write a model folder with tok1d export"
        )
    if (path / "checkpoints").is_dir() and _is_run(path):
        raise InputError(f"{path}: a run of tok1d, which needs no conversion: use {path / 'model'} or tok1d export")
    if path.is_dir() and "card" in published_options(path):
        raise InputError(f"{path}: a model folder of tok1d, which needs no conversion")


def _is_run(folder: Path) -> bool:
    """Whether a folder has a recipe of this package in config.yaml, as runs have."""
    try:
        return (folder / "config.yaml").is_file() and bool(stored_recipe(folder / "config.yaml"))
    except Tok1dError:
        return False


def _assumed(format: str, path: Path, given: Mapping[str, object], config: Any) -> dict[str, object]:
    """Values of the options that neither the user nor the file's config.json stated, as they are in the model."""
    told, found = set(_keys(published_options(path))), {}
    for each in declared(FORMATS[format]):
        value: Any = config
        for name in each.setting.field.split(".") if each.setting.field else ():
            value = getattr(value, name, None)
        if each.setting.field and value is not None and each.key not in given and each.setting.told not in told:
            found[each.key] = value
    return found


def _keys(options: Mapping[str, object]) -> Iterator[str]:
    """Yield the keys of a config.json at any depth that have a value."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _keys(value)
        elif value is not None:
            yield key

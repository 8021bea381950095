"""Conversion of published weights to model folders, by the name of their format."""

from __future__ import annotations

import dataclasses
import inspect
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import nn

from tok1d.config import fields as config_fields
from tok1d.config.fields import to_mapping
from tok1d.config.registry import build_model_config
from tok1d.config.written import read_override
from tok1d.errors import ConfigError, InputError, Tok1dError, WeightsError, reason_of
from tok1d.generators.base import Generator
from tok1d.zoo import store
from tok1d.zoo.adapters import autoencoder, llamagen, maetok, maskgit, semanticist, sit, titok, vavae
from tok1d.zoo.card import Card
from tok1d.zoo.pairs import check_tokens
from tok1d.zoo.store import portable
from tok1d.zoo.weights import fingerprint

# Format -> conversion. Its keyword-only parameters are the options of `tok1d convert`.
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


# Ranges of numeric options.
_BOUNDS: dict[str, dict[str, Any]] = {
    **{key: {"ge": 1} for key in ("heads", "encoder_heads", "decoder_heads", "num_tokens", "align_depth")},
    **{key: {"ge": 1} for key in ("groups", "autoencoder_groups")},
    **{key: {"gt": 0} for key in ("std", "rope_base", "scaling_factor", "autoencoder_scale", "tau")},
    **{key: {"ge": 0} for key in ("beta", "quantizer_weight")},
    "class_dropout": {"ge": 0, "le": 1},
}


def parse_options(function: Callable[..., nn.Module], options: Sequence[str]) -> dict[str, object]:
    """Keyword arguments of a conversion from texts key=value.

    Raises:
        InputError: an unknown option, or a value that is of another type or out of range.
    """
    known = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    names, hints = [p.name for p in known], get_type_hints(function)
    given: dict[str, object] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in names:
            raise InputError(f"option {option!r}: expected key=value with a key of {', '.join(names)}")
        given[key] = read_override(text)
    # Each option that is text is the name or folder of a model.
    paths: dict[str, Any] = {name: {"path": "path"} for name in names if str in (hints[name], *get_args(hints[name]))}
    fields = [
        (p.name, hints[p.name], config_fields.option(p.default, **_BOUNDS.get(p.name, {}), **paths.get(p.name, {})))
        for p in known
    ]
    try:
        checked: Any = config_fields.build(dataclasses.make_dataclass("Options", fields), given)
    except ConfigError as error:
        raise InputError(f"option {error}") from None
    return {key: getattr(checked, key) for key in given}


def convert(format: str, path: Path, out: Path, options: Sequence[str] = (), *, tokenizer: str = "") -> Path:
    """Read published weights and write a model folder, or for the autoencoders "kl16" and "vavae" a diffusers folder.

    Args:
        format: a key of `FORMATS`.
        options: texts key=value for settings that the file does not determine, such as heads=16.
        tokenizer: for a generator, the name or folder of the tokenizer of its tokens; kept in the card, so that
            commands find it.

    Raises:
        InputError: an unknown format or option, or a tokenizer for a model that is not a generator.
        ConfigError: a tokenizer of other tokens.
        WeightsError: files that do not fit the format.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    arguments = parse_options(FORMATS[format], options)
    try:
        with redirect_stderr(io.StringIO()) as notes:  # printed only if the conversion succeeds
            model = FORMATS[format](path, **arguments)
    except Tok1dError as error:
        message = str(error)
        if str(path) in message or isinstance(error, InputError):
            raise
        raise type(error)(f"{path}: {message.removeprefix('published weights: ')}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: weights or a config.json of other shapes or types than those of {format} "
            f"({type(error).__name__}: {reason_of(error)}); is this the right file and format?"
        ) from error
    print(notes.getvalue(), end="", file=sys.stderr)
    if format in ("kl16", "vavae"):
        with store.replacing(out) as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
        return out
    config: Any = model.config
    try:
        build_model_config(to_mapping(config))  # the same checks as when the folder is loaded
    except ConfigError as error:
        raise WeightsError(f"{path}: an unsupported configuration: {error}") from None
    source, source_fingerprint = _of_tokenizer(model, tokenizer, format) if tokenizer else ("", "")
    card = Card(
        tokenizer=source,
        tokenizer_fingerprint=source_fingerprint,
        recipe_name=f"converted from {Path(path).name} ({format})",
        fingerprint=fingerprint(model),
        licence="that of the published weights",
    )
    store.save_model(model, out, card)
    return out


def _of_tokenizer(model: nn.Module, name: str, format: str) -> tuple[str, str]:
    """The name and fingerprint of the tokenizer for a generator's card, after a check that its tokens fit."""
    if not isinstance(model, Generator):
        raise InputError(f"--tokenizer: expected the format of a generator, got {format}; leave --tokenizer out")
    tokenizer: Any = store.load(name)
    if not hasattr(tokenizer, "spec"):
        raise InputError(f"--tokenizer: expected a tokenizer, got {name}, a {tokenizer.config.name}")
    check_tokens(model.config, tokenizer.spec, model.config.num_tokens)
    return portable(name), fingerprint(tokenizer)

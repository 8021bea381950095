"""Published weights to model folders, by format name."""

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
from tok1d.errors import ConfigError, InputError, Tok1dError, WeightsError
from tok1d.zoo import store
from tok1d.zoo.adapters import autoencoder, llamagen, maetok, maskgit, semanticist, sit, titok
from tok1d.zoo.card import Card
from tok1d.zoo.pairs import check_tokens
from tok1d.zoo.store import portable
from tok1d.zoo.weights import fingerprint

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
}


# What a numeric option of a conversion may be, beyond its type.
_BOUNDS: dict[str, dict[str, Any]] = {
    **{key: {"ge": 1} for key in ("heads", "encoder_heads", "decoder_heads", "num_tokens", "align_depth")},
    **{key: {"ge": 1} for key in ("groups", "autoencoder_groups")},
    **{key: {"gt": 0} for key in ("std", "rope_base", "scaling_factor", "autoencoder_scale", "tau")},
    **{key: {"ge": 0} for key in ("beta", "quantizer_weight")},
    "class_dropout": {"ge": 0, "le": 1},
}


def parse_options(function: Callable[..., nn.Module], options: Sequence[str]) -> dict[str, Any]:
    """key=value texts as the keyword arguments of a conversion.

    Raises:
        InputError: no such option, or a value that cannot be read, is of another type or out of range.
    """
    from omegaconf import OmegaConf

    known = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    names, hints = [p.name for p in known], get_type_hints(function)
    given: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in names:
            raise InputError(f"option {option!r}: expected key=value with a key of {', '.join(names)}")
        if str in get_args(hints[key]):  # a path, whatever it looks like
            quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
            given[key] = None if text in ("null", "~", "") else text[1:-1] if quoted else text
            continue
        try:
            given[key] = OmegaConf.from_dotlist([option])[key]
        except Exception:
            raise InputError(f"option {option!r}: the value cannot be read; quote it?") from None
    fields = [(p.name, hints[p.name], config_fields.option(p.default, **_BOUNDS.get(p.name, {}))) for p in known]
    try:
        checked: Any = config_fields.build(dataclasses.make_dataclass("Options", fields), given)
    except ConfigError as error:
        raise InputError(f"option {error}") from None
    return {key: getattr(checked, key) for key in given}


def convert(format: str, path: Path, out: Path, options: Sequence[str] = (), *, tokenizer: str = "") -> Path:
    """Read published weights and write our model folder; of "kl16" (MAR's autoencoder), a diffusers folder.

    Args:
        format: a key of `FORMATS`.
        options: key=value, what the file alone cannot tell (heads, say).
        tokenizer: of a generator, the tokenizer whose tokens it makes, by any name; kept in the card, so that the
            generator can be sampled by name.

    Raises:
        InputError: an unknown format or option, or a tokenizer for what is no generator. ConfigError: a tokenizer of
            other tokens. WeightsError: files that do not fit it.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    arguments = parse_options(FORMATS[format], options)
    try:
        with redirect_stderr(io.StringIO()) as notes:  # of what a wrong file holds nobody wants to know
            model = FORMATS[format](path, **arguments)
    except Tok1dError as error:
        message = str(error)
        if str(path) in message or isinstance(error, InputError):
            raise
        raise type(error)(f"{path}: {message.removeprefix('published weights: ')}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise WeightsError(
            f"{path}: weights or a config.json of other shapes or types than those of {format} "
            f"({type(error).__name__}: {reason}); is this the right file and format?"
        ) from error
    print(notes.getvalue(), end="", file=sys.stderr)
    if format == "kl16":
        with store.replacing(out) as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
        return out
    config: Any = model.config
    try:
        build_model_config(to_mapping(config))  # as loading will
    except ConfigError as error:
        raise WeightsError(f"{path}: a model that ours cannot be: {error}") from None
    card = Card(
        **(_of_tokenizer(model, tokenizer, format) if tokenizer else {}),
        recipe_name=f"converted from {Path(path).name} ({format})",
        fingerprint=fingerprint(model),
        licence="that of the published weights",
    )
    store.save_model(model, out, card)
    return out


def _of_tokenizer(model: nn.Module, name: str, format: str) -> dict[str, Any]:
    """What the card of a generator says of its tokenizer, which makes such tokens."""

    config: Any = model.config
    if not hasattr(model, "sample"):
        raise InputError(f"--tokenizer: expected with a generator, {format} is none")
    tokenizer: Any = store.load(name)
    if not hasattr(tokenizer, "spec"):
        raise InputError(f"--tokenizer: expected a tokenizer, {name} is the model {tokenizer.config.name}")
    check_tokens(config, tokenizer.spec, config.num_tokens)
    return {"tokenizer": portable(name), "tokenizer_fingerprint": fingerprint(tokenizer)}

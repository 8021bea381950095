"""The self-check of a tokenizer: its tokens of a fixed image, stored when it is saved, compared when it is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.zoo.record import versions

MOST = 64  # recorded numbers
TOLERANCE = 0.02  # largest difference of a token, in standard deviations of all tokens; weights may be stored in half
HALF_TOLERANCE = 0.25  # of a model in half precision
OTHER_IDS = 0.1  # largest share of ids that differ: rounding may choose another of two near entries


def fixed_image(size: int, channels: int) -> Tensor:
    """An image (1, channels, size, size) in [0, 1] with fine and coarse structure, the same on every machine."""
    c, i, j = torch.meshgrid(torch.arange(channels), torch.arange(size), torch.arange(size), indexing="ij")
    values = (i * 7 + j * 13 + c * 29 + (i * j) // 3) % 256
    return ((values + 255 * (i > j)).float() / 510)[None]


def recorded(model: nn.Module) -> dict[str, object] | None:
    """What is stored of a tokenizer: some of its tokens of the fixed image, and who computed them.

    None for other models, and for tokenizers that cannot encode this image.
    """
    try:
        tokens = _tokens(model)
    except Exception:  # a tokenizer of a user: saving it does not depend on this check
        return None
    if tokens is None or not bool(torch.isfinite(tokens.double()).all()):
        return None
    entry = _chosen(tokens).tolist()
    return {"shape": list(tokens.shape), "tokens": entry, "std": _spread(tokens), "versions": versions()}


def stored_check(content: Mapping[str, object], source: object) -> Mapping[str, Any] | None:
    """The entry "check" of a model's config.json, as `recorded` writes it; None if there is none.

    Raises:
        WeightsError: the entry is something else.
    """
    if "check" not in content:
        return None
    check: Any = content["check"]
    kinds: dict[str, Callable[[Any], bool]] = {
        "shape": lambda value: _all(value, int) and min(value) > 0,
        "tokens": lambda value: _all(value, int | float) and len(value) <= MOST,
        "std": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
        "versions": lambda value: isinstance(value, Mapping) and {type(each) for each in value.values()} == {str},
    }
    if not isinstance(check, Mapping) or check.keys() != kinds.keys():
        wrong = "check"
    else:
        wrong = next((f"check.{key}" for key, fits in kinds.items() if not fits(check[key])), "")
    if wrong:
        raise WeightsError(
            f"{source}: {wrong}: expected what a saved model has there; remove the entry check to load it"
        )
    return check


def _all(value: object, kind: Any) -> bool:
    """Whether a value is a list of at least one finite number of a kind."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, kind) and not isinstance(each, bool) and math.isfinite(each) for each in value)
    )


def difference(model: nn.Module, stored: Mapping[str, Any] | None) -> str:
    """How a loaded tokenizer differs from the recorded one, in one line with the versions that wrote it; "" if not."""
    if stored is None:
        return ""
    try:
        expected = torch.tensor(stored["tokens"], dtype=torch.float64)
        spread, shape = float(stored["std"]), list(stored["shape"])
        tokens = _tokens(model)
    except Exception as error:
        return _said(f"cannot be repeated ({type(error).__name__})", stored)
    if tokens is None:
        return ""
    if list(tokens.shape) != shape:
        return _said(f"has the shape {list(tokens.shape)} in place of {shape}", stored)
    found = _chosen(tokens).double()
    if not tokens.is_floating_point():
        share = float((found != expected).double().mean())
        return _said(f"has {share:.0%} other ids", stored) if share > OTHER_IDS else ""
    worst = float((found - expected).abs().max()) / max(spread, 1e-6)
    limit = TOLERANCE if next(model.parameters()).dtype == torch.float32 else HALF_TOLERANCE
    return "" if worst <= limit else _said(f"differs by {worst:.2g} standard deviations (at most {limit:g})", stored)


def _said(what: str, stored: Mapping[str, object]) -> str:
    wrote, own = stored.get("versions"), versions()
    known = wrote if isinstance(wrote, Mapping) else {}
    text = ", ".join(f"{name} {known.get(name, 'unknown')} (here {version})" for name, version in own.items())
    return f"self-check: the encoding of a fixed image {what} from the saved one; written by {text}"


def _tokens(model: nn.Module) -> Tensor | None:
    config, encode = getattr(model, "config", None), getattr(model, "encode", None)
    if not hasattr(model, "spec") or encode is None:
        return None
    parameter = next(model.parameters())
    if parameter.is_meta:
        return None
    image = fixed_image(getattr(config, "image_size"), getattr(config, "channels"))  # noqa: B009
    with torch.no_grad(), _in_eval_mode(model):
        tokens = encode(image.to(parameter.device, parameter.dtype))
    return tokens.cpu() if not tokens.is_floating_point() else tokens.cpu().float()


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _chosen(tokens: Tensor) -> Tensor:
    flat = tokens.flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(MOST, len(flat))).round().long()]


def _spread(tokens: Tensor) -> float:
    return float(tokens.double().std(correction=0))

"""Options of the command line that are text: counts, intervals, captions, guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from tok1d.config.condition import text_condition
from tok1d.diffusion.guidance import Guidance, Schedule
from tok1d.errors import InputError
from tok1d.inference.sampling import generator_guidance
from tok1d.zoo import store


def parse_counts(text: str, what: str, low: int, high: int) -> list[int]:
    """ "1,4,8" as numbers in low..high, or a one-line error."""
    try:
        values = [int(part) for part in text.replace(" ", "").split(",") if part]
    except ValueError:
        raise InputError(f"{what}: expected numbers separated by commas, such as 1,4, got {text!r}") from None
    if not values:
        raise InputError(f"{what}: expected at least one number in {low}..{high}, got {text!r}")
    for value in values:
        if not low <= value <= high:
            raise InputError(f"{what}: expected numbers in {low}..{high}, got {value}")
    return values


def parse_interval(text: str, what: str) -> tuple[float, float]:
    """ "0.2,0.8" as two times, or shares, 0 <= low < high <= 1; "" is the whole range; else a one-line error."""
    if not text:
        return 0.0, 1.0
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{what}: expected two times such as 0.2,0.8, got {text!r}") from None
    if not 0 <= low < high <= 1:
        raise InputError(f"{what}: expected two growing times in 0..1, such as 0.2,0.8, got {text!r}")
    return low, high


def guidance_for(
    generator: Any,
    scale: float | None,
    *,
    schedule: str = "",
    interval: str = "",
    weak_model: str = "",
    conditional: bool = True,
) -> Guidance:
    """The guidance of a generator's samples as the options of the command line tell it.

    Args:
        scale: None is 2 where there is something to guide by, a class or a weak model, else 1.
        schedule: "" is the generator's own, see `generator_guidance`.

    Raises:
        InputError: a schedule or an interval that is none, or a scale without something to guide by.
    """
    if schedule not in ("", *get_args(Schedule)):
        known = ", ".join(get_args(Schedule))
        raise InputError(f"--guidance-schedule: expected one of {known}, got {schedule!r}")
    weak = store.load(weak_model, device=next(generator.parameters()).device) if weak_model else None
    guidable = conditional or weak is not None
    if scale is None:
        scale = 2.0 if guidable else 1.0
    if scale != 1 and not guidable:
        raise InputError(f"--guidance: without classes it needs a --weak-model, else pass 1; got {scale:g}")
    own = generator_guidance(generator, scale)
    found = replace(own, interval=parse_interval(interval, "--guidance-interval"), weak_model=weak)
    return replace(found, schedule=schedule) if schedule else found  # type: ignore[arg-type]


def parse_captions(texts: Sequence[str]) -> list[str]:
    """Captions as the command line gives them: each a caption, or the name of a .txt file with one a line."""
    found: list[str] = []
    for text in texts:
        if not text.endswith(".txt"):
            found.append(text)
            continue
        try:
            found += [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InputError(
                f"--captions: cannot read {text}, {why}; expected captions, or files of one a line"
            ) from None
    if texts and not any(caption.strip() for caption in found):
        raise InputError("--captions: expected at least one caption that says something, got none")
    return found


def check_wanted(
    generator: Any, classes: Any = None, captions: Sequence[str] | None = None, *, unconditional: bool = False
) -> None:
    """Refuse classes or captions that a generator is not told, and captions that are missing.

    Raises:
        InputError: so it is.
    """
    told = text_condition(generator.config) is not None
    reads = "--captions" if told else "--classes" if generator.config.num_classes else ""
    for name, given in (("--classes", classes), ("--captions", captions)):
        if given and unconditional:
            raise InputError(f"{name}: --unconditional draws without {name[2:]}; leave it out")
        if given and name != reads:
            advice = f"is told {reads[2:]}, use {reads}" if reads else f"knows no {name[2:]}; leave it out"
            raise InputError(f"{name}: this generator {advice}")
    if told and not unconditional and not captions:
        raise InputError("--captions: this generator is told captions, expected one at least, or --unconditional")

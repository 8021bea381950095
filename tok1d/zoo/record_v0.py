"""Reads records of older versions, in which "sampler", "steps", "guidance" and "reference" were text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OLD = ("sampler", "steps", "guidance")
# "sde 50 steps, 100 evaluations a sequence, temperature 0.9", "euler, 4 evaluations an image"
_SAMPLER = re.compile(
    r"(?P<sampler>\w+)(?: (?P<steps>\d+) steps)?(?:, (?P<evaluations>[\d.e+-]+) evaluations an? (?P<unit>\w+))?"
    r"(?P<rest>(?:, (?!temperature)[^,;]+)*)(?:, temperature (?P<temperature>[\d.e+-]+))?"
)
# "2 linear in 0.25..1, decoder 3", "1.9 in 0.25..1 against sit@ab12"
_GUIDANCE = re.compile(
    r"(?P<scale>[\d.e+-]+)(?: (?P<schedule>constant|linear|power_cosine)(?: (?P<power>[\d.e+-]+))?)?"
    r"(?: in (?P<low>[\d.e+-]+?)\.\.(?P<high>[\d.e+-]+))?(?: against (?P<weak>[^\s,]+))?"
    r"(?:, decoder (?P<decoder>[\d.e+-]+))?"
)


# "60000 train images 77d4", "spread 100 test images 77d4", "first 100 of 77d4", "77d4"
_REFERENCE = re.compile(
    r"(?P<chosen>(first|spread) )?((?P<count>\d+) )?(of )?((?P<of>train|validation|test|own) )?(images )?"
    r"(?P<fingerprint>\w+)"
)


def _reference(text: str) -> dict[str, object]:
    """The fields of a `ReferenceSet`; text of an unknown form becomes the fingerprint."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return {"fingerprint": text}
    return {
        "fingerprint": found["fingerprint"],
        "of": found["of"] or "",
        "count": None if found["count"] is None else int(found["count"]),
        "chosen": (found["chosen"] or "").strip(),
    }


def upgraded(content: Mapping[str, object]) -> dict[str, Any]:
    """The fields of a record in the current form; raises TypeError for a sampler that is not text."""
    if isinstance(reference := content.get("reference"), str):
        content = {**content, "reference": _reference(reference)}
    if not any(key in content for key in OLD):
        return dict(content)
    sampler, steps, guidance = (content.get(key) for key in OLD)
    if not isinstance(sampler, str | None):
        raise TypeError(f"sampler: expected text, got {sampler!r}")
    sampling, decoding = _samplers(sampler)
    decodes = sampler is None or "an image" in sampler
    if steps is not None:
        (decoding if decodes else sampling)["steps"] = steps
    if guidance is not None:
        _guidance(guidance, sampling, decoding)
    kept = {key: value for key, value in content.items() if key not in OLD}
    return {**kept, "sampling": sampling or None, "decoding": decoding or None}


def _samplers(text: str | None) -> tuple[dict[str, object], dict[str, object]]:
    """The settings of generator and decoder; text of an unknown form becomes the name of the sampler."""
    sampling: dict[str, object] = {}
    decoding: dict[str, object] = {}
    for part in text.split("; ") if text else ():
        found = _SAMPLER.fullmatch(part)
        if found is None:
            return {"sampler": text}, {}
        settings = decoding if found["unit"] == "image" else sampling
        settings["sampler"] = found["sampler"]
        if settings is sampling:
            settings["temperature"] = float(found["temperature"] or 1)
            if found["sampler"] == "categorical":
                settings |= {"top_k": 0, "top_p": 1.0}
        if found["steps"]:
            settings["steps"] = int(found["steps"])
        settings |= dict(_detail(each) for each in found["rest"].split(", ")[1:])
        if found["evaluations"]:
            settings |= {"evaluations": float(found["evaluations"]), "unit": found["unit"]}
    return sampling, decoding


def _detail(text: str) -> tuple[str, bool | int | float | str]:
    """ "top-k 5" as ("top_k", 5), "annealed" as ("annealed", True)."""
    name, _, value = text.partition(" ")
    name = name.replace("-", "_")
    if not value:
        return name, True
    try:
        return name, int(value) if name == "top_k" else float(value)
    except ValueError:
        return name, value


def _guidance(value: object, sampling: dict[str, object], decoding: dict[str, object]) -> None:
    """Add the guidance to the settings of the generator, or for reconstructions to those of the decoder."""
    settings = decoding if "sampler" in decoding and not sampling else sampling
    found = _GUIDANCE.fullmatch(str(value))
    if found is None:
        settings["guidance"] = value
        return
    settings["guidance"] = float(found["scale"])
    if settings["guidance"] != 1:
        if found["schedule"]:
            settings["guidance_schedule"] = found["schedule"]
        if found["power"]:
            settings["guidance_power"] = float(found["power"])
        if found["low"]:
            settings["guidance_interval"] = [float(found["low"]), float(found["high"])]
        if found["weak"]:
            settings["weak_model"] = found["weak"]
    if decoding and settings is sampling:
        decoding["guidance"] = float(found["decoder"] or 1)

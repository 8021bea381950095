"""Published protocols: the settings with which papers measured their numbers, stored in YAML files."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from tok1d.config.nearest import nearest
from tok1d.errors import InputError
from tok1d.zoo.record import ReferenceSet

PROTOCOLS = Path(__file__).parent / "protocols"
NONE = "none"  # a setting that is stated to be absent; a setting that is not stated is None
ABSENT = "-"  # a setting that does not apply, such as the steps of a deterministic decoder


class Published(TypedDict, total=False):
    """A published number in a file of `PROTOCOLS`.

    A setting is [value, source], or null if no source states it. An entry with `like` has the settings of that entry
    of the file, and its own instead where it gives them.
    """

    like: str
    system: str
    value: float
    recipe: str
    settings: dict[str, list[object] | None]


class ProtocolFile(TypedDict):
    """The content of a file of `PROTOCOLS`."""

    paper: str
    code: str
    numbers: dict[str, Published]


@dataclass(frozen=True)
class Facts:
    """A number and its settings.

    Args:
        name: its name in tables.
        value: None if it is not available.
        settings: as text; a setting that is None or missing is "not stated".
        sources: the place in a paper or its code that states a published setting.
        about: a short description of the number.
        reference: the reference set of a record.
        recipe: name of our recipe that follows the published system; "" if there is none.
        trained: the recipe of the measured model, as nested mappings; {} if it is unknown.
        data_print: fingerprint of the model's training images; "" if it is unknown.
    """

    name: str
    value: float | None
    settings: dict[str, str | None]
    sources: dict[str, str] = field(default_factory=dict)
    about: str = ""
    recipe: str = ""
    reference: ReferenceSet | None = None
    trained: Mapping[str, object] = field(default_factory=dict)
    data_print: str = ""


def protocol_names() -> list[str]:
    """Names of the published protocols, such as "maetok/rfid" or "maetok/gfid_512", sorted."""
    return sorted(
        f"{path.stem}/{name}" for path in PROTOCOLS.glob("*.yaml") for name in _protocol_file(path)["numbers"]
    )


def is_protocol(name: str) -> bool:
    """Whether a name is that of a published protocol, or of a system with a published gFID."""
    return name in protocol_names() or f"{name}/gfid" in protocol_names()


def published(name: str) -> Facts:
    """The protocol of a published number, such as "maetok/rfid"; "maetok" alone is its gFID.

    Raises:
        InputError: there is no such protocol.
    """
    if not is_protocol(name):
        near = nearest(name, [*protocol_names(), *{known.split("/")[0] for known in protocol_names()}])
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(protocol_names())}"
        raise InputError(f"{name}: neither a file nor a published protocol; {advice}")
    system, _, number = name.partition("/")
    content = _protocol_file(PROTOCOLS / f"{system}.yaml")
    entry = _entry(content["numbers"], number or "gfid")
    stated = {key: pair for key, pair in entry["settings"].items() if pair is not None}
    settings = {key: text_of(stated[key][0]) if key in stated else None for key in entry["settings"]}
    sources = {key: str(source) for key, (_, source) in stated.items()}
    about = f"{content['paper']}: {entry['system']}"
    return Facts(f"{system}/{number or 'gfid'}", float(entry["value"]), settings, sources, about, entry["recipe"])


def _entry(numbers: dict[str, Published], name: str) -> Published:
    """An entry with the settings of the one that it is `like`."""
    entry = numbers[name]
    if "like" not in entry:
        return entry
    model = _entry(numbers, entry["like"])
    return {**model, **entry, "settings": {**model["settings"], **entry["settings"]}}


@functools.cache
def _protocol_file(path: Path) -> ProtocolFile:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def text_of(value: object) -> str:
    """A setting as text: numbers without trailing zeros, lists and mappings as JSON."""
    if isinstance(value, float):
        return f"{value:.15g}"
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, (dict, list)) else str(value)

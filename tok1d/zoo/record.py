"""A measured number with its protocol, and files of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tok1d.errors import DataError


def versions() -> dict[str, str]:
    """Versions of tok1d, torch, numpy and python that measure here."""
    found = {}
    for package in ("tok1d", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"  # used from a source tree that was never installed
    return found | {"python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number and how it was measured; a field that does not apply is None.

    Raises ValueError for a metric named after another network than the one it was measured with: "fid" (also "rfid",
    "gfid", "sfid"), "kid" and "inception_score" are kept for the published Inception graph, every other Frechet
    distance is `fd@<network>`.
    """

    name: str
    value: float | None  # None: unavailable, for the reason in `note`
    unit: str = ""
    num_images: int
    network: str | None = None  # feature network, name@hash
    reference: str | None = None  # fingerprint of the images or statistics compared with
    crop: str | None = None
    rounding: str | None = None  # of the images before the feature network, such as "rounded to 8 bits"
    classes: str | None = None  # how the samples' classes were drawn: balanced, uniformly random, as in training
    tokenizer: str | None = None  # weights hash of the tokenizer that decoded samples
    label: str | None = None  # "true" or "null": the class that a tokenizer which wants one was given
    keep: int | None = None  # tokens decoded
    sampler: str | None = None
    steps: int | None = None
    guidance: float | str | None = None  # a scale, or a scale with its interval or schedule
    weights: str | None = None  # "ema" or "raw"
    precision: str | None = None
    seed: int | None = None
    weights_hash: str | None = None
    versions: dict[str, str] = field(default_factory=versions, hash=False)
    note: str = ""

    def __post_init__(self) -> None:
        network = self.network.partition("@")[0] if self.network else None
        published = self.name.lower().endswith("fid") or self.name.lower() in ("kid", "inception_score")
        if published and network != "inception":
            raise ValueError(f"'{self.name}' is measured with the network 'inception', got {network!r}")
        if self.name.startswith("fd@") and self.name != f"fd@{network}":
            raise ValueError(f"'{self.name}' is named after another network than its own, {network!r}")
        if self.weights not in ("ema", "raw", None):
            raise ValueError(f"weights is 'ema' or 'raw', got {self.weights!r}")
        if self.label not in ("true", "null", None):
            raise ValueError(f"label is 'true' or 'null', got {self.label!r}")
        if self.num_images < 0:
            raise ValueError(f"num_images is a count, got {self.num_images}")
        if self.value is None and not self.note:
            raise ValueError(f"'{self.name}' has no value: its note must say why")

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for strict JSON; an infinite or undefined value becomes a string."""
        content = asdict(self)
        if self.value is not None:
            value = float(self.value)
            content["value"] = value if math.isfinite(value) else str(value)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Record:
        """The record of `to_json`'s dictionary; raises TypeError or ValueError where it is not one."""
        value = content.get("value")
        return cls(**content | {"value": None if value is None else float(value)})


def column_names(measured: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], str]:
    """What to call each metric and network, (name, "name@hash"): the metric's name where only one network has it.

    Else "label_agreement@cnn", and "label_agreement@cnn@ab12" or "fd@cnn@ab12" where networks of other weights are
    called the same.
    """
    pairs = dict.fromkeys(measured)
    names = Counter(name for name, _ in pairs)
    longer = {pair: network_names(*pair)[0] for pair in pairs}
    taken = Counter(longer.values())
    return {
        pair: pair[0] if names[pair[0]] == 1 else longer[pair] if taken[longer[pair]] == 1 else network_names(*pair)[1]
        for pair in pairs
    }


def network_names(name: str, network: str | None) -> tuple[str, str]:
    """A metric's name with its network's, without and with the hash; those of no network stay as they are."""
    if network is None:
        return name, name
    metric = name.partition("@")[0]
    return f"{metric}@{network.partition('@')[0]}", f"{metric}@{network}"


def frechet_name(network: str) -> str:
    """Name of a Frechet distance on the features of `network` ("name" or "name@hash"): `fd@name`."""
    return f"fd@{network.partition('@')[0]}"


def write_records(path: str | Path, records: Sequence[Record]) -> None:
    """Write records as a JSON list; `path` holds the old content or the whole new one, never a part."""
    path = Path(path)
    text = json.dumps([record.to_json() for record in records], indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"a writable place for records is expected, got {path}: {reason}; choose another folder or free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never made
            temporary.unlink()


def read_records(path: str | Path) -> list[Record]:
    """Records from a file of `write_records`; raises DataError where it is missing or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError("no list")
        return [Record.from_json(entry) for entry in content]
    except OSError as error:
        raise DataError(
            f"a file of records is expected at {path}, found: {error.strerror or error}; evaluate the model first"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"a JSON list of metric records is expected in {path}, got something else ({error}); evaluate again"
        ) from error

"""A measured number with its protocol, and files of them."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from tok1d.config.sampling import SampleSettings
from tok1d.errors import DataError, reason_of
from tok1d.files import write_text
from tok1d.zoo.record_v0 import upgraded

SHOWN_FIRST = ("sampler", "steps", "evaluations", "unit")
DEFAULTS = {each.name: each.default for each in fields(SampleSettings)}


def versions() -> dict[str, str]:
    """Versions of tok1d, torch, numpy and python that measure here."""
    found = {}
    for package in ("tok1d", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"  # used from a source tree that was never installed
    return found | {"python": platform.python_version()}


class ModelProtocol(TypedDict, total=False):
    """The fields of `Record` that depend on the measured model alone."""

    weights: str | None
    precision: str | None
    weights_hash: str | None
    crop: str | None


class Stated(ModelProtocol, total=False):
    """The fields of `Record` that all metrics of an evaluation share."""

    num_images: int
    seed: int | None
    label: str | None
    classes: str | None
    tokenizer: str | None
    sampling: dict[str, object] | None
    decoding: dict[str, object] | None
    reference: str | None


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
    classes: str | None = None  # how the samples' classes were chosen: balanced, uniformly random, as in training
    tokenizer: str | None = None  # weights hash of the tokenizer that decoded samples
    label: str | None = None  # condition of the tokenizer: "true" (class or caption of the image) or "null"
    keep: int | None = None  # tokens decoded
    sampling: dict[str, object] | None = field(default=None, hash=False)  # of a generator: settings, evaluations
    decoding: dict[str, object] | None = field(default=None, hash=False)  # of a diffusion decoder: the same
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

    @property
    def sampler_text(self) -> str:
        """ "sde 50 steps, 100 evaluations a sequence; euler, 4 evaluations an image": generator, then decoder."""
        parts = [_sampling_text(self.sampling), _decoding_text(self.decoding)]
        return "; ".join(filter(None, parts))

    @property
    def decoder_steps(self) -> int | None:
        """Steps of a diffusion decoder."""
        steps = (self.decoding or {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def guidance_text(self) -> str:
        """ "2 linear in 0.25..1, decoder 3": the generator's, or of a reconstruction the decoder's, guidance."""
        sampled, decoded = guidance_text(self.sampling), guidance_text(self.decoding)
        if not sampled or not decoded:
            return sampled or decoded
        scale = (self.decoding or {}).get("guidance")
        return sampled if scale == 1 else f"{sampled.removesuffix('.0')}, decoder {decoded.removesuffix('.0')}"

    def to_json(self) -> dict[str, object]:
        """The fields as a dictionary for strict JSON; an infinite or undefined value becomes a string."""
        content = asdict(self)
        if self.value is not None:
            value = float(self.value)
            content["value"] = value if math.isfinite(value) else str(value)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Record:
        """The record of `to_json`'s dictionary, also of an older version's; raises TypeError or ValueError where it is
        not one."""
        fields = upgraded(content)
        for key in ("sampling", "decoding"):
            if not isinstance(fields.get(key), dict | None):
                raise TypeError(f"{key}: expected a mapping, got {fields[key]!r}")
        value = fields.get("value")
        return cls(**fields | {"value": None if value is None else float(value)})


def is_guidance(key: str) -> bool:
    """Whether a key of a record's settings is of guidance."""
    return key.startswith("guidance") or key == "weak_model"


def guidance_text(settings: Mapping[str, object] | None) -> str:
    """ "2.0", "2 linear", "1.9 in 0.25..1 against sit@ab12"; "" without guidance."""
    scale = (settings or {}).get("guidance")
    if settings is None or not isinstance(scale, int | float):
        return scale if isinstance(scale, str) else ""
    words = []
    if schedule := settings.get("guidance_schedule"):
        power = settings.get("guidance_power")
        words.append(str(schedule) if power is None else f"{schedule} {power:g}")
    if interval := interval_of(settings):
        words.append("in {:g}..{:g}".format(*interval))
    if weak := settings.get("weak_model"):
        words.append(f"against {weak}")
    return " ".join([f"{scale:g}", *words]) if words else str(float(scale))


def interval_of(settings: Mapping[str, object]) -> tuple[float, float] | None:
    """The guidance interval in a record's settings, (low, high); None if they state none."""
    match settings.get("guidance_interval"):
        case [int() | float() as low, int() | float() as high]:
            return low, high
        case _:
            return None


def details_text(settings: Mapping[str, object]) -> str:
    """The settings that differ from their defaults, without sampler, steps and guidance: ", top-k 5, annealed"."""
    words = []
    for key in sorted(settings, key=lambda key: key == "temperature"):  # temperature last
        value = settings[key]
        if key in SHOWN_FIRST or is_guidance(key) or value == DEFAULTS.get(key, False):
            continue
        shown = f" {value:g}" if isinstance(value, int | float) else f" {value}"
        words.append(f", {key.replace('_', '-')}{'' if value is True else shown}")
    return "".join(words)


def _sampling_text(settings: Mapping[str, object] | None) -> str:
    if settings is None or "sampler" not in settings:
        return ""
    steps = f" {settings['steps']} steps" if settings.get("steps") else ""
    return f"{settings['sampler']}{steps}{_evaluations_text(settings)}{details_text(settings)}"


def _decoding_text(settings: Mapping[str, object] | None) -> str:
    if settings is None or "sampler" not in settings:
        return ""
    return f"{settings['sampler']}{_evaluations_text(settings)}{details_text(settings)}"


def _evaluations_text(settings: Mapping[str, object]) -> str:
    if "evaluations" not in settings:
        return ""
    unit = settings["unit"]
    return f", {settings['evaluations']:g} evaluations {'an' if unit == 'image' else 'a'} {unit}"


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
    text = json.dumps([record.to_json() for record in records], indent=2, allow_nan=False) + "\n"
    try:
        write_text(Path(path), text)
    except OSError as error:
        raise DataError(
            f"a writable place for records is expected, got {path}: {reason_of(error)}; choose another folder or free "
            "space"
        ) from error


def read_records(path: str | Path) -> list[Record]:
    """Records from a file of `write_records`; raises DataError where it is missing or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError("no list")
        return [Record.from_json(entry) for entry in content]
    except OSError as error:
        raise DataError(
            f"a file of records is expected at {path}, found: {reason_of(error)}; evaluate the model first"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"a JSON list of metric records is expected in {path}, got something else ({error}); evaluate again"
        ) from error

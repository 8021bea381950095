"""Records: measured numbers with all their settings, and files of records."""

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
BASELINE = "baseline:"  # begins the names of numbers that are not of a model: baseline:NAME:METRIC
DEFAULTS = {each.name: each.default for each in fields(SampleSettings)}


def versions() -> dict[str, str]:
    """The installed versions of tok1d, torch, numpy and python."""
    found = {}
    for package in ("tok1d", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"  # used from a source tree without installation
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
    class_names: str | None
    tokenizer: str | None
    sampling: dict[str, object] | None
    decoding: dict[str, object] | None
    reference: ReferenceSet | None


@dataclass(frozen=True)
class ReferenceSet:
    """The images or statistics that a number was compared with.

    Args:
        fingerprint: identifies the whole set.
        of: train, validation, test or own; "": not stated.
        count: number of images that were used; None: not stated.
        chosen: how they were chosen from the set, "first" or "spread"; "": all of them.
        split: which images of the data the set is, and of how many, for people; "": not stated.
    """

    fingerprint: str
    of: str = ""
    count: int | None = None
    chosen: str = ""
    split: str = ""

    def __str__(self) -> str:
        """As tables show it: "spread 100 test images 77d4fd3f41a32d54"."""
        count = "" if self.count is None else str(self.count)
        images = "images" if self.of or count else ""
        return " ".join(filter(None, (self.chosen, count, self.of, images, self.fingerprint)))

    def may_equal(self, other: ReferenceSet) -> bool:
        """Whether both can be the same set; older records do not state the split or the number of images."""
        counts = {self.count, other.count}
        return (self.fingerprint, self.chosen) == (other.fingerprint, other.chosen) and (
            len(counts) == 1 or None in counts
        )


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number and how it was measured; a field that does not apply is None.

    The names "fid", "rfid", "gfid", "sfid", "kid" and "inception_score" are reserved for the published Inception
    network; any other Frechet distance is `fd@<network>`.

    Raises:
        ValueError: a name that does not fit the network, or a field with a value that it does not accept.
    """

    name: str
    value: float | None  # None: not available; `note` states the reason
    unit: str = ""
    num_images: int
    network: str | None = None  # feature network, name@hash
    reference: ReferenceSet | None = None
    crop: str | None = None
    rounding: str | None = None  # rounding of the images before the feature network, such as "rounded to 8 bits"
    classes: str | None = None  # how the samples' classes were chosen: balanced, uniformly random, as in training
    class_names: str | None = None  # names of the classes of the images or samples, see `config.classes.stated`
    tokenizer: str | None = None  # weights hash of the tokenizer that decoded samples
    label: str | None = None  # condition of the tokenizer: "true" (class or caption of the image) or "null"
    keep: int | None = None  # number of leading tokens that were decoded, the same for all images
    # as many tokens as each image needs: tokens (their mean), quality in dB, metric, by
    budget: dict[str, object] | None = field(default=None, hash=False)
    sampling: dict[str, object] | None = field(default=None, hash=False)  # settings and evaluations of a generator
    decoding: dict[str, object] | None = field(default=None, hash=False)  # the same of a diffusion decoder
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
            raise ValueError(
                f"'{self.name}' is named after another network than the one it was measured with, {network!r}"
            )
        if self.weights not in ("ema", "raw", None):
            raise ValueError(f"weights is 'ema' or 'raw', got {self.weights!r}")
        if self.label not in ("true", "null", None):
            raise ValueError(f"label is 'true' or 'null', got {self.label!r}")
        if self.num_images < 0:
            raise ValueError(f"num_images is a count, got {self.num_images}")
        if self.value is None and not self.note:
            raise ValueError(f"'{self.name}' has no value: expected a note with the reason, got none")

    @property
    def sampler_text(self) -> str:
        """Samplers of generator, decoder: "sde 50 steps, 100 evaluations a sequence; euler, 4 evaluations an image"."""
        parts = [_sampling_text(self.sampling), _decoding_text(self.decoding)]
        return "; ".join(filter(None, parts))

    @property
    def keep_text(self) -> str:
        """The number of leading tokens; "8.31 for 18 dB" of images with as many as each needs; else ""."""
        if self.budget is None:
            return "" if self.keep is None else str(self.keep)
        return f"{self.budget['tokens']:.4g} for {quality_text(self.budget)}"

    @property
    def decoder_steps(self) -> int | None:
        """Steps of a diffusion decoder."""
        steps = (self.decoding or {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def guidance_text(self) -> str:
        """Guidance of generator, decoder: "2 linear in 0.25..1, decoder 3"; for reconstructions only the decoder's."""
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
        """The record from a dictionary of `to_json`, also of an older version.

        Raises:
            TypeError, ValueError: the dictionary is not a record.
        """
        fields = upgraded(content)
        for key in ("budget", "sampling", "decoding", "reference"):
            if not isinstance(fields.get(key), dict | None):
                raise TypeError(f"{key}: expected a mapping, got {fields[key]!r}")
        if isinstance(reference := fields.get("reference"), dict):
            fields["reference"] = ReferenceSet(**reference)
        value = fields.get("value")
        return cls(**fields | {"value": None if value is None else float(value)})


def quality_text(budget: Mapping[str, object]) -> str:
    """The quality of a record's budget: "18 dB", "inf dB"."""
    return f"{float(str(budget['quality'])):g} dB"


def is_guidance(key: str) -> bool:
    """Whether a key of a record's settings belongs to guidance."""
    return key.startswith("guidance") or key == "weak_model"


def guidance_text(settings: Mapping[str, object] | None) -> str:
    """Guidance as text: "2.0", "2 linear", "1.9 in 0.25..1 against sit@ab12"; "" if the settings state none."""
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
    """Names of table columns for pairs of metric and network ("name@hash").

    The metric's name if only one network measured it, else "label_agreement@cnn"; "label_agreement@cnn@ab12" or
    "fd@cnn@ab12" if networks of the same name have different weights.
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
    """The name of a metric with its network, without and with the hash; unchanged if there is no network."""
    if network is None:
        return name, name
    metric = name.partition("@")[0]
    return f"{metric}@{network.partition('@')[0]}", f"{metric}@{network}"


def frechet_name(network: str) -> str:
    """Name of a Frechet distance on the features of `network` ("name" or "name@hash"): `fd@name`."""
    return f"fd@{network.partition('@')[0]}"


def write_records(path: str | Path, records: Sequence[Record]) -> None:
    """Write records atomically as a JSON list; raises DataError if the file cannot be written."""
    text = json.dumps([record.to_json() for record in records], indent=2, allow_nan=False) + "\n"
    try:
        write_text(Path(path), text)
    except OSError as error:
        raise DataError(
            f"{path}: expected a writable place for records, got: {reason_of(error)}; choose another folder or free "
            "space"
        ) from error


def read_records(path: str | Path) -> list[Record]:
    """Read a file of `write_records`; raises DataError if it is missing or has another content."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError("no list")
        return [Record.from_json(entry) for entry in content]
    except OSError as error:
        raise DataError(
            f"{path}: expected a file of records, got: {reason_of(error)}; evaluate the model first"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a JSON list of metric records, got something else ({error}); evaluate again"
        ) from error

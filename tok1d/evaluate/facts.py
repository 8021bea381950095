"""The settings of a measured number, read from its record and from the recipe of its model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tok1d.config.differing import GENERIC_DATA
from tok1d.config.load import stored_tree
from tok1d.config.sampling import EVERYWHERE
from tok1d.errors import DataError
from tok1d.evaluate.published import ABSENT, NONE, Facts, published, text_of
from tok1d.zoo.record import DEFAULTS, SHOWN_FIRST, Record, details_text, guidance_text, interval_of, quality_text
from tok1d.zoo.record_v0 import upgraded

BUNDLED = Path(__file__).parents[1] / "zoo" / "bundled"
# Settings that do not apply to every number, such as the steps of a diffusion decoder.
_WHERE_APPLICABLE = (
    *("network_hash", "sampler", "steps", "temperature", "guidance", "guidance_schedule", "guidance_interval"),
    *("decoder_sampler", "decoder_steps", "decoder_guidance", "classes", "class_names", "tokenizer"),
    "rounding",
)

# Fields that files of older versions do not have, and their settings.
_ADDED_LATER = {"classes": "classes", "class_names": "class_names", "tokenizer": "tokenizer", "rounding": "rounding"}


def measured(
    record: Record,
    name: str,
    *,
    stated: Mapping[str, object] | None = None,
    recipe: Mapping[str, object] | None = None,
    data_print: str = "",
) -> Facts:
    """Return the settings of a record.

    Args:
        stated: the record as its file has it. Fields that are missing there are "not stated"; older versions had fewer.
        recipe: of the measured model; it adds settings that the record does not have.
        data_print: fingerprint of its training images.
    """
    content = record.to_json()
    known = set(content if stated is None else stated)
    settings: dict[str, str | None] = {"metric": record.name}
    fields = {key: content[key] for key in content if key not in ("name", "value", "unit")}
    fields["reference"] = None if record.reference is None else str(record.reference)
    for key, value in fields.items():
        if key in _READERS:
            settings |= _READERS[key](value if key in known else None, record)
        else:
            settings[key] = (NONE if value in (None, "") else text_of(value)) if key in known else None
    if "decoder_sampler" not in settings and "decoding" in known and record.keep is not None:
        settings["decoder_sampler"] = "deterministic"
    absent: dict[str, str | None] = dict.fromkeys(_WHERE_APPLICABLE, ABSENT)
    absent |= {key: None for name, key in _ADDED_LATER.items() if name not in known}
    settings = absent | settings | _of_recipe(recipe or {})
    about, images = _about(record), {"trained": recipe or {}, "data_print": data_print}
    return Facts(name, record.value, settings, about=about, reference=record.reference, **images)  # type: ignore[arg-type]


def _about(record: Record) -> str:
    kept = f" of {record.keep_text} tokens" if record.keep_text else ""
    return f"{record.name}{kept}, {record.num_images:,} images"


def _network(value: str | None, record: Record) -> dict[str, str | None]:
    if value is None:
        return {"network": NONE}
    name, _, digest = value.partition("@")
    found: dict[str, str | None] = {"network": name}
    if digest:
        found["network_hash"] = digest
    if name == "inception":
        found["implementation"] = "tok1d, torch-fidelity's port"
    return found


def _budget(value: Mapping[str, object] | None, record: Record) -> dict[str, str | None]:
    """The quality that decides the number of tokens, without the mean number, a result."""
    return {} if value is None else {"keep": f"for {quality_text(value)} {value['metric']}, by {value['by']}"}


def _sampling(value: Mapping[str, object] | None, record: Record) -> dict[str, str | None]:
    """The settings of the generator without the number of evaluations, which follows from the other settings."""
    if value is None:
        return {}
    settings = _settings(value)
    scale = value.get("guidance")
    if scale is None:
        return settings
    weak = f" against {value['weak_model']}" if "weak_model" in value else ""
    settings["guidance"] = text_of(scale) + weak
    if scale != 1 and not isinstance(scale, str):  # a scale of 1 is no guidance: schedule and interval have no effect
        power = f" {value['guidance_power']:g}" if "guidance_power" in value else ""
        settings["guidance_schedule"] = f"{value.get('guidance_schedule', 'constant')}{power}"
        low, high = interval_of(value) or EVERYWHERE
        settings["guidance_interval"] = "always" if (low, high) == EVERYWHERE else f"{low:g}..{high:g}"
    return settings


def _decoding(value: Mapping[str, object] | None, record: Record) -> dict[str, str | None]:
    if value is None:
        return {}
    settings = {f"decoder_{key}": text for key, text in _settings(value).items()}
    if "guidance" in value:
        settings["decoder_guidance"] = guidance_text(value).removesuffix(".0")
    return settings


def _settings(value: Mapping[str, object]) -> dict[str, str | None]:
    """The settings without guidance; those of a model's configuration (MaskGIT's noise) are shown with the sampler."""
    own = {key: each for key, each in value.items() if key not in DEFAULTS and key not in SHOWN_FIRST}
    settings = {
        key: text_of(each)
        for key, each in value.items()
        if key not in own and key not in ("evaluations", "unit") and each is not None
    }
    if "sampler" in settings:
        settings["sampler"] += details_text(own)
    return dict(settings)


def _versions(value: Mapping[str, str] | None, record: Record) -> dict[str, str | None]:
    return {f"version of {name}": version for name, version in (value or {}).items()}


def _rounding(value: str | None, record: Record) -> dict[str, str | None]:
    return {} if value is None else {"rounding": value}


def _classes(value: str | None, record: Record) -> dict[str, str | None]:
    return {} if value is None else {"classes": value}


def _class_names(value: str | None, record: Record) -> dict[str, str | None]:
    return {} if value is None else {"class_names": value}


def _tokenizer(value: str | None, record: Record) -> dict[str, str | None]:
    return {} if value is None else {"tokenizer": value}


def _crop(value: str | None, record: Record) -> dict[str, str | None]:
    # A crop of None is "not stated", as every image was cropped somehow. Published protocols call this crop "ADM".
    return {"crop": value and re.sub(r"^center (?=\d)", "ADM center crop ", value)}


def _note(value: str | None, record: Record) -> dict[str, str | None]:
    """The note without the deviation over subsets or chunks, a result, and few images, stated by their number."""
    return {"note": None if value is None else re.sub(r", spread [^\s;]+|(^|; )few images: [^;]+", "", value) or NONE}


_READERS: dict[str, Callable[[Any, Record], dict[str, str | None]]] = {
    "network": _network,
    "budget": _budget,
    "sampling": _sampling,
    "decoding": _decoding,
    "versions": _versions,
    "crop": _crop,
    "rounding": _rounding,
    "classes": _classes,
    "class_names": _class_names,
    "tokenizer": _tokenizer,
    "note": _note,
}


def _of_recipe(recipe: Mapping[str, object]) -> dict[str, str | None]:
    """The settings of a model's training, from its recipe."""
    if not recipe:
        return {}
    sections = [recipe.get(key) for key in ("data", "model", "train")]
    data, model, train = (section if isinstance(section, dict) else {} for section in sections)
    decay = train.get("ema")
    size = (data.get("image_size") or 0) - 2 * (data.get("pad") or 0)  # of the measured part
    batch = (train.get("batch_size") or 0) * (train.get("accumulate") or 1)
    found: dict[str, str | None] = {
        "data": f"{size}x{size}" if data.get("name") in GENERIC_DATA else f"{data.get('name')} {size}x{size}",
        "ema_decay": None if decay is None else text_of(decay) if decay else NONE,
        "train_batch": str(batch) if batch else None,
        "train_steps": None if train.get("steps") is None else str(train["steps"]),
    }
    if recipe.get("kind") == "generator":
        found["token_normalisation"] = str(model.get("statistics") or NONE)
    return found


@dataclass(frozen=True)
class Measured:
    """The records in a file, as objects and as the file states them, and what is known of their model's training.

    Args:
        recipe: {} if it is unknown.
        data_print: fingerprint of its training images; "" if it is unknown.
    """

    name: str
    records: list[Record]
    stated: list[dict[str, object]]
    recipe: dict[str, object]
    data_print: str = ""


def read_measured(name: str) -> Measured:
    """Read the records of a JSON file, a run folder, a model folder or a bundled model.

    Raises:
        DataError: a file or folder without records.
        InputError: no file, folder or bundled model has that name.
    """
    path = Path(name)
    if not path.exists() and (BUNDLED / name / "config.json").is_file():
        path = BUNDLED / name
    if path.is_dir():
        path = next((path / inside for inside in ("report.json", "config.json") if (path / inside).is_file()), path)
    if not path.exists():
        published(name)  # raises an error that lists the known names
    if not path.is_file():
        raise DataError(f"{name}: expected a file of records, a run or a model, got a folder without any")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        card = content.get("card", {}) if isinstance(content, dict) else {}
        entries = [upgraded(entry) for entry in (content if isinstance(content, list) else card["records"])]
        records = [Record.from_json(entry) for entry in entries]
        recipe = stored_tree(card.get("recipe") or _recipe_of_run(path))
        data_print = str((card or _card_of_run(path)).get("data_fingerprint", ""))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a JSON list of metric records or a model's config.json, got something else "
            f"({error}); evaluate again"
        ) from error
    if not records:
        raise DataError(f"{path}: expected records, got none; evaluate the model first")
    return Measured(name, records, entries, recipe, data_print)


def _card_of_run(path: Path) -> dict[str, Any]:
    """The card of the model in the folder of a run's report; {} if there is none."""
    config = path.parent / "model" / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["card"] if config.is_file() else {}


def _recipe_of_run(path: Path) -> str:
    """The resolved recipe in the folder of a run's report; "" if there is none."""
    recipe = path.with_name("config.yaml")
    return recipe.read_text(encoding="utf-8") if recipe.is_file() else ""

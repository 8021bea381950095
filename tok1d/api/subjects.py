"""The tokenizers of an analysis with their images, and its result."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tok1d import files
from tok1d.config.options import parse_counts
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.devices import pick_device
from tok1d.errors import InputError
from tok1d.inference import images as sources
from tok1d.pictures import data_uri, save_png
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.checkpoints import load_model
from tok1d.zoo.weights import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

Say = Callable[[str], object]


@dataclass(frozen=True)
class Subject:
    """A tokenizer that is analyzed, and the images of the data in its size."""

    name: str
    data: str
    tokenizer: Tokenizer
    images: ImageSet
    data_root: str | None = None

    def facts(self, num: int, **settings: object) -> dict[str, object]:
        """What every record of an analysis begins with."""
        return {
            "model": self.name,
            "weights_hash": fingerprint(self.tokenizer),
            "data": self.data,
            "reference": subset(self.images, num).fingerprint(),
            **settings,
        }

    def training(self) -> ImageSet:
        """The training images of the data, in the tokenizer's size."""
        return sources.open_data(self.data, self.tokenizer, split="train", data_root=self.data_root, report=False)


def open_subjects(
    models: Sequence[str | Path | nn.Module],
    data: str,
    split: str | None = None,
    data_root: str | None = None,
    device: str | None = None,
) -> list[Subject]:
    """Open all models and the data for each, before the first is analyzed; the weights of all are held in memory.

    Raises:
        InputError: no model, one twice, or one that is no tokenizer.
        Tok1dError: a model or data that cannot be opened.
    """
    names = [
        str(getattr(each, "folder", type(each).__name__)) if isinstance(each, nn.Module) else str(each)
        for each in models
    ]
    if not names:
        raise InputError(f"expected MODEL... DATA, at least one model and then the data, got only {data}")
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise InputError(f"expected different models, got {twice} {names.count(twice)} times")
    tokenizers = [_opened(each, name, device) for each, name in zip(models, names, strict=True)]
    found = []
    for number, (name, tokenizer) in enumerate(zip(names, tokenizers, strict=True)):
        images = sources.open_data(data, tokenizer, split=split, data_root=data_root, report=not number)
        found.append(Subject(name, data, tokenizer, images, data_root))
    return found


def _opened(model: str | Path | nn.Module, name: str, device: str | None) -> Any:
    loaded: Any = model if isinstance(model, nn.Module) else load_model(name, device=pick_device(device))
    if not hasattr(loaded, "spec"):
        raise InputError(f"{name}: expected a tokenizer, this is the model {loaded.config.name}")
    return loaded


def fitting(
    subjects: Sequence[Subject], check: Callable[[Subject], object], say: Say
) -> tuple[list[Subject], dict[str, str]]:
    """The tokenizers that an analysis fits, and for each other one, by name, the reason; a line is said for each.

    Args:
        check: raises InputError for a tokenizer that the analysis does not fit.

    Raises:
        InputError: it fits none.
    """
    fit, without = [], dict[str, str]()
    for each in subjects:
        try:
            check(each)
            fit.append(each)
        except InputError as error:
            without[each.name] = str(error)
    if not fit:
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in without.items()))
    for name, reason in without.items():
        say(f"{name}: left out, {reason}")
    return fit, without


def lengths_of(text: str, tokenizer: Tokenizer) -> list[int] | None:
    """The prefix lengths of `--keep`: None for "", every length for "all"; raises InputError for anything else."""
    length = tokenizer.spec.length
    if text == "all":
        return list(range(length + 1))
    return parse_counts(text, "--keep", 0, length) if text else None


@dataclass(frozen=True, repr=False)
class Analysis:
    """The result of an analysis; a notebook shows its sentence and plot.

    Args:
        name: of the analysis.
        said: the result in words, a sentence for each model.
        body: the numbers: "models", one record each with its settings, and "left_out", by name the reason why a model
            does not fit; for "modes", which has no models, its own fields.
        picture: the plot.
        lines: a line for each measurement.
    """

    name: str
    said: str
    body: dict[str, Any]
    picture: Image
    lines: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record for each model."""
        return list(self.body.get("models", []))

    def save(self, folder: str | Path) -> None:
        """Write NAME.json and NAME.png into a folder."""
        content = {"analysis": self.name, "said": self.said, **self.body}
        save_png(self.picture, Path(folder) / f"{self.name}.png")
        files.write_text(Path(folder) / f"{self.name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        return "\n".join([*self.lines, self.said])

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.picture.save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        return f'<p>{escape(self.said)}</p><img src="{data_uri(self.picture)}" alt="{escape(self.name)}">'


class Collected:
    """The results of the models so far; each line is said at once."""

    def __init__(self, name: str, say: Say) -> None:
        self.name, self.say, self.lines = name, say, list[str]()
        self.found: dict[str, Any] = {}
        self.records: list[dict[str, object]] = []

    def note(self, each: Subject, line: str) -> None:
        """Say a line of a model."""
        self.lines.append(f"{each.name}: {line}")
        self.say(self.lines[-1])

    def add(self, each: Subject, result: Any, seed: int | None, **facts: object) -> None:
        """Add the result of a model; `seed` is None if nothing is random."""
        self.found[each.name] = result
        for line in result.describe():
            self.note(each, line)
        self.records.append({**each.facts(result.num, seed=seed, **facts), **result.to_json()})

    def finished(self, picture: Image, without: dict[str, str] | None = None) -> Analysis:
        """The analysis of all models."""
        pairs = zip(self.records, self.found.values(), strict=True)
        said = "\n".join(f"{record['model']}: {result.said()}." for record, result in pairs)
        body: dict[str, Any] = {"models": self.records} | ({"left_out": dict(without)} if without else {})
        return Analysis(self.name, said, body, picture, self.lines)

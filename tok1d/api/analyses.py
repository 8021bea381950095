"""`tok1d.analyze`: spectrum, probe, map and semantics of one or several tokenizers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tok1d import files
from tok1d.analyze.judged import judges, settings_of_each
from tok1d.analyze.probe import plot_probes, probe
from tok1d.analyze.request import JudgedReconstructions, Maps, Probes, Spectra, label_of
from tok1d.analyze.semantics import METRICS, check_networks, plot_semantics, semantics
from tok1d.analyze.spectrum import plot_spectra, spectrum
from tok1d.analyze.token_map import plot_maps, token_map
from tok1d.api.settings import settings_of
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.devices import pick_device
from tok1d.errors import InputError
from tok1d.inference import images as sources
from tok1d.pictures import data_uri, save_png
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo import store
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


@dataclass(frozen=True, repr=False)
class Analysis:
    """The result of an analysis; a notebook shows its sentence and plot.

    Args:
        name: of the analysis.
        records: the numbers, with settings, one record for each model.
        clauses: what the analysis says of each model.
        picture: the plot.
        lines: a line for each measurement.
    """

    name: str
    records: list[dict[str, object]]
    clauses: list[str]
    picture: Image
    lines: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The result, a sentence for each model."""
        pairs = zip(self.records, self.clauses, strict=True)
        return "\n".join(f"{record['model']}: {clause}." for record, clause in pairs)

    def save(self, folder: str | Path) -> None:
        """Write NAME.json and NAME.png into a folder."""
        content = {"analysis": self.name, "said": self.said, "models": self.records}
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


def analyze(
    name: str,
    models: str | Path | nn.Module | Sequence[str | Path | nn.Module],
    data: str | Path,
    *,
    split: str | None = None,
    data_root: str | None = None,
    device: str | None = None,
    **settings: Any,
) -> Analysis:
    """Analyze the tokens of one or several tokenizers; as `tok1d analyze` of these names.

        >>> import tok1d
        >>> found = tok1d.analyze("probe", "fashion-mnist-maetok", "fashion_mnist", num=64, num_train=256)
        >>> found.name, len(found.records)
        ('probe', 1)

    Args:
        name: "spectrum", "probe", "map" or "semantics".
        models: names or folders, or loaded tokenizers.
        data: fashion_mnist, emoji, or a folder of images, shards or a saved data set.
        split: train, test or all; default: see `tok1d.inference.images.measured_split`.
        device: default: a GPU if there is one.
        settings: the options of the command.

    Raises:
        Tok1dError: an analysis, models, data or settings that are missing or do not fit together.
    """
    if name not in ANALYSES:
        raise InputError(f"analyze: expected {', '.join(ANALYSES)}, got {name!r}; tok1d analyze --help lists more")
    kind, run = ANALYSES[name]
    how: Any = settings_of(kind, settings, f"analyze {name}")
    given = [models] if isinstance(models, str | Path | nn.Module) else list(models)
    split = "test" if name == "probe" else split
    return run(open_subjects(given, str(data), split, data_root, device), how, lambda line: None)


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
    loaded: Any = model if isinstance(model, nn.Module) else store.load(name, device=pick_device(device))
    if not hasattr(loaded, "spec"):
        raise InputError(f"{name}: expected a tokenizer, this is the model {loaded.config.name}")
    return loaded


class _Collected:
    """The results of the models so far; each line is said at once."""

    def __init__(self, name: str, say: Say) -> None:
        self.name, self.say, self.lines = name, say, list[str]()
        self.found: dict[str, Any] = {}
        self.records: list[dict[str, object]] = []

    def add(self, each: Subject, result: Any, lines: Sequence[str], seed: int | None, **facts: object) -> None:
        self.found[each.name] = result
        for line in lines:
            self.lines.append(f"{each.name}: {line}")
            self.say(self.lines[-1])
        self.records.append({**each.facts(result.num, seed=seed), **facts, **result.to_json()})

    def finished(self, plot: Callable[[dict[str, Any]], Image]) -> Analysis:
        said = [each.said() for each in self.found.values()]
        return Analysis(self.name, self.records, said, plot(self.found), self.lines)


def spectra(subjects: Sequence[Subject], how: Spectra, say: Say) -> Analysis:
    """Power spectra of reconstructions by number of tokens, and semantic agreement beside them."""
    settings = settings_of_each(
        [each.tokenizer for each in subjects], how, partial=how.partial, components=how.components
    )
    measures = [judges(e.tokenizer, e.data, how.network, ("semantic",), e.images.class_names) for e in subjects]
    collected = _Collected("spectrum", say)
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        fitted = each.training() if how.components else None
        result = spectrum(each.tokenizer, each.images, own, measured, training=fitted, name=each.name)
        missing = [f"no semantic agreement: {reason}" for reason in measured.missing.values()]
        collected.add(each, result, [*result.describe(), *missing], how.seed)
    return collected.finished(plot_spectra)


def probes(subjects: Sequence[Subject], how: Probes, say: Say) -> Analysis:
    """Accuracy of linear probes on the first tokens."""
    collected = _Collected("probe", say)
    for each in subjects:
        train = each.training()
        own = replace(how, label=label_of(each, subjects, how.label))
        result = probe(each.tokenizer, train, each.images, own, name=each.name)
        trained = subset(train, result.num_train).fingerprint()
        collected.add(each, result, list(result.describe()), None, training=trained)
    return collected.finished(plot_probes)


def maps(subjects: Sequence[Subject], how: Maps, say: Say) -> Analysis:
    """Maps of the tokens coloured by class."""
    collected = _Collected("map", say)
    for each in subjects:
        own = replace(how, label=label_of(each, subjects, how.label))
        result = token_map(each.tokenizer, each.images, own, name=each.name)
        collected.add(each, result, list(result.describe()), how.seed)
    return collected.finished(plot_maps)


def judged(subjects: Sequence[Subject], how: JudgedReconstructions, say: Say) -> Analysis:
    """Accuracy of a network on reconstructions by number of tokens."""
    settings = settings_of_each([each.tokenizer for each in subjects], how)
    measures = [judges(e.tokenizer, e.data, how.network, METRICS, e.images.class_names) for e in subjects]
    for measured in measures:
        check_networks(measured)
    collected = _Collected("semantics", say)
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        result = semantics(each.tokenizer, each.images, own, measured)
        collected.add(each, result, list(result.describe()), how.seed)
    return collected.finished(plot_semantics)


ANALYSES: Mapping[str, tuple[type, Callable[..., Analysis]]] = {
    "spectrum": (Spectra, spectra),
    "probe": (Probes, probes),
    "map": (Maps, maps),
    "semantics": (JudgedReconstructions, judged),
}

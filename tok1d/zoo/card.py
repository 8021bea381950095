"""The card of a model: how its weights were trained and what was measured on them. Stored with the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tok1d.config.classes import shortened
from tok1d.config.registry import MODELS
from tok1d.data.source import BY_NAME
from tok1d.images.framing import framing_of, trained_with
from tok1d.zoo.record import BASELINE, Record

HUB_DATA = {"fashion_mnist": "zalando-datasets/fashion_mnist"}  # data sets by name, as the hub calls them
PICTURES = {
    "tokenizer": "Test images, and below them reconstructions from increasing numbers of tokens",
    "generator": "Samples, unselected",
}
TASKS = {
    "tokenizer": "image-feature-extraction",
    "generator": "unconditional-image-generation",
    "classifier": "image-classification",
}


@dataclass(repr=False)
class Card:
    """The origin of a model's weights, and its metrics.

    Args:
        recipe: the resolved recipe of the training (YAML text).
        tokenizer, tokenizer_fingerprint: for a generator, the tokenizer that it was trained on.
        generator: for a tokenizer, a generator trained on it.
        data: name of the data set, with the fingerprint of its training images.
        trained: steps, seconds, device and precision of the training.
        commit: version of the code.
        weights: "ema" or "raw", and the stored precision.
        licence: of the weights; "": not stated, as for models of a user's own images.
        classes: names of the classes of a class-conditional model or a classifier, in the order of their ids; empty if
            they are unknown.
        records: metrics with their protocol.
    """

    recipe: str = ""
    recipe_name: str = ""
    seed: int | None = None
    commit: str = ""
    data: str = ""
    data_fingerprint: str = ""
    trained: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    fingerprint: str = ""
    tokenizer: str = ""
    tokenizer_fingerprint: str = ""
    generator: str = ""
    licence: str = ""
    classes: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The card as plain values, as stored in config.json."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "records"}
        return {**content, "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Card:
        """The card of `to_json`'s dictionary; raises TypeError or ValueError for any other."""
        for name, value in content.items():
            kind = {"seed": int | None, "trained": dict, "classes": list, "records": list}.get(name, str)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"card.{name}: expected {kind}, got {value!r}"[:160])
        if not all(isinstance(name, str) for name in content.get("classes", [])):
            raise TypeError("card.classes: expected names of classes")
        return cls(**{**content, "records": [Record.from_json(record) for record in content.get("records", [])]})

    def __repr__(self) -> str:
        """One line: "Card(fashion_mnist/semanticist, data fashion_mnist, 5000 steps, psnr 20.1 dB, ...)"."""
        steps = self.trained.get("steps")
        values = [f"{'@'.join(filter(None, (r.name, r.keep_text)))} {r.value:.4g}" for r in self.records if r.value]
        more = [f"{len(values) - 2} more"] if len(values) > 2 else []
        facts = [self.recipe_name, f"data {self.data}" if self.data else "", f"{steps} steps" if steps else ""]
        return f"Card({', '.join(filter(None, [*facts, *values[:2], *more]))})"

    def to_markdown(self, model: str, name: str = "", *, picture: str = "") -> str:
        """The README.md of a model folder, with metadata that the Hugging Face hub reads and a usage snippet.

        Args:
            model: the model's name in the registry.
            name: what the snippet loads, such as OWNER/NAME; default: a placeholder.
            picture: file name of a picture beside it; "": none.
        """
        facts = {
            k: v
            for k, v in asdict(self).items()
            if k not in ("recipe", "classes", "records") and v not in ("", None, {})
        }
        if about := preprocessing(self):
            facts["images"] = about
        kind = MODELS[model].kind if model in MODELS else ""
        lines = [*front_matter(self, model, kind), f"# {model}", ""]
        if picture:
            lines += [f"![{PICTURES.get(kind, 'Output of the model')}]({picture})", ""]
        lines += [*_usage(kind, name or "FOLDER_OR_OWNER/NAME"), "| | |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items()]
        if self.classes:
            names = shortened(self.classes, 20).replace("|", "\\|")
            lines.append(f"| classes ({len(self.classes)}) | {names} |")
        if self.records:
            lines += ["", "## Measured", ""]
            lines += ["| name | value | images | tokens kept | protocol |", "|---|---|---|---|---|"]
            lines += [_table_row(record) for record in self.records]
        if self.recipe:
            lines += ["", "## Recipe", "", "```yaml", self.recipe.rstrip(), "```"]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Trained:
    """A model with a card."""

    card: Card


def preprocessing(card: Card) -> str:
    """How images become the model's input, from the recipe: "28x28 pixels, 1 channel, center crop, ..."; "" unknown."""
    trained = _Trained(card)
    size, channels = trained_with(trained, "image_size", 0), trained_with(trained, "channels", 0)
    if not size:
        return ""
    framing = framing_of(trained)
    border = f", black border of {framing['pad']} inside" if framing["pad"] else ""
    channel = f", {channels} channel{'s' * (channels != 1)}" if channels else ""
    crop = "centre crop" if framing["crop"] == "center" else "whole image in a square"
    return f"{size}x{size} pixels{channel} in [0, 1], {crop}{border}, {framing['background']} behind transparency"


def front_matter(card: Card, model: str, kind: str) -> list[str]:
    """The metadata of a model card on the hub, as lines of YAML between rules."""
    import yaml

    content: dict[str, object] = {"library_name": "tok1d"}
    if card.licence:
        known = re.fullmatch(r"[A-Za-z0-9.-]+", card.licence)
        content |= {"license": card.licence.lower()} if known else {"license": "other", "license_name": card.licence}
    content["tags"] = ["tok1d", *filter(None, [f"image-{kind}" if kind == "tokenizer" else kind, model])]
    if kind in TASKS:
        content["pipeline_tag"] = TASKS[kind]
    if card.data in BY_NAME:
        content["datasets"] = [HUB_DATA.get(card.data, card.data)]
    found = [
        r for r in card.records if r.value is not None and math.isfinite(r.value) and not r.name.startswith(BASELINE)
    ]
    if found:
        content["metrics"] = list(dict.fromkeys(record.name for record in found))
        content["model-index"] = [{"name": card.recipe_name or model, "results": _results(card, kind, found)}]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return ["---", text.rstrip(), "---", ""]


def _results(card: Card, kind: str, records: Sequence[Record]) -> list[dict[str, object]]:
    """The metrics as the hub reads them: one result for each set of images, with the protocol of each number."""
    by_split: dict[str, list[Record]] = {}
    for record in records:
        by_split.setdefault((record.reference.of if record.reference else "") or "test", []).append(record)
    data = {"type": HUB_DATA.get(card.data, card.data or "own images"), "name": card.data or "own images"}
    return [
        {
            "task": {"type": TASKS.get(kind, "other")},
            "dataset": {**data, "split": split},
            "metrics": [
                {
                    "type": record.name,
                    "value": record.value,
                    "name": f"{record.name}, {record.keep_text} tokens" if record.keep_text else record.name,
                    "args": {"num_images": record.num_images, **({} if record.keep is None else {"keep": record.keep})},
                }
                for record in some
            ],
        }
        for split, some in by_split.items()
    ]


def _usage(kind: str, name: str) -> list[str]:
    calls = {
        "tokenizer": [
            f'model = tok1d.load("{name}")',
            'tokens = model.encode("photo.png")  # resized as in training',
            "model.decode(tokens, as_pil=True)[0]",
        ],
        "generator": [
            f'generator, tokenizer = tok1d.load_pair("{name}")',
            "generator.generate(num=4, seed=0)  # .images, .tokens, .to_pil()",
        ],
    }.get(kind, [f'model = tok1d.load("{name}")'])
    return ["```python", "import tok1d", "", *calls, "```", ""]


def _table_row(record: Record) -> str:
    value = "unavailable" if record.value is None else f"{record.value:.4g} {record.unit}".strip()
    shown = {"network": record.network, "sampler": record.sampler_text, "steps": record.decoder_steps}
    shown |= {"guidance": record.guidance_text, "seed": record.seed}
    protocol = ", ".join(f"{key} {each}" for key, each in shown.items() if each not in (None, ""))
    return f"| {record.name} | {value} | {record.num_images} | {record.keep_text} | {protocol} |"

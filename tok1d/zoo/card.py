"""The card of a model: how its weights were trained and what was measured on them. Stored with the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tok1d.config.classes import shortened
from tok1d.zoo.record import Record


@dataclass
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
    licence: str = "Apache-2.0"
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

    def to_markdown(self, model: str) -> str:
        """The README.md of a model folder."""
        facts = {
            k: v
            for k, v in asdict(self).items()
            if k not in ("recipe", "classes", "records") and v not in ("", None, {})
        }
        lines = [f"# {model}", "", "| | |", "|---|---|"]
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


def _table_row(record: Record) -> str:
    value = "unavailable" if record.value is None else f"{record.value:.4g} {record.unit}".strip()
    shown = {"network": record.network, "sampler": record.sampler_text, "steps": record.decoder_steps}
    shown |= {"guidance": record.guidance_text, "seed": record.seed}
    protocol = ", ".join(f"{key} {each}" for key, each in shown.items() if each not in (None, ""))
    keep = "" if record.keep is None else record.keep
    return f"| {record.name} | {value} | {record.num_images} | {keep} | {protocol} |"

"""The record that travels with weights: where they come from and what was measured on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tok1d.zoo.record import Record


@dataclass
class Card:
    """What is known of a model's weights.

    Args:
        recipe: the resolved recipe (YAML text) they were trained by.
        tokenizer, tokenizer_fingerprint: for a generator, whose tokens it makes.
        generator: for a tokenizer, a generator made for it.
        data: which data, with a fingerprint.
        trained: steps, seconds, device and precision of the training.
        commit: version of the code.
        weights: "ema" or "raw", and the stored precision.
        records: measured numbers with their protocol.
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
    records: list[Record] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "records"}
        return {**content, "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Card:
        """The card of `to_json`'s dictionary; raises TypeError or ValueError where it is not one."""
        for name, value in content.items():
            kind = {"seed": int | None, "trained": dict, "records": list}.get(name, str)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"card.{name} is a {kind}, got {value!r}"[:160])
        return cls(**{**content, "records": [Record.from_json(record) for record in content.get("records", [])]})

    def to_markdown(self, model: str) -> str:
        """The README.md of a model folder."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("recipe", "records") and v not in ("", None, {})}
        lines = [f"# {model}", "", "| | |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items()]
        if self.records:
            lines += ["", "## Measured", ""]
            lines += ["| name | value | images | tokens kept | protocol |", "|---|---|---|---|---|"]
            for r in self.records:
                value = "unavailable" if r.value is None else f"{r.value:.4g} {r.unit}".strip()
                shown = {"network": r.network, "sampler": r.sampler_text, "steps": r.decoder_steps}
                shown |= {"guidance": r.guidance_text, "seed": r.seed}
                protocol = ", ".join(f"{key} {each}" for key, each in shown.items() if each not in (None, ""))
                keep = "" if r.keep is None else r.keep
                lines.append(f"| {r.name} | {value} | {r.num_images} | {keep} | {protocol} |")
        if self.recipe:
            lines += ["", "## Recipe", "", "```yaml", self.recipe.rstrip(), "```"]
        return "\n".join(lines) + "\n"


def trained_with(model: Any, key: str, default: Any) -> Any:
    """What a model's card says of the data it was trained on, `data.KEY` of its recipe; `default` without a card."""
    import yaml

    try:
        recipe = yaml.safe_load(getattr(getattr(model, "card", None), "recipe", ""))
    except yaml.YAMLError:  # a card is somebody's word, no recipe of ours
        return default
    data = recipe.get("data") if isinstance(recipe, dict) else None
    return data.get(key, default) if isinstance(data, dict) else default


def padding_of(model: Any) -> int:
    """The border, in pixels, of the images that a model was trained on, as its card's recipe says; else 0."""
    return int(trained_with(model, "pad", 0))

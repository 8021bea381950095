"""The names of the models that the page offers, read without torch, so that the page opens before torch is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tok1d
from tok1d.config.registry import MODELS
from tok1d.errors import WeightsError

FIRST = "emoji-smap"  # what the page shows at first, if it is there
BUNDLED = Path(tok1d.__file__).parent / "zoo" / "bundled"


@dataclass(frozen=True)
class Shelf:
    """Names of tokenizers and generators."""

    tokenizers: tuple[str, ...]
    generators: tuple[str, ...]


EMPTY = Shelf((), ())


def bundled_shelf() -> Shelf:
    """The models in the package.

    Raises:
        WeightsError: there are none.
    """
    kinds: dict[str, list[str]] = {"tokenizer": [], "generator": []}
    for path in sorted(BUNDLED.glob("*/config.json")):
        entry = MODELS.get(json.loads(path.read_text(encoding="utf-8"))["model"]["name"])
        if entry is not None and entry.kind in kinds:
            kinds[entry.kind].append(path.parent.name)
    if not kinds["tokenizer"]:
        raise WeightsError("serve: no bundled models in this package; name a model: tok1d serve MODEL")
    tokenizers = sorted(kinds["tokenizer"], key=lambda name: (name != FIRST, name))
    return Shelf(tuple(tokenizers), tuple(kinds["generator"]))

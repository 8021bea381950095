"""`models`: the bundled models, with a line on each."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from tok1d.config.load import stored_tree
from tok1d.config.registry import MODELS
from tok1d.zoo import store


@dataclass(frozen=True)
class Listed:
    """A bundled model: its name, its kind (tokenizer, generator, classifier) and a line on it."""

    name: str
    kind: str
    about: str

    def __str__(self) -> str:
        return f"{self.name:31s} {self.kind:10s} {self.about}"


class Models(list[Listed]):
    """A list of models that prints one line for each."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(e.name)}</td><td>{e.kind}</td><td>{escape(e.about)}</td></tr>" for e in self)
        return f"<table><tr><th>name</th><th>kind</th><th>about</th></tr>{rows}</table>"


def models() -> Models:
    """The bundled models, which `tok1d.load` takes by name.

    >>> import tok1d
    >>> [each.name for each in tok1d.models() if each.kind == "tokenizer"][:2]
    ['emoji-maetok', 'emoji-smap']
    """
    return Models(_listed(name) for name in store.bundled_names())


def _listed(name: str) -> Listed:
    config, card = store.read_config(store.BUNDLED / name)
    written = stored_tree(card.recipe).get("card")
    about = str(written.get("about", "")) if isinstance(written, dict) else ""
    return Listed(name, MODELS[config.name].kind, " ".join(about.split()) or f"{config.name}, {card.data}")

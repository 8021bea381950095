"""tok1d: structured 1D image tokenizers and the generators trained on their tokens.

import tok1d
model = tok1d.load("fashion-mnist-semanticist")
tokens = model.encode(images)            # images (B, 1, 28, 28) in [0, 1] -> (B, K, D)
model.decode(tokens, keep=4)             # images again, from the first four tokens
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_pair", "recipes"]

if TYPE_CHECKING:
    from pathlib import Path


def load(name: str | Path, *, device: str = "cpu") -> Any:
    """A model from a folder, a bundled name or a hub name; see `tok1d.zoo.store.load`."""
    from tok1d.zoo import store

    return store.load(name, device=device)


def load_pair(name: str | Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """A generator and its tokenizer; see `tok1d.zoo.store.load_pair`."""
    from tok1d.zoo import store

    return store.load_pair(name, device=device)


def recipes() -> list[str]:
    """Names of the packaged recipes."""
    from tok1d.config.load import recipe_names

    return recipe_names()

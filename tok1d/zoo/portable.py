"""The tokenizer that a generator's card names, so that it is found wherever the generator's folder is."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

from tok1d.errors import WeightsError
from tok1d.files import as_path
from tok1d.zoo import store
from tok1d.zoo.card import Card


def portable(name: str, folder: Path) -> str:
    """A model's name for the card of a model in `folder`: of a folder its path from there, else the name itself."""
    if name in store.bundled_names() or not Path(as_path(name)).exists():
        return name
    return Path(os.path.relpath(Path(as_path(name)).resolve(), Path(folder).resolve())).as_posix()


def with_tokenizer(card: Card, base: Path | None) -> tuple[Card, Path | None]:
    """A card for another place, and the folder of the tokenizer to copy there.

    A tokenizer in a folder is called "tokenizer" in the new card, and its folder is returned. Bundled and hub names
    are kept. One that is missing is not named, with a warning.

    Args:
        base: the generator's present folder, from which relative paths lead.
    """
    name = card.tokenizer
    here = base is not None and (base / name).exists()
    if not name or name in store.bundled_names() or (store.is_hub_name(name) and not here):
        return card, None
    try:
        folder = store.resolve(name, base)
    except WeightsError as error:
        warnings.warn(f"{error}; the saved generator names no tokenizer, pass tokenizer= on loading", stacklevel=3)
        return replace(card, tokenizer=""), None
    if folder.is_relative_to(store.BUNDLED):
        return replace(card, tokenizer=folder.relative_to(store.BUNDLED).as_posix()), None
    return replace(card, tokenizer=store.TOKENIZER), folder

"""Models in the conventions of huggingface_hub: `from_pretrained`, `save_pretrained`, `push_to_hub`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import nn

from tok1d.config.classes import class_names
from tok1d.errors import InputError, WeightsError, reason_of
from tok1d.files import as_path
from tok1d.tokenizers.model import TokenizerModel
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.portable import with_tokenizer
from tok1d.zoo.weights import fingerprint

Model = TypeVar("Model")


def from_pretrained(
    cls: type[Model],
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Model:
    """See `tok1d.config.pretrained.Pretrained.from_pretrained`."""
    hub = store.Hub(revision, cache_dir, local_files_only)
    model = store.load(name, device=device, dtype=dtype, hub=hub)
    registered = issubclass(cls, TokenizerModel) and cls is TokenizerModel and hasattr(model, "spec")
    if not isinstance(model, cls) and not registered:  # a tokenizer of a user has no base class
        wanted = "a tokenizer" if cls is TokenizerModel else f"a {cls.__name__}"
        raise InputError(f"{name}: expected {wanted}, got a {type(model).__name__}; tok1d.load takes every model")
    return model


def save_pretrained(model: nn.Module, folder: str | Path, *, licence: str | None = None, name: str = "") -> Path:
    """See `tok1d.config.pretrained.Pretrained.save_pretrained`; `name` is the model's for its README.md."""
    known: Any = getattr(model, "card", None)
    card: Card = known if isinstance(known, Card) else Card(fingerprint=fingerprint(model), weights="raw")
    card = replace(card, classes=card.classes or list(class_names(model)))
    if licence is not None:
        card = replace(card, licence=licence)
    base: Any = getattr(model, "folder", None)
    card, tokenizer = with_tokenizer(card, base)
    out = Path(as_path(str(folder)))
    drawn = None if base is None else Path(base) / store.PREVIEW
    picture = drawn.read_bytes() if drawn is not None and drawn.is_file() else None
    store.save_model(model, out, card, tokenizer=tokenizer, name=name, picture=picture)
    return out


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload of a tok1d model",
    licence: str | None = None,
) -> str:
    """See `tok1d.config.pretrained.Pretrained.push_to_hub`."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise WeightsError("push_to_hub: expected the package huggingface_hub; pip install 'tok1d[hub]'") from None
    with TemporaryDirectory() as place:
        folder = save_pretrained(model, Path(place) / "model", licence=licence, name=repo_id)
        api = HfApi(token=token)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )
        except Exception as error:  # of the hub, the network or the account
            raise WeightsError(f"{repo_id}: cannot upload to the hub: {reason_of(error)}") from None
    return str(commit)

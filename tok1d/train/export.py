"""Exporting the model of a finished run: its weights cast to another type, evaluated after the cast, with a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tok1d.config.load import stored_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.data.source import BY_NAME
from tok1d.errors import InputError
from tok1d.tokenizers.auxiliary import LatentAlignmentConfig
from tok1d.tokenizers.maetok import MAETok
from tok1d.train.folder import is_finished
from tok1d.train.previews import reconstruction_preview, sample_preview
from tok1d.train.run import evaluate
from tok1d.zoo import store
from tok1d.zoo.portable import with_tokenizer
from tok1d.zoo.record import Record
from tok1d.zoo.store import tokenizer_of
from tok1d.zoo.transfer import transfer
from tok1d.zoo.weights import fingerprint


def export(
    run: Path,
    out: Path,
    *,
    dtype: str = "float16",
    generator: str = "",
    tokenizer: str = "",
    licence: str = "",
    picture: bool | None = None,
    overrides: Sequence[str] = (),
) -> list[Record]:
    """Write the model of a finished run with its weights stored as `dtype`; returns the records of the cast model.

    A MAETok is exported without the parts that only its training uses, auxiliary decoders and alignment.

    Args:
        run: the run folder.
        out: the model folder to write.
        dtype: "float16" or "float32".
        generator: for a tokenizer, the name of a generator trained on its tokens, to be stored in its card.
        tokenizer: for a generator, its tokenizer, if it is no longer where the training found it. A tokenizer in a
            folder is copied into the model folder.
        licence: of the weights, for the card; default: that of the run.
        picture: store a picture of the model's output for the card; default: only of a data set with a name, as the
            picture of a tokenizer shows test images.
        overrides: key=value for the recipe's evaluate section (evaluate.num_images=10000).

    Raises:
        InputError: the run is not finished.
    """
    if not is_finished(run):
        raise InputError(f"{run}: expected a finished run, got an unfinished one; finish it with tok1d train")
    recipe = stored_recipe(run / "config.yaml", overrides)
    if recipe.kind == "budget":
        raise InputError(f"{run}: holds a tokenizer with its budget head, which is not exported; copy {run / 'model'}")
    trained = store.load(run / "model")
    named = trained.card
    if tokenizer:
        recipe = replace(recipe, tokenizer=tokenizer)  # the records are measured with it
        tokenizer_of(trained, tokenizer)  # the one that it was trained on
        named = replace(named, tokenizer=str(store.resolve(tokenizer)))
    named, beside = with_tokenizer(named, trained.folder)
    model = without_auxiliary(trained) if isinstance(trained, MAETok) else trained
    kind = {"float16": torch.float16, "float32": torch.float32}[dtype]
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(value.to(kind))
    card = replace(
        named,
        recipe=to_yaml(recipe),  # with the evaluate section that the records were measured by
        weights=trained.card.weights.split(",")[0] + ("" if dtype == "float32" else f", stored as {dtype}"),
        fingerprint=fingerprint(model),
        generator=generator,
        licence=licence or named.licence,
    )
    card.records = evaluate(recipe, model, with_baselines=True)
    drawn = _drawn(recipe, model, trained) if picture or (picture is None and card.data in BY_NAME) else None
    store.save_model(model, out, card, dtype=kind, tokenizer=beside, picture=drawn)
    return list(card.records)


def _drawn(recipe: Recipe, model: Any, trained: Any) -> bytes | None:
    """A PNG of reconstructions or samples, as the previews of a training; None for a classifier."""
    if recipe.kind == "classifier":
        return None
    tokenizer = tokenizer_of(trained, recipe.tokenizer) if recipe.kind == "generator" else None
    draw = reconstruction_preview(recipe) if tokenizer is None else sample_preview(recipe, tokenizer)
    with TemporaryDirectory() as place, torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        draw(model, Path(place) / store.PREVIEW)
        return (Path(place) / store.PREVIEW).read_bytes()


def without_auxiliary(model: MAETok) -> MAETok:
    """The tokenizer without auxiliary decoders and alignment, in eval mode; its tokens and images are the same."""
    config = replace(model.config, auxiliary=[], alignment=LatentAlignmentConfig())
    plain = MAETok(config)
    transfer(model, plain)
    return plain.to(next(model.parameters()).device).eval()

"""Exporting the model of a finished run: its weights cast to another type, evaluated after the cast, with a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tok1d.config.load import stored_recipe, to_yaml
from tok1d.errors import InputError
from tok1d.tokenizers.auxiliary import LatentAlignmentConfig
from tok1d.tokenizers.maetok import MAETok
from tok1d.train.folder import is_finished
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
        overrides: key=value for the recipe's evaluate section (evaluate.num_images=10000).

    Raises:
        InputError: the run is not finished.
    """
    if not is_finished(run):
        raise InputError(f"{run}: expected a finished run, got an unfinished one; finish it with tok1d train")
    recipe = stored_recipe(run / "config.yaml", overrides)
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
    store.save_model(model, out, card, dtype=kind, tokenizer=beside)
    return list(card.records)


def without_auxiliary(model: MAETok) -> MAETok:
    """The tokenizer without auxiliary decoders and alignment, in eval mode; its tokens and images are the same."""
    config = replace(model.config, auxiliary=[], alignment=LatentAlignmentConfig())
    plain = MAETok(config)
    transfer(model, plain)
    return plain.to(next(model.parameters()).device).eval()

"""Commands on several tokenizers and one data set: their arguments, and the records of the tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tok1d.cli.options import DATA_HELP, MODEL_HELP, PATH, ChosenImages

if TYPE_CHECKING:
    from PIL.Image import Image

    from tok1d.api.analyses import Subject

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... DATA",
        help=f"one or several models, then the data. A model: {MODEL_HELP}. The data: {DATA_HELP}",
        show_default=False,
    ),
    PATH,
]


def models_and_data(given: Sequence[str]) -> tuple[list[str], str]:
    """The models and the data of `Models`; raises InputError for fewer than two arguments, or a model twice."""
    from tok1d.errors import InputError

    *models, data = given
    if not models:
        raise InputError(f"expected MODEL... DATA, at least one model and then the data, got only {data}")
    if twice := next((each for each in models if models.count(each) > 1), None):
        raise InputError(f"expected different models, got {twice} {models.count(twice)} times")
    return models, data


def open_subjects(given: Sequence[str], device: str | None, chosen: ChosenImages) -> list[Subject]:
    """Open the models and the data of `Models`; see `tok1d.api.analyses.open_subjects`."""
    from tok1d.api import analyses

    return analyses.open_subjects(*models_and_data(given), chosen.split, chosen.data_root, device)


def write_analysis(
    folder: Path, name: str, records: Sequence[Mapping[str, object]], said: Sequence[str], picture: Image
) -> None:
    """Write NAME.json (`models`: one record each, `said`: the sentence) and NAME.png, and print the sentence.

    Args:
        said: a clause for each record, without the model's name.
    """
    sentence = "; ".join(f"{record['model']}: {clause}" for record, clause in zip(records, said, strict=True)) + "."
    write_found(folder, name, {"analysis": name, "said": sentence, "models": list(records)}, picture)


def write_found(folder: Path, name: str, content: Mapping[str, object], picture: Image) -> None:
    """Write NAME.json with this content and NAME.png, and print the sentence under `said`."""
    import json

    from tok1d import files
    from tok1d.pictures import save_png

    save_png(picture, folder / f"{name}.png")
    files.write_text(folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(content["said"])
    print(f"record: {folder / f'{name}.json'}\nplot: {folder / f'{name}.png'}")

"""Commands on several tokenizers and one data set: their arguments, and the records of the tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from tok1d.cli.options import DATA_HELP, MODEL_HELP, PATH, ChosenImages
from tok1d.config.options import parse_counts

if TYPE_CHECKING:
    from PIL.Image import Image

    from tok1d.api.analyses import Subject
    from tok1d.tokenizers.base import Tokenizer

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... DATA",
        help=f"one or several models, then the data. A model: {MODEL_HELP}. The data: {DATA_HELP}",
        show_default=False,
    ),
    PATH,
]


class Found(Protocol):
    """The result of an analysis of one tokenizer."""

    @property
    def num(self) -> int:
        """Number of images."""
        ...

    def describe(self) -> list[str]:
        """Lines of text."""
        ...

    def to_json(self) -> dict[str, object]:
        """The fields of its entry in the record."""
        ...


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


def fitting(subjects: Sequence[Subject], check: Callable[[Subject], object]) -> tuple[list[Subject], dict[str, str]]:
    """The tokenizers that an analysis fits, and for each other one, by name, the reason; a line is printed for each.

    Args:
        check: raises InputError for a tokenizer that the analysis does not fit.

    Raises:
        InputError: it fits none.
    """
    from tok1d.errors import InputError

    fit, without = [], dict[str, str]()
    for each in subjects:
        try:
            check(each)
            fit.append(each)
        except InputError as error:
            without[each.name] = str(error)
    if not fit:
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in without.items()))
    for name, reason in without.items():
        print(f"{name}: left out, {reason}")
    return fit, without


def lengths_of(text: str, tokenizer: Tokenizer) -> list[int] | None:
    """The prefix lengths of `--keep`: None for "", every length for "all"; raises InputError for anything else."""
    length = tokenizer.spec.length
    if text == "all":
        return list(range(length + 1))
    return parse_counts(text, "--keep", 0, length) if text else None


def reported(subject: Subject, found: Found, *, seed: int | None, **settings: Any) -> dict[str, Any]:
    """Print the result of one tokenizer and return its entry in the record.

    Args:
        seed: None if nothing is random.
        settings: further fields, before those of the result.
    """
    for line in found.describe():
        print(f"{subject.name}: {line}")
    return {**subject.facts(found.num, seed=seed, **settings), **found.to_json()}


def write_analysis(
    folder: Path,
    name: str,
    records: Sequence[Mapping[str, object]],
    said: Sequence[str],
    picture: Image,
    without: Mapping[str, str] | None = None,
) -> None:
    """Write NAME.json (`models`: one record each, `said`: the sentence) and NAME.png, and print the sentences.

    Args:
        said: a clause for each record, without the model's name.
        without: the reasons of models that were left out, by name; in the record as `left_out`.
    """
    sentences = [f"{record['model']}: {clause}." for record, clause in zip(records, said, strict=True)]
    left_out = {"left_out": dict(without)} if without else {}
    content = {"analysis": name, "said": "\n".join(sentences), "models": list(records), **left_out}
    write_found(folder, name, content, picture)


def write_found(folder: Path, name: str, content: Mapping[str, object], picture: Image) -> None:
    """Write NAME.json with this content and NAME.png, and print the sentence under `said`."""
    import json

    from tok1d import files
    from tok1d.pictures import save_png

    save_png(picture, folder / f"{name}.png")
    files.write_text(folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(content["said"])
    print(f"record: {folder / f'{name}.json'}\nplot: {folder / f'{name}.png'}")

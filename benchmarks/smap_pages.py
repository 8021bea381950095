"""Fills the tables of docs/smap.md from the records of smap_table.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from table import FD, Records, fill, markdown, read, seeds, spread, trainings

PAGE = Path(__file__).parents[1] / "docs" / "smap.md"


def of_length(n: int) -> dict[str, tuple[str, int]]:
    """The tokenizers trained with n tokens, by kind: their name in the tables, and n."""
    names = {
        f"kl{n}": "SMAP KL",
        f"kl{n}-full": "SMAP KL, no tail dropping",
        f"titok-kl{n}": "TiTok KL",
        f"vq{n}": "SMAP VQ",
        f"vq{n}-full": "SMAP VQ, no tail dropping",
        f"titok-vq{n}": "TiTok VQ",
    }
    return {kind: (name, n) for kind, name in names.items()}


TOKENIZERS = {
    **of_length(16),
    "kl16-dropout": ("SMAP KL, label dropout", 16),
    "kl16-unconditioned": ("SMAP KL, no condition", 16),
    **of_length(4),
}
GENERATORS = {
    "card-unconditioned": ("CARD, own table", "SMAP KL, no condition"),
    "card-independent": ("CARD, own table", "SMAP KL"),
    "card-shared": ("CARD, shared table", "SMAP KL"),
    "llamagen": ("LlamaGen", "SMAP VQ"),
    "maskgit": ("MaskGIT", "SMAP VQ"),
}
PERCENT = ("judge_accuracy", "label_agreement", "condition", "tokens")
DIGITS = {"psnr": 2, "mse": 5, FD: 2, "test_loss": 4, "excess": 2, "reconstructed": 2}
NAMES = {"psnr": "PSNR, dB", "mse": "squared error", FD: f"`{FD}`", "judge_accuracy": "classifier, %"}
Side = tuple[str, str]  # a kind of row, and the path of a value in its record


def figure(record: dict[str, Any], path: str) -> float | None:
    """A value of a record by its path, with "all" for the full length; fractions in percent; None if absent."""
    found: Any = record
    for part in path.split("/"):
        found = found.get(str(record.get("num_tokens")) if part == "all" else part) if found is not None else None
    if found is None:
        return None
    return found * (100 if path.split("/")[-1] in PERCENT else 1)


def reconstructed(records: Records, record: dict[str, Any]) -> float | None:
    """The distance of the reconstructions of a generator's tokenizer, with the label it needs."""
    tokenizer = records.get(record.get("tokenizer", ""), {})
    return figure(tokenizer, f"{'labelled' if 'labelled' in tokenizer else 'unlabelled'}/all/{FD}")


def figures(records: Records, side: Side) -> list[float]:
    """A value over the existing seeds of a kind.

    Two paths are computed: "reconstructed" is the distance of the tokenizer's reconstructions, HOW/excess the distance
    of the samples minus that of the reconstructions.
    """
    kind, path = side
    found = []
    for record in seeds(records, kind):
        if path == "reconstructed":
            value = reconstructed(records, record)
        elif path.endswith("/excess"):
            sampled, base = figure(record, path.replace("excess", FD)), reconstructed(records, record)
            value = None if sampled is None or base is None else sampled - base
        else:
            value = figure(record, path)
        found.append(value)
    return [value for value in found if value is not None]


def cell(records: Records, kind: str, path: str) -> str:
    found = figures(records, (kind, path))
    return spread(found, digits(path)) if found else ""


def digits(path: str) -> int:
    return DIGITS.get(path.split("/")[-1], 1)


def label_of(record: dict[str, Any], how: str) -> str:
    """The label that encoder and decoder received in a sweep of a record."""
    if how == "labelled":
        return "true"
    if "labelled" not in record:
        return "none"
    return "null" if record["null_row_trained"] else "null, never trained"


def lengths(records: Records) -> str:
    """Tokenizers with the number of tokens they were trained with, with true labels and without."""
    body = []
    for kind, (name, n) in TOKENIZERS.items():
        there = seeds(records, kind)
        for how in ("labelled", "unlabelled"):
            if there and how in there[0]:
                cells = [cell(records, kind, f"{how}/all/{metric}") for metric in NAMES]
                body.append([name, str(n), label_of(there[0], how), *cells])
    return markdown(["tokenizer", "tokens in training", "label", *NAMES.values()], body)


def prefixes(records: Records, how: str, metrics: Sequence[str]) -> str:
    """Prefixes of the tokens of each tokenizer, "labelled" or "unlabelled"."""
    counts, body = (0, 1, 2, 4, 8, 16), []
    for kind, (name, n) in TOKENIZERS.items():
        there = [] if "titok" in kind else seeds(records, kind)
        for metric in metrics if there and how in there[0] else ():
            cells = [cell(records, kind, f"{how}/{k}/{metric}") for k in counts]
            body.append([f"{name}, {n} tokens", label_of(there[0], how), NAMES[metric], *cells])
    return markdown(["tokenizer", "label", "metric", *map(str, counts)], body)


def condition(records: Records) -> str:
    """The classifier's class of images decoded from the condition alone, and with swapped labels."""
    columns = {
        "condition only": "swap/condition only/condition",
        "swapped: class of the condition": "swap/swapped/condition",
        "swapped: class of the tokens": "swap/swapped/tokens",
        "also encoded with it: class of the condition": "swap/re-encoded/condition",
        "also encoded with it: class of the image": "swap/re-encoded/tokens",
        "own label": "swap/matched/condition",
    }
    body = [
        [f"{name}, {n} tokens", *(cell(records, kind, path) for path in columns.values())]
        for kind, (name, n) in TOKENIZERS.items()
        if any("swap" in record for record in seeds(records, kind))
    ]
    return markdown(["tokenizer", *columns], body)


def generators(records: Records) -> str:
    """All generators: loss and samples."""
    columns = {"test_loss": "loss", "reconstructed": "`fd@` of reconstructions"}
    for how in ("unguided", "guided"):
        columns |= {f"{how}/{FD}": f"`fd@` of samples, {how}", f"{how}/excess": "difference"}
        columns |= {f"{how}/label_agreement": f"agreement, {how}, %"}
    body = [
        [name, tokens, *(cell(records, kind, path) for path in columns)]
        for kind, (name, tokens) in GENERATORS.items()
        if seeds(records, kind)
    ]
    return markdown(["generator", "tokenizer (16 tokens)", *columns.values()], body)


def samplers(records: Records) -> str:
    """The sampling settings of each row."""
    body = []
    for name, record in records.items():
        for how in ("unguided", "guided"):
            if how in record:
                sampling = record[how]
                settings = [str(sampling["guidance"]), sampling["sampler"], sampling["label"] or "none"]
                body.append([f"`{name}`", f"{record['num_images']:,}", how, *settings])
    return markdown(["row", "samples", "setting", "guidance", "sampler", "label of the decoder"], body)


TABLES: dict[str, Callable[[Records], str]] = {
    "trainings": trainings,
    "lengths": lengths,
    "prefixes": partial(prefixes, how="labelled", metrics=tuple(NAMES)),
    "without_labels": partial(prefixes, how="unlabelled", metrics=("mse", FD)),
    "condition": condition,
    "generators": generators,
    "samplers": samplers,
}


def write(folder: Path, page: Path = PAGE) -> None:
    """Fill every table of the page from the records."""
    fill(page, TABLES, read(folder))

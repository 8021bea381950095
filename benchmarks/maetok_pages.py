"""Tables of docs/maetok.md from the records of maetok_table.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import correlation

from table import FD, Records, fill, markdown, read, seeds, spread, trainings

PAGE = Path(__file__).parents[1] / "docs" / "maetok.md"
CONDITIONAL, UNCONDITIONAL = f"conditional_{FD}", f"unconditional_{FD}"
NAMES = {
    "ae": "AE",
    "ae-mask": "AE + masking (target: pixels)",
    "ae-mask-finetune": "AE + masking + fine-tuning",
    "vae": "VAE",
    "vae-mask": "VAE + masking",
    "hog": "AE + masking, target HOG",
    "teacher": "AE + masking, target teacher",
    "hog-teacher": "AE + masking, targets HOG and teacher",
    "patches": "teacher: AE + masking, patches as tokens",
}
GAP = "gap"  # distance of samples without classes minus distance with classes
PERCENT = ("probe_accuracy", "label_agreement")
DIGITS = {"psnr": 2, "mse": 5, FD: 2, CONDITIONAL: 2, UNCONDITIONAL: 2, "test_loss": 4, "probe_accuracy": 1, GAP: 2}


def figures(records: Records, kind: str, figure: str) -> list[float]:
    """A value over the seeds of a kind, from the row of the tokenizer or of its SiT; fractions in percent."""
    groups = [*seeds(records, kind), *seeds(records, f"sit-{kind}")]
    if figure == GAP:
        return [record[UNCONDITIONAL] - record[CONDITIONAL] for record in groups if UNCONDITIONAL in record]
    return [record[figure] * (100 if figure in PERCENT else 1) for record in groups if figure in record]


def cell(records: Records, kind: str, figure: str) -> str:
    found = figures(records, kind, figure)
    return spread(found, DIGITS.get(figure, 1)) if found else ""


def results(records: Records) -> str:
    """All tokenizers: reconstruction, probe and their SiT."""
    columns = {
        "psnr": "PSNR, dB",
        "mse": "squared error",
        FD: f"`{FD}`",
        "probe_accuracy": "probe, %",
        "test_loss": "SiT: loss",
        CONDITIONAL: "SiT: `fd@`, with classes",
        UNCONDITIONAL: "SiT: `fd@`, without",
    }
    body = [
        [name, *(cell(records, kind, figure) for figure in columns)]
        for kind, name in NAMES.items()
        if seeds(records, kind)
    ]
    return markdown(["tokenizer", *columns.values()], body)


def decoders(records: Records) -> str:
    """How much of the distance of samples the reconstructions have already, and what the classes add."""
    body = []
    for kind, name in NAMES.items():
        rebuilt, sampled = figures(records, kind, FD), figures(records, kind, CONDITIONAL)
        if rebuilt and sampled:
            share = [100 * a / b for a, b in zip(rebuilt, sampled)]
            gap = figures(records, kind, GAP)
            body.append([name, spread(rebuilt, 2), spread(sampled, 2), spread(share, 0), spread(gap, 2)])
    head = ["tokenizer", "`fd@` of reconstructions", "`fd@` of samples", "ratio, %", "without minus with classes"]
    return markdown(head, body)


def relations(records: Records) -> str:
    """Correlations over all rows that have a SiT, of the distance of samples with other values."""
    pairs = [(records[name.removeprefix("sit-")], r) for name, r in records.items() if name.startswith("sit-")]
    if len(pairs) < 3:
        return ""
    sampled = [sit[CONDITIONAL] for _, sit in pairs]
    others = {
        "`fd@` of reconstructions": [tokenizer[FD] for tokenizer, _ in pairs],
        "probe": [tokenizer["probe_accuracy"] for tokenizer, _ in pairs],
        "SiT's loss": [sit["test_loss"] for _, sit in pairs],
    }
    body = [[name, f"{correlation(found, sampled):+.2f}", str(len(pairs))] for name, found in others.items()]
    return markdown(["value", "correlation with the `fd@` of samples", "rows"], body)


def samples(records: Records) -> str:
    """The sampler of each row, and the label agreement of the samples with classes."""
    body = [
        [f"`{name}`", f"{r['num_images']:,}", r["sampler"], f"{100 * r['label_agreement']:.1f}"]
        for name, r in records.items()
        if name.startswith("sit-")
    ]
    return markdown(["row", "samples", "sampler", "label agreement, %"], body)


TABLES: dict[str, Callable[[Records], str]] = {
    "trainings": trainings,
    "results": results,
    "decoders": decoders,
    "relations": relations,
    "samples": samples,
}


def write(folder: Path, page: Path = PAGE) -> None:
    """Fill every table of the page from the records."""
    fill(page, TABLES, read(folder))

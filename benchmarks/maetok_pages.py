"""Tables of docs/maetok.md from the records of maetok_table.py.

Seed spread of a value: the larger of its ranges over the seeds of `ae` and of `ae-mask`. The comparison of these two is
decided if the ranges do not overlap; a comparison of single seeds if the difference exceeds the seed spread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from table import FD, Records, fill, markdown, read, said, seeds, spread, trainings, verdict

PAGE = Path(__file__).parents[1] / "docs" / "maetok.md"
CONDITIONAL, UNCONDITIONAL = f"conditional_{FD}", f"unconditional_{FD}"
HEADLINE = ("ae", "ae-mask")
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
# Claims of the paper: (text, new, old, value, whether it rises). The values in the paper are for ImageNet.
CLAIMS: list[tuple[str, str, str, str, bool]] = [
    ("masking improves generation", "ae-mask", "ae", CONDITIONAL, False),
    ("also without classes", "ae-mask", "ae", UNCONDITIONAL, False),
    ("masking lowers the SiT's loss", "ae-mask", "ae", "test_loss", False),
    ("masking lowers reconstruction quality", "ae-mask", "ae", "psnr", False),
    ("masking makes classes more linearly separable (probe)", "ae-mask", "ae", "probe_accuracy", True),
    ("fine-tuning restores reconstruction quality", "ae-mask-finetune", "ae-mask", "psnr", True),
    ("fine-tuning improves generation", "ae-mask-finetune", "ae-mask", CONDITIONAL, False),
    ("masking improves generation from a VAE", "vae-mask", "vae", CONDITIONAL, False),
    ("HOG targets are better than pixels", "hog", "ae-mask", CONDITIONAL, False),
    ("a learned teacher is better than pixels", "teacher", "ae-mask", CONDITIONAL, False),
    ("HOG and teacher are better than pixels", "hog-teacher", "ae-mask", CONDITIONAL, False),
]
PERCENT = ("probe_accuracy", "label_agreement")
DIGITS = {"psnr": 2, "mse": 5, FD: 2, CONDITIONAL: 2, UNCONDITIONAL: 2, "test_loss": 4, "probe_accuracy": 1}


def figures(records: Records, kind: str, figure: str) -> list[float]:
    """A value over the seeds of a kind, from the row of the tokenizer or of its SiT; fractions in percent."""
    groups = [*seeds(records, kind), *seeds(records, f"sit-{kind}")]
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


def claims(records: Records) -> str:
    """The claims of the paper, compared with these rows."""
    body = []
    for claim, new, old, figure, rises in CLAIMS:
        a, b = figures(records, new, figure), figures(records, old, figure)
        if not a or not b:
            continue
        if (new, old) == HEADLINE[::-1] and min(len(a), len(b)) > 1:
            there = verdict(a, b) == "shown"
        else:  # compare seed 0 of both
            a, b, groups = a[:1], b[:1], [figures(records, kind, figure) for kind in HEADLINE]
            if min(map(len, groups)) < 2:
                there = None
            else:
                there = abs(a[0] - b[0]) > max(max(group) - min(group) for group in groups)
        body.append([claim, *(spread(values, DIGITS[figure]) for values in (b, a)), said(there, rises, a, b)])
    return markdown(["the paper's claim", "before", "after", "at this scale"], body)


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
    "claims": claims,
    "samples": samples,
}


def write(folder: Path, page: Path = PAGE) -> None:
    """Fill every table of the page from the records."""
    fill(page, TABLES, read(folder))

"""Tables of docs/maetok.md from the records of maetok_table.py.

Seed spread of a value: the larger of its ranges over the seeds of `ae` and of `ae-mask`. The comparison of these two is
decided if the ranges do not overlap; one with a single seed if the difference of the means exceeds the seed spread. A
claim with a limit has no verdict, because this experiment cannot show it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import correlation, mean

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
GAP = "gap"  # distance of samples without classes minus distance with classes
# Why this experiment cannot decide a claim.
DECODER = "no verdict: measures the decoder"
NO_CONTROL = "no verdict: no control with as many decoder steps"
TEACHER = "no verdict: measures the decoder; the teacher has no semantics"
# Claims of the paper: (text, new, old, value, whether it rises, limit). The values in the paper are for ImageNet.
CLAIMS: list[tuple[str, str, str, str, bool, str]] = [
    ("masking improves generation", "ae-mask", "ae", CONDITIONAL, False, DECODER),
    ("also without classes", "ae-mask", "ae", UNCONDITIONAL, False, DECODER),
    ("samples need classes less: distance without minus with classes", "ae-mask", "ae", GAP, False, ""),
    ("masking lowers reconstruction quality", "ae-mask", "ae", "psnr", False, ""),
    ("masking makes classes more linearly separable (probe)", "ae-mask", "ae", "probe_accuracy", True, ""),
    ("fine-tuning restores reconstruction quality", "ae-mask-finetune", "ae-mask", "psnr", True, NO_CONTROL),
    ("fine-tuning improves generation", "ae-mask-finetune", "ae-mask", CONDITIONAL, False, NO_CONTROL),
    ("masking improves generation from a VAE", "vae-mask", "vae", CONDITIONAL, False, DECODER),
    ("HOG targets are better than pixels", "hog", "ae-mask", CONDITIONAL, False, DECODER),
    ("a learned teacher is better than pixels", "teacher", "ae-mask", CONDITIONAL, False, TEACHER),
    ("HOG and teacher are better than pixels", "hog-teacher", "ae-mask", CONDITIONAL, False, TEACHER),
]
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


def claims(records: Records) -> str:
    """The claims of the paper, compared with these rows."""
    body = []
    names = {CONDITIONAL: "`fd@` of samples", UNCONDITIONAL: "`fd@` of samples", GAP: "`fd@`", "psnr": "PSNR, dB"}
    for claim, new, old, figure, rises, limit in CLAIMS:
        a, b = figures(records, new, figure), figures(records, old, figure)
        if not a or not b:
            continue
        if (new, old) == HEADLINE[::-1] and min(len(a), len(b)) > 1:
            there: bool | None = verdict(a, b) == "shown"
        else:
            groups = [figures(records, kind, figure) for kind in HEADLINE]
            widest = None if min(map(len, groups)) < 2 else max(max(group) - min(group) for group in groups)
            there = None if widest is None else abs(mean(a) - mean(b)) > widest
        cells = [spread(values, DIGITS[figure]) for values in (b, a)]
        body.append([claim, names.get(figure, "probe, %"), *cells, limit or said(there, rises, a, b)])
    return markdown(["the paper's claim", "measured", "before", "after", "at this scale"], body)


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
    "claims": claims,
    "samples": samples,
}


def write(folder: Path, page: Path = PAGE) -> None:
    """Fill every table of the page from the records."""
    fill(page, TABLES, read(folder))

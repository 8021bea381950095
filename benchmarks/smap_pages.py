"""Tables of docs/smap.md from the records of smap_table.py.

Seed spread of a figure: the larger of its ranges over the seeds of the headline pair, SMAP KL of 16 tokens with and
without truncation for tokenizers, CARD with shared and with independent classes for generators. Where both sides of a
comparison have several seeds it holds if their ranges do not touch; of single seeds if the difference exceeds that
spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from table import FD, Records, fill, markdown, read, said, seeds, spread, trainings, verdict

PAGE = Path(__file__).parents[1] / "docs" / "smap.md"
TOKENIZER_PAIR, GENERATOR_PAIR = ("kl16", "kl16-full"), ("card-shared", "card-independent")


def of_length(n: int) -> dict[str, tuple[str, int]]:
    """The tokenizers that are trained at n tokens, by kind: what they are called, and n."""
    names = {
        f"kl{n}": "SMAP KL",
        f"kl{n}-full": "SMAP KL, no truncation",
        f"titok-kl{n}": "TiTok KL",
        f"vq{n}": "SMAP VQ",
        f"vq{n}-full": "SMAP VQ, no truncation",
        f"titok-vq{n}": "TiTok VQ",
    }
    return {kind: (name, n) for kind, name in names.items()}


TOKENIZERS = {
    **of_length(16),
    "kl16-dropout": ("SMAP KL, labels dropped", 16),
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
DIGITS = {"psnr": 2, "mse": 5, FD: 2, "test_loss": 4}
NAMES = {"psnr": "PSNR, dB", "mse": "squared error", FD: f"`{FD}`", "judge_accuracy": "judge, %"}
Side = tuple[str, str]  # a kind of row, and the path of a figure in its record


@dataclass(frozen=True)
class Claim:
    """What the paper says: the figure of `new` lies below that of `old`, or above it where it `rises`."""

    text: str
    new: Side
    old: Side
    rises: bool = False


def truncation(text: str, kind: str, path: str) -> Claim:
    """A SMAP trained with tail dropping against one without."""
    return Claim(text, (kind, path), (f"{kind}-full", path))


def drawn(text: str, new: str, old: str) -> list[Claim]:
    """A generator's samples against another's, unguided and guided."""
    return [Claim(f"{text}, {how}", (new, f"{how}/{FD}"), (old, f"{how}/{FD}")) for how in ("unguided", "guided")]


CLAIMS = [
    truncation("truncation makes 1 of 16 tokens usable (KL)", "kl16", "labelled/1/mse"),
    truncation("4 of 16 (KL)", "kl16", "labelled/4/mse"),
    truncation("4 of 16 (VQ)", "vq16", "labelled/4/mse"),
    truncation("1 of 4 (KL)", "kl4", "labelled/1/mse"),
    truncation("truncation helps all 16 tokens too (KL)", "kl16", f"labelled/all/{FD}"),
    truncation("also in squared error (KL)", "kl16", "labelled/all/mse"),
    truncation("all 16 (VQ)", "vq16", f"labelled/all/{FD}"),
    truncation("all 4 (KL)", "kl4", f"labelled/all/{FD}"),
    truncation("all 4 (VQ)", "vq4", f"labelled/all/{FD}"),
    Claim(
        "after truncation the condition alone shows its class",
        ("kl16", "labelled/0/judge_accuracy"),
        ("kl16-full", "labelled/0/judge_accuracy"),
        rises=True,
    ),
    Claim(
        "swapped: class of the condition (after), not of the tokens (before)",
        ("kl16", "swap/swapped/condition"),
        ("kl16", "swap/swapped/tokens"),
        rises=True,
    ),
    *(
        Claim(
            f"SMAP beats TiTok at {n} tokens ({name.upper()}); it is told the label",
            (f"{name}{n}", f"labelled/all/{FD}"),
            (f"titok-{name}{n}", f"unlabelled/all/{FD}"),
        )
        for n in (16, 4)
        for name in ("kl", "vq")
    ),
    *drawn("a condition in the tokenizer helps CARD", "card-independent", "card-unconditioned"),
    *drawn("sharing the class table helps CARD", "card-shared", "card-independent"),
    Claim("sharing lowers CARD's loss", ("card-shared", "test_loss"), ("card-independent", "test_loss")),
    *drawn("CARD (KL) draws better than LlamaGen (VQ)", "card-shared", "llamagen"),
    *drawn("CARD (KL) draws better than MaskGIT (VQ)", "card-shared", "maskgit"),
]


def figure(record: dict[str, Any], path: str) -> float | None:
    """A figure of a record by its path, "all" standing for the full length; shares in percent; None where absent."""
    found: Any = record
    for part in path.split("/"):
        found = found.get(str(record.get("num_tokens")) if part == "all" else part) if found is not None else None
    if found is None:
        return None
    return found * (100 if path.split("/")[-1] in PERCENT else 1)


def figures(records: Records, side: Side) -> list[float]:
    """A figure over the seeds of a kind, as far as they are there."""
    found = [figure(record, side[1]) for record in seeds(records, side[0])]
    return [value for value in found if value is not None]


def cell(records: Records, kind: str, path: str) -> str:
    found = figures(records, (kind, path))
    return spread(found, digits(path)) if found else ""


def digits(path: str) -> int:
    return DIGITS.get(path.split("/")[-1], 1)


def label_told(record: dict[str, Any], how: str) -> str:
    """Which label encoder and decoder were given in a sweep of a record."""
    if how == "labelled":
        return "true"
    if "labelled" not in record:
        return "none"
    return "null" if record["null_row_trained"] else "null, never trained"


def lengths(records: Records) -> str:
    """Tokenizers at the length they were trained at, with true labels and without."""
    body = []
    for kind, (name, n) in TOKENIZERS.items():
        there = seeds(records, kind)
        for how in ("labelled", "unlabelled"):
            if there and how in there[0]:
                cells = [cell(records, kind, f"{how}/all/{metric}") for metric in NAMES]
                body.append([name, str(n), label_told(there[0], how), *cells])
    return markdown(["tokenizer", "trained at", "label", *NAMES.values()], body)


def prefixes(records: Records, how: str, metrics: Sequence[str]) -> str:
    """Prefixes of one tokenizer's tokens, "labelled" or "unlabelled"."""
    counts, body = (0, 1, 2, 4, 8, 16), []
    for kind, (name, n) in TOKENIZERS.items():
        there = [] if "titok" in kind else seeds(records, kind)
        for metric in metrics if there and how in there[0] else ():
            cells = [cell(records, kind, f"{how}/{k}/{metric}") for k in counts]
            body.append([f"{name}, {n} tokens", label_told(there[0], how), NAMES[metric], *cells])
    return markdown(["tokenizer", "label", "metric", *map(str, counts)], body)


def condition(records: Records) -> str:
    """What the judge sees in images from the condition alone, and in swaps."""
    columns = {
        "condition only": "swap/condition only/condition",
        "swapped: as the condition": "swap/swapped/condition",
        "as the tokens": "swap/swapped/tokens",
        "encoded under it too: as the condition": "swap/re-encoded/condition",
        "as the tokens' image": "swap/re-encoded/tokens",
        "own label": "swap/matched/condition",
    }
    body = [
        [f"{name}, {n} tokens", *(cell(records, kind, path) for path in columns.values())]
        for kind, (name, n) in TOKENIZERS.items()
        if any("swap" in record for record in seeds(records, kind))
    ]
    return markdown(["tokenizer", *columns], body)


def generators(records: Records) -> str:
    """Every generator: loss and samples."""
    columns = {"test_loss": "loss"}
    for how in ("unguided", "guided"):
        columns |= {f"{how}/{FD}": f"`fd@`, {how}", f"{how}/label_agreement": f"agreement, {how}, %"}
    body = [
        [name, tokens, *(cell(records, kind, path) for path in columns)]
        for kind, (name, tokens) in GENERATORS.items()
        if seeds(records, kind)
    ]
    return markdown(["generator", "on 16 tokens of", *columns.values()], body)


def samplers(records: Records) -> str:
    """How samples were drawn."""
    body = []
    for name, record in records.items():
        for how in ("unguided", "guided"):
            if how in record:
                drawn_so = record[how]
                told = [str(drawn_so["guidance"]), drawn_so["sampler"], drawn_so["label"] or "none"]
                body.append([f"`{name}`", f"{record['num_images']:,}", how, *told])
    return markdown(["row", "samples", "setting", "guidance", "sampler", "decoder's label"], body)


def claims(records: Records) -> str:
    """What the paper claims against what these rows show."""
    body = []
    for claim in CLAIMS:
        new, old = figures(records, claim.new), figures(records, claim.old)
        if not new or not old:
            continue
        if min(len(new), len(old)) > 1:
            there: bool | None = verdict(new, old) == "shown"
        else:  # like with like: seed 0 of both
            new, old = new[:1], old[:1]
            widest = seed_spread(records, claim.new)
            there = None if widest is None else abs(new[0] - old[0]) > widest
        shown = [spread(values, digits(side[1])) for values, side in ((old, claim.old), (new, claim.new))]
        body.append([claim.text, *shown, said(there, claim.rises, new, old)])
    return markdown(["the paper's claim", "before", "after", "at this scale"], body)


def seed_spread(records: Records, side: Side) -> float | None:
    """The larger range of a figure over the seeds of the headline pair; None if not known yet."""
    pair = GENERATOR_PAIR if side[0] in GENERATORS else TOKENIZER_PAIR
    groups = [figures(records, (kind, side[1])) for kind in pair]
    if min(map(len, groups)) < 2:
        return None
    return max(max(group) - min(group) for group in groups)


TABLES: dict[str, Callable[[Records], str]] = {
    "trainings": trainings,
    "lengths": lengths,
    "prefixes": partial(prefixes, how="labelled", metrics=tuple(NAMES)),
    "without_labels": partial(prefixes, how="unlabelled", metrics=("mse", FD)),
    "condition": condition,
    "generators": generators,
    "claims": claims,
    "samplers": samplers,
}


def write(folder: Path, page: Path = PAGE) -> None:
    """Fill every table of the page from the records."""
    fill(page, TABLES, read(folder))

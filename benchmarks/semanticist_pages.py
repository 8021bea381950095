"""Fills the tables of docs/semanticist.md from the records of semanticist_table.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from table import FD, Records, fill, markdown, read, seeds, spread, trainings

PAGE = Path(__file__).parents[1] / "docs" / "semanticist.md"
KEEP = (1, 2, 4, 8)


def nesting(records: Records) -> str:
    """With and without nested dropping, by number of tokens kept."""
    nested, plain = seeds(records, "nested"), seeds(records, "plain")
    body = []
    for i, keep in enumerate(KEEP):
        for label, key, digits in (("squared error", "mse", 4), (f"`{FD}`", FD, 2)):
            a, b = ([record["prefixes"][i][key] for record in group] for group in (nested, plain))
            body.append([f"{keep}, {label}", spread(a, digits), spread(b, digits)])
    return markdown(["tokens kept, metric", "nested dropping", "without"], body)


def shares(records: Records) -> str:
    """The share of the loss reduction by token."""
    groups = {kind: seeds(records, kind) for kind in ("nested", "plain")}
    length = len(groups["nested"][0]["curve"]) - 1
    gains = {
        kind: [
            [100 * (r["curve"][k]["share"] - r["curve"][k - 1]["share"]) for r in group if r["curve"][k]["share"]]
            for k in range(1, length + 1)
        ]
        for kind, group in groups.items()
    }
    body = [
        [str(k), *(spread(gains[kind][k - 1], 1) if gains[kind][k - 1] else "none" for kind in groups)]
        for k in range(1, length + 1)
    ]
    return markdown(["token", "nested dropping, %", "without, %"], body)


def samplers(records: Records) -> str:
    """Quality by number of decoder calls, DDPM and flow."""
    body = []
    for name, r in records.items():
        if name.startswith("sampler-"):
            objective = name.split("-")[1]
            body.append(
                (
                    (r["num_images"] == 500, objective, r["solver"], r["steps"]),
                    [
                        f"{objective}, {r['solver']}",
                        str(r["steps"]),
                        f"{r['calls_per_image']:g}",
                        f"{r['num_images']:,}",
                        f"{r['psnr']:.2f}",
                        f"{r[FD]:.2f}",
                        f"{100 * r['judge_accuracy']:.1f}",
                    ],
                )
            )
    rows = [row for _, row in sorted(body, key=lambda pair: pair[0])]
    return markdown(["decoder", "steps", "calls per image", "images", "PSNR, dB", f"`{FD}`", "accuracy, %"], rows)


def generators(records: Records) -> str:
    """Generators on the first tokens."""
    body = []
    for name in sorted(name for name in records if name.startswith("generator-")):
        for sample in records[name]["samples"]:
            body.append(
                [
                    str(sample["num_tokens"]),
                    f"{sample['guidance']:g}",
                    f"{sample['num_images']:,}",
                    f"{100 * sample['label_agreement']:.1f}",
                    f"{sample[FD]:.2f}",
                ]
            )
    return markdown(["tokens generated", "guidance", "samples", "label agreement, %", f"`{FD}`"], body)


def heads(records: Records) -> str:
    """The samplers of the diffusion head."""
    rows = [records[name] for name in records if name.startswith("head-")]
    rows.sort(key=lambda r: (r["num_images"] == 500, r["sampler"], r["steps"]))
    body = [
        [
            r["sampler"],
            str(r["steps"]),
            f"{r['num_images']:,}",
            f"{100 * r['label_agreement']:.1f}",
            f"{r[FD]:.2f}",
        ]
        for r in rows
    ]
    return markdown(["head sampler", "calls per token", "samples", "label agreement, %", f"`{FD}`"], body)


def guidance(records: Records) -> str:
    """Decoder guidance by tokens kept; the best Fréchet distance of each column is bold."""
    return _guidance(records, "guidance-", lambda name: "nonull" not in name)


def guidance_nonull(records: Records) -> str:
    """The same for a decoder whose all-null condition was not trained after nested dropping began."""
    return _guidance(records, "guidance-nonull-", lambda name: True)


def _guidance(records: Records, prefix: str, wanted: Callable[[str], bool]) -> str:
    rows = {float(n.split("-")[-1]): r for n, r in records.items() if n.startswith(prefix) and wanted(n)}
    if "nonull" in prefix and "nested-nonull-0" in records:
        rows[1.0] = records["nested-nonull-0"]
    best = [min(r["prefixes"][i][FD] for r in rows.values()) for i in range(len(KEEP))] if rows else []
    body = []
    for scale, record in sorted(rows.items()):
        cells = []
        for i, prefix_record in enumerate(record["prefixes"]):
            distance = f"{prefix_record[FD]:.2f}"
            cells.append(
                f"{f'**{distance}**' if prefix_record[FD] == best[i] else distance} / {prefix_record['mse']:.4f}"
            )
        body.append([f"{scale:g}", *cells])
    return markdown(["guidance", *(f"keep {k}: fd / squared error" for k in KEEP)], body)


TABLES: dict[str, Callable[[Records], str]] = {
    "trainings": trainings,
    "nesting": nesting,
    "shares": shares,
    "samplers": samplers,
    "generators": generators,
    "heads": heads,
    "guidance": guidance,
    "guidance_nonull": guidance_nonull,
}


def write(folder: Path, page: Path = PAGE) -> None:
    """Fill every table of the page from the records."""
    fill(page, TABLES, read(folder))

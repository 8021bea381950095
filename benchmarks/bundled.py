"""Measures all bundled models with all metrics, and fills the tables of docs/results.md.

    python benchmarks/bundled.py              # measure the missing models; an interrupted measurement resumes
    python benchmarks/bundled.py --again      # measure all of them again
    python benchmarks/bundled.py --list       # print the commands
    python benchmarks/bundled.py --write      # write the tables into docs/results.md

Each model is measured by one `tok1d evaluate` command. Its records, with the complete protocol, are written to
benchmarks/results/bundled/NAME.json. `tok1d analyze idle` measures what each token of an ordered tokenizer adds, into
the folder NAME there. All together take about fifteen minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from table import fill, markdown

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

RESULTS = Path(__file__).parent / "results" / "bundled"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
NETWORK = "@fashion-mnist-cnn"
PAIRS = {
    "Semanticist": ("fashion-mnist-semanticist", "fashion-mnist-epsilon-llamagen", "1,2,4,8,16", "3.5"),
    "MAETok": ("fashion-mnist-maetok", "fashion-mnist-sit", "", "1.5"),
    "SMAP": ("fashion-mnist-smap", "fashion-mnist-card", "1,2,4,8,16", "1.5"),
}
METRICS = {  # name in the records: name in the table, digits, factor
    "psnr": ("PSNR, dB", 2, 1.0),
    "mse": ("squared error", 4, 1.0),
    "ssim": ("SSIM", 3, 1.0),
    "lpips": ("LPIPS", 3, 1.0),
    "judge_accuracy": ("classifier accuracy, %", 1, 100.0),
    "label_agreement": ("label agreement, %", 1, 100.0),
    f"fd{NETWORK}": (f"`fd{NETWORK}`", 2, 1.0),
    f"sfd{NETWORK}": (f"`sfd{NETWORK}`", 2, 1.0),
    f"kd{NETWORK}": (f"`kd{NETWORK}`, 1e-3", 2, 1e3),
    f"score{NETWORK}": (f"`score{NETWORK}`", 2, 1.0),
    f"precision{NETWORK}": ("precision", 3, 1.0),
    f"recall{NETWORK}": ("recall", 3, 1.0),
    f"density{NETWORK}": ("density", 3, 1.0),
    f"coverage{NETWORK}": ("coverage", 3, 1.0),
}
Records = dict[str, list[dict[str, Any]]]


def commands() -> dict[str, list[str]]:
    """The arguments of `tok1d` for each model."""
    found = {}
    for tokenizer, generator, keep, guidance in PAIRS.values():
        found[tokenizer] = ["evaluate", "reconstruction", tokenizer, "fashion_mnist", "--metrics", "all"]
        sampled = ["evaluate", "generation", generator, "fashion_mnist", "--num", "2000", "--metrics", "all"]
        found[generator] = [*sampled, "--guidance", guidance, *(["--keep", keep] if keep else [])]
    return found


def analyses() -> dict[str, list[str]]:
    """The arguments of `tok1d analyze idle` for each ordered tokenizer: what leaving out one token changes."""
    return {
        tokenizer: ["analyze", "idle", tokenizer, "fashion_mnist", "--num", "500"]
        for tokenizer, _, keep, _ in PAIRS.values()
        if keep
    }


def read() -> Records:
    """The records of the models that have been measured."""
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in commands()
        if (path := RESULTS / f"{name}.json").exists()
    }


def cell(records: Sequence[dict[str, Any]], name: str, keep: int | None) -> str:
    """One cell of a table: the number, "none" if the record says it is unavailable, "" if there is no record."""
    for record in records:
        if record["name"] == name and record["keep"] == keep:
            _, digits, factor = METRICS[name]
            return "none" if record["value"] is None else f"{factor * float(record['value']):.{digits}f}"
    return ""


def most(records: Sequence[dict[str, Any]]) -> int:
    """The largest number of decoded tokens."""
    return max(record["keep"] for record in records if record["keep"] is not None)


def side(which: int, names: Sequence[str], records: Records) -> str:
    """All metrics of the three tokenizers (0) or generators (1), with all tokens."""
    models = {family: records[pair[which]] for family, pair in PAIRS.items() if pair[which] in records}
    body = [
        [METRICS[name][0], *(cell(found, name, most(found)) for found in models.values())]
        for name in METRICS
        if name in names
    ]
    return markdown(["", *models], body)


def reconstructions(records: Records) -> str:
    return side(0, [name for name in METRICS if name != "label_agreement"], records)


def samples(records: Records) -> str:
    return side(
        1, [name for name in METRICS if name not in ("psnr", "mse", "ssim", "lpips", "judge_accuracy")], records
    )


def prefixes(family: str) -> Callable[[Records], str]:
    """Reconstruction and generation by number of tokens, for the pair of one system."""

    def table(records: Records) -> str:
        tokenizer, generator, *_ = PAIRS[family]
        decoded, sampled = records[tokenizer], records.get(generator, [])
        given, new = ("psnr", "judge_accuracy", f"fd{NETWORK}"), ("label_agreement", f"fd{NETWORK}")
        head = ["tokens kept", *(METRICS[name][0] for name in given)]
        head += [METRICS["label_agreement"][0], f"`fd{NETWORK}` of samples"]
        counts = sorted({record["keep"] for record in decoded if record["keep"] is not None})
        body = [
            [
                str(keep),
                *(cell(decoded, name, keep) for name in given),
                *(cell(sampled, name, keep) for name in new),
            ]
            for keep in counts
        ]
        return markdown(head, body)

    return table


def uses(family: str) -> Callable[[Records], str]:
    """What each token of one system's tokenizer adds, from the record of its analysis."""

    def table(records: Records) -> str:
        path = RESULTS / PAIRS[family][0] / "idle.json"
        if not path.exists():
            return "not measured"
        found = json.loads(path.read_text(encoding="utf-8"))
        body = [
            [
                str(use["token"] + 1),
                f"{100 * use['left_out'] / found['error']:+.1f}",
                f"{100 * use['replaced'] / found['error']:+.1f}",
            ]
            for use in found["tokens"]
        ]
        return markdown(["token", "error without it, %", "with another image's, %"], body)

    return table


def unavailable(records: Records) -> str:
    """The reasons for "none" in the tables."""
    found = [r for each in records.values() for r in each if r["value"] is None and r["name"] in METRICS]
    reasons = {r["name"]: r["note"] for r in found}
    return "\n".join(f"- {METRICS[name][0]}: {reason.removeprefix('LPIPS: ')}" for name, reason in reasons.items())


TABLES: dict[str, Callable[[Any], str]] = {
    "reconstructions": reconstructions,
    "samples": samples,
    "semanticist": prefixes("Semanticist"),
    "semanticist-tokens": uses("Semanticist"),
    "smap": prefixes("SMAP"),
    "smap-tokens": uses("SMAP"),
    "unavailable": unavailable,
}


def main(args: Sequence[str] | None = None) -> int:
    from tok1d.cli.app import run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="MODEL", help="measure these, even if they have been measured"
    )
    parser.add_argument("--again", action="store_true", help="measure all, even those that have been measured")
    parser.add_argument("--list", action="store_true", help="print the commands and which have been run")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/results.md")
    arguments = parser.parse_args(args)
    if unknown := set(arguments.only) - commands().keys():
        parser.error(f"no model {', '.join(sorted(unknown))}; --list prints them")
    if arguments.write:
        fill(PAGE, TABLES, read())
        return 0
    jobs = [(name, command, RESULTS / f"{name}.json") for name, command in commands().items()]
    jobs += [(name, command, RESULTS / name / "idle.json") for name, command in analyses().items()]
    for name, command, record in jobs:
        if arguments.list:
            print(f"{'done   ' if record.exists() else 'missing'} tok1d {' '.join(command)}")
        elif record.exists() and not (arguments.again or name in arguments.only):
            print(f"{name}: already measured; --again or --only {name} measures it again")
        elif arguments.again or name in arguments.only or not arguments.only:
            print(f"tok1d {' '.join(command)}", flush=True)
            out = record if command[0] == "evaluate" else record.parent
            if code := run([*command, "--out", str(out), "--overwrite"]):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())

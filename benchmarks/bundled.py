"""Measures all bundled models with all metrics, and fills the tables of docs/results.md and docs/emoji.md.

    python benchmarks/bundled.py              # measure the missing models; an interrupted measurement resumes
    python benchmarks/bundled.py --again      # measure all of them again
    python benchmarks/bundled.py --list       # print the commands
    python benchmarks/bundled.py --write      # write the tables into the pages

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from table import fill, markdown

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

RESULTS = Path(__file__).parent / "results" / "bundled"
DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Family:
    """A tokenizer and the generator on its tokens.

    Args:
        keep: numbers of tokens that the samples are decoded from; "" for tokens without an order.
    """

    tokenizer: str
    generator: str
    guidance: str
    keep: str = ""


@dataclass(frozen=True)
class Group:
    """The bundled models of one data set.

    Args:
        page: the page with their tables.
        network: label of the feature network in the records, with "@".
        of_tokenizers, of_generators: further arguments of the measurements.
        analysed: images of the analysis of each token.
        families: by the name of the system.
    """

    data: str
    page: Path
    network: str
    of_tokenizers: tuple[str, ...]
    of_generators: tuple[str, ...]
    analysed: str
    families: dict[str, Family]


LITE = ("--network", "efficientnet-lite0", "--metrics")
GROUPS = (
    Group(
        "fashion_mnist",
        DOCS / "results.md",
        "@fashion-mnist-cnn",
        ("--metrics", "all"),
        ("--num-samples", "2000", "--metrics", "all"),
        "500",
        {
            "Semanticist": Family("fashion-mnist-semanticist", "fashion-mnist-epsilon-llamagen", "3.5", "1,2,4,8,16"),
            "MAETok": Family("fashion-mnist-maetok", "fashion-mnist-sit", "1.5"),
            "SMAP": Family("fashion-mnist-smap", "fashion-mnist-card", "1.5", "1,2,4,8,16"),
        },
    ),
    Group(
        "emoji",
        DOCS / "emoji.md",
        "@efficientnet-lite0",
        (*LITE, "psnr,mse,ssim,semantic,semantic5,fd"),
        ("--num-samples", "500", *LITE, "fd,precision,recall,memorised"),
        "369",
        {
            "MAETok": Family("emoji-maetok", "emoji-sit", "1.5"),
            "SMAP": Family("emoji-smap", "emoji-card", "1.5", "1,2,4,8,16"),
        },
    ),
)
METRICS = {  # name in the records, "@" for that of the network: name in the table, digits, factor
    "psnr": ("PSNR, dB", 2, 1.0),
    "mse": ("squared error", 4, 1.0),
    "ssim": ("SSIM", 3, 1.0),
    "lpips": ("LPIPS", 3, 1.0),
    "judge_accuracy": ("classifier accuracy, %", 1, 100.0),
    "label_agreement": ("label agreement, %", 1, 100.0),
    "semantic_agreement@": ("semantic agreement, %", 1, 100.0),
    "semantic_agreement_top5@": ("semantic agreement with the first five, %", 1, 100.0),
    "fd@": ("fd", 2, 1.0),
    "sfd@": ("sfd", 2, 1.0),
    "kd@": ("kd, 1e-3", 2, 1e3),
    "score@": ("score", 2, 1.0),
    "precision@": ("precision", 3, 1.0),
    "recall@": ("recall", 3, 1.0),
    "density@": ("density", 3, 1.0),
    "coverage@": ("coverage", 3, 1.0),
    "memorised": ("memorised, %", 1, 100.0),
}
OF_SAMPLES = ("label_agreement", "memorised")
OF_BOTH = ("fd@", "sfd@", "kd@", "score@", "precision@", "recall@", "density@", "coverage@")
Records = dict[str, list[dict[str, Any]]]


def commands() -> dict[str, list[str]]:
    """The arguments of `tok1d` for each model."""
    found = {}
    for group in GROUPS:
        for each in group.families.values():
            found[each.tokenizer] = ["evaluate", "reconstruction", each.tokenizer, group.data, *group.of_tokenizers]
            sampled = ["evaluate", "generation", each.generator, group.data, *group.of_generators]
            keep = ["--keep", each.keep] if each.keep else []
            found[each.generator] = [*sampled, "--guidance", each.guidance, *keep]
    return found


def analyses() -> dict[str, list[str]]:
    """The arguments of `tok1d analyze idle` for each ordered tokenizer: what leaving out one token changes."""
    return {
        each.tokenizer: ["analyze", "idle", each.tokenizer, group.data, "--num", group.analysed]
        for group in GROUPS
        for each in group.families.values()
        if each.keep
    }


def read() -> Records:
    """The records of the models that have been measured."""
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in commands()
        if (path := RESULTS / f"{name}.json").exists()
    }


def title(name: str, group: Group) -> str:
    """The name of a metric in a table; that of a distance contains its network."""
    shown = METRICS[name][0]
    if name not in ("fd@", "sfd@", "kd@", "score@"):
        return shown
    metric, _, unit = shown.partition(",")
    return f"`{metric}{group.network}`" + ("," + unit if unit else "")


def cell(records: Sequence[dict[str, Any]], name: str, keep: int | None, group: Group) -> str:
    """One cell of a table: the number, "none" if the record says it is unavailable, "" if there is no record."""
    wanted = name.replace("@", group.network)
    for record in records:
        if record["name"] == wanted and record["keep"] == keep:
            _, digits, factor = METRICS[name]
            return "none" if record["value"] is None else f"{factor * float(record['value']):.{digits}f}"
    return ""


def most(records: Sequence[dict[str, Any]]) -> int:
    """The largest number of decoded tokens."""
    return max(record["keep"] for record in records if record["keep"] is not None)


def side(names: Sequence[str], models: Records, group: Group) -> str:
    """The metrics of some models, by the name of their system, with all tokens; without rows that have no figure."""
    rows = [
        [title(name, group), *(cell(found, name, most(found), group) for found in models.values())] for name in names
    ]
    return markdown(["", *models], [row for row in rows if any(row[1:])])


def reconstructions(records: Records, group: Group = GROUPS[0]) -> str:
    models = {name: records[each.tokenizer] for name, each in group.families.items() if each.tokenizer in records}
    return side([name for name in METRICS if name not in OF_SAMPLES], models, group)


def samples(records: Records, group: Group = GROUPS[0]) -> str:
    models = {name: records[each.generator] for name, each in group.families.items() if each.generator in records}
    return side([name for name in METRICS if name in OF_SAMPLES + OF_BOTH], models, group)


def prefixes(family: str, group: Group) -> Callable[[Records], str]:
    """Reconstruction and generation by number of tokens, for the pair of one system."""

    def table(records: Records) -> str:
        each = group.families[family]
        decoded, sampled = records.get(each.tokenizer, []), records.get(each.generator, [])
        if not decoded:
            return "not measured"
        agreement = "judge_accuracy" if cell(decoded, "judge_accuracy", most(decoded), group) else "semantic_agreement@"
        given = ("psnr", agreement, "fd@")
        new = [name for name in ("label_agreement", "fd@") if sampled and cell(sampled, name, most(sampled), group)]
        head = ["tokens kept", *(title(name, group) for name in given)]
        head += [title(name, group) + (" of samples" if name in given else "") for name in new]
        counts = sorted({record["keep"] for record in decoded if record["keep"] is not None})
        body = [
            [
                str(keep),
                *(cell(decoded, name, keep, group) for name in given),
                *(cell(sampled, name, keep, group) for name in new),
            ]
            for keep in counts
        ]
        return markdown(head, body)

    return table


def uses(family: str, group: Group) -> Callable[[Records], str]:
    """What each token of one system's tokenizer adds, from the record of its analysis."""

    def table(records: Records) -> str:
        path = RESULTS / group.families[family].tokenizer / "idle.json"
        if not path.exists():
            return "not measured"
        found = json.loads(path.read_text(encoding="utf-8"))["models"][0]
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


def baselines(records: Records, group: Group) -> str:
    """The baselines that were measured beside the first tokenizer, and the distance of training to test images."""
    found = [
        record
        for each in group.families.values()
        for name in (each.tokenizer, each.generator)
        for record in records.get(name, [])
        if record["name"].startswith("baseline:")
    ]
    values: dict[str, dict[str, float]] = {}
    for record in found:
        _, name, metric = record["name"].split(":", 2)
        if record["value"] is not None:
            values.setdefault(name, {}).setdefault(metric.replace(group.network, "@"), record["value"])
    body = [
        [name, *(f"{shown[metric]:.{METRICS[metric][1]}f}" if metric in shown else "" for metric in ("psnr", "fd@"))]
        for name, shown in sorted(values.items(), key=lambda item: item[1].get("psnr", 99.0))
    ]
    return markdown(["baseline", title("psnr", group), title("fd@", group)], body)


def unavailable(records: Records) -> str:
    """The reasons for "none" in the tables."""
    group, known = GROUPS[0], {name.replace("@", GROUPS[0].network): name for name in METRICS}
    found = [r for each in records.values() for r in each if r["value"] is None and r["name"] in known]
    reasons = {known[r["name"]]: r["note"] for r in found}
    return "\n".join(f"- {title(name, group)}: {reason.removeprefix('LPIPS: ')}" for name, reason in reasons.items())


def tables(group: Group) -> dict[str, Callable[[Any], str]]:
    """The tables of the page of one data set, by their name in the page."""
    found: dict[str, Callable[[Any], str]] = {
        "reconstructions": partial(reconstructions, group=group),
        "samples": partial(samples, group=group),
    }
    for family, each in group.families.items():
        if each.keep:
            found[family.lower()] = prefixes(family, group)
            found[f"{family.lower()}-tokens"] = uses(family, group)
    if group is GROUPS[0]:
        found["unavailable"] = unavailable
    else:
        found["baselines"] = partial(baselines, group=group)
    return found


def main(args: Sequence[str] | None = None) -> int:
    from tok1d.cli.app import run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="MODEL", help="measure these, even if they have been measured"
    )
    parser.add_argument("--again", action="store_true", help="measure all, even those that have been measured")
    parser.add_argument("--list", action="store_true", help="print the commands and which have been run")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/results.md and docs/emoji.md")
    arguments = parser.parse_args(args)
    if unknown := set(arguments.only) - commands().keys():
        parser.error(f"no model {', '.join(sorted(unknown))}; --list prints them")
    if arguments.write:
        for group in GROUPS:
            fill(group.page, tables(group), read())
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
            record.with_suffix(".png").unlink(missing_ok=True)  # the page has a table in its place
    return 0


if __name__ == "__main__":
    sys.exit(main())

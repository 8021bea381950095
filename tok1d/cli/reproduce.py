"""`tok1d reproduce`: claims of the papers, trained, measured and judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tok1d.cli.options import one_of

if TYPE_CHECKING:
    from tok1d.claims.claim import Listed, ScaleName


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(help="ids of claims, which --list prints; default: all", show_default=False)
    ] = None,
    list_claims: Annotated[
        bool, typer.Option("--list", help="only print the claims, their cost and their state")
    ] = False,
    scale: Annotated[
        str, typer.Option(help="size of the trainings: quick (about an hour on two cores; not all claims), or small")
    ] = "quick",
    out: Annotated[Path, typer.Option(help="folder of the trainings (runs/), the rows (rows/) and the report")] = Path(
        "runs/claims"
    ),
    rows: Annotated[Path | None, typer.Option(help="folder of the rows; default: OUT/rows")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="a claim file of your own, beside the packaged claims; repeatable")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="only write OUT/report.html and OUT/claims.md from the rows that are there")
    ] = False,
) -> None:
    """Train and measure what claims of the papers need, and print a verdict on each.

    Every arm and seed of a claim is one row, a JSON file that is written when it is measured. An interrupted command
    goes on where it stopped, and several processes may work on the same folder at once. Trainings that claims share
    are made once. All claims are checked before anything is trained.
    """
    from tok1d import files
    from tok1d.claims import plan
    from tok1d.claims.rows import outcome

    one_of("--scale", scale, ("quick", "small"))
    stored = out / "rows" if rows is None else rows
    known = plan.read_claims(file or [])
    wanted = plan.chosen(known, claims or [])
    for each in known.values():
        plan.check(each)
    if list_claims:
        print_claims(wanted, stored)
        return
    if report:
        from tok1d.claims.report import html, markdown

        outcomes = [outcome(each, stored) for each in wanted]
        files.write_text(out / "claims.md", markdown(outcomes))
        files.write_text(out / "report.html", html(outcomes))
        print(f"page: {out / 'claims.md'}\nreport: {out / 'report.html'}")
        return
    from tok1d.claims.reproduce import reproduce as run

    size: ScaleName = "quick" if scale == "quick" else "small"
    wanted = plan.chosen(known, claims or [], size)
    for each in wanted:
        plan.check(each, models=True)
    run(wanted, size, out, stored)
    for each in wanted:
        found = outcome(each, stored).verdict
        print(f"{each.claim.id}: {found.state}: {found.reason}")


def print_claims(claims: Sequence[Listed], rows: Path) -> None:
    """Print claims with place, estimated cost, state and statement."""
    from tok1d.claims.claim import SCALES
    from tok1d.claims.plan import hours
    from tok1d.claims.report import hours_text
    from tok1d.claims.rows import outcome

    for each in claims:
        cost = hours_text(each)
        found = outcome(each, rows).verdict
        state = f"not run: {found.reason}" if found.state == "not run" else found.state
        place = f"{each.file.paper}, {each.claim.section}"
        print(f"{each.claim.id}\n  {place}; {cost} CPU-hours quick / small; {state}\n  {each.claim.statement}")
    total = " / ".join(f"{hours(claims, size):.0f}" for size in SCALES)
    print(f"\n{len(claims)} claims, all trainings {total} CPU-hours; tok1d reproduce ID trains and measures one")

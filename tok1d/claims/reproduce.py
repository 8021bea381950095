"""Running claims: row after row, resumable, in any number of processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tok1d.claims.claim import Listed, ScaleName
from tok1d.claims.measure import Busy, measure
from tok1d.claims.plan import RowPlan, row_plans
from tok1d.claims.rows import stored
from tok1d.claims.statistics import missing as cannot
from tok1d.errors import ConfigError, Tok1dError

WAIT = 20.0  # seconds between attempts at rows on which other processes work


def missing(claims: Sequence[Listed], scale: ScaleName, rows: Path) -> list[RowPlan]:
    """The rows that can be measured and are not there: headline claims first, of them the first seed of all first."""
    plans = [plan for listed in claims if not cannot(listed.claim) for plan in row_plans(listed, scale)]

    def place(plan: RowPlan) -> tuple[bool, int]:
        claim = plan.listed.claim
        return not claim.headline, claim.seeds.index(plan.seed)

    return sorted((plan for plan in plans if stored(plan, rows) is None), key=place)


def reproduce(claims: Sequence[Listed], scale: ScaleName, out: Path, rows: Path, *, wait: float = WAIT) -> int:
    """Train and measure all rows of claims that are missing; returns how many this process measured.

    A row on which another process works, or one of whose trainings another process makes, is left for later: the other
    rows come first. A killed process loses the row in progress; its training resumes from the last checkpoint.

    Args:
        out: trainings are in out/runs, by their keys.
        rows: folder of the rows.
        wait: seconds between attempts at rows that others work on.

    A row that fails is reported, and the others go on.

    Raises:
        ConfigError: at the end, if rows failed; with the reason of the first.
    """
    runs, made, failed = Path(out) / "runs", 0, dict[Path, str]()
    while left := [plan for plan in missing(claims, scale, rows) if plan.path(rows) not in failed]:
        done = 0
        for number, plan in enumerate(left, 1):
            if stored(plan, rows) is not None:  # by another process meanwhile
                continue
            try:
                row = measure(plan, runs, rows)
            except Busy:
                continue
            except Tok1dError as error:
                failed[plan.path(rows)] = f"{plan}: {error}"
                print(f"failed: {plan}: {error}", file=sys.stderr, flush=True)
                continue
            done += 1
            print(f"row {number} of {len(left)}: {plan}: {row.value:.5g} {row.unit}".rstrip(), flush=True)
        made += done
        if not done and any(plan.path(rows) not in failed for plan in left):
            time.sleep(wait)
    if failed:
        raise ConfigError(f"{len(failed)} rows failed, the first one: {next(iter(failed.values()))}")
    return made

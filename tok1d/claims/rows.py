"""The rows of claims as files, and what they say: one JSON file for each arm and seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tok1d import files
from tok1d.claims.claim import SCALES, Listed, ScaleName
from tok1d.claims.plan import RowPlan, row_plans, seed_plans
from tok1d.claims.regime import Checked, Condition, judged
from tok1d.claims.statistics import STATISTICS, missing
from tok1d.claims.verdict import Spread, Verdict, verdict
from tok1d.errors import DataError, reason_of


@dataclass(frozen=True)
class Row:
    """A measured row.

    Args:
        key: of its plan, see `RowPlan.key`.
        value: of the statistic, in `unit`.
        regime: outcomes of the conditions of the claim.
        run: key of the training.
        recipe: name of the base recipe, and overrides with the placeholder of the folder of the trainings.
        weights_hash: fingerprints of the model, and of a generator's tokenizer.
        seconds: of the training in all, and of the measurement.
    """

    claim: str
    arm: str
    seed: int
    scale: str
    key: str
    statistic: dict[str, object]
    value: float
    unit: str
    num_images: int
    regime: list[Checked]
    run: str
    recipe: str
    overrides: list[str]
    steps: int
    weights_hash: dict[str, str]
    device: str
    seconds: dict[str, float]
    commit: str
    torch: str

    def write(self, path: Path) -> None:
        """Write the row, completely or not at all."""
        if not math.isfinite(self.value):
            raise DataError(f"{path}: expected a finite number for {self.claim}, {self.arm}, got {self.value}")
        files.write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")


def read_row(path: Path) -> Row:
    """A stored row; raises DataError for another file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Row(**{**content, "regime": [Checked(**each) for each in content["regime"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a row of a claim ({reason_of(error)}); delete it to measure it again") from None


def stored(plan: RowPlan, rows: Path) -> Row | None:
    """The row of a plan, if it has been measured as the claim says now."""
    path = plan.path(rows)
    if not path.exists():
        return None
    row = read_row(path)
    return row if row.key == plan.key else None


@dataclass(frozen=True)
class Outcome:
    """A claim with its verdict.

    Args:
        scale: of the rows; "" if there are none.
        rows: by label and seed.
    """

    listed: Listed
    verdict: Verdict
    scale: str
    rows: Mapping[tuple[str, int], Row]


def outcome(listed: Listed, rows: Path) -> Outcome:
    """The verdict on a claim from its stored rows: those of the scale small, else those of quick.

    Only seeds of which all arms are measured count.
    """
    if reason := missing(listed.claim):
        return Outcome(listed, Verdict("not run", reason), "", {})
    for scale in (each for each in reversed(SCALES) if each in listed.claim.scales):
        found = _at(listed, rows, scale)
        if found is not None:
            return found
    some = sum(stored(plan, rows) is not None for scale in SCALES for plan in row_plans(listed, scale))
    reason = "no row has been measured" if not some else f"{some} rows, but no seed with all arms"
    return Outcome(listed, Verdict("not run", reason), "", {})


def _at(listed: Listed, rows: Path, scale: ScaleName) -> Outcome | None:
    """The outcome of a scale; None if no seed is complete."""
    claim, found = listed.claim, dict[tuple[str, int], Row]()
    differences = _differences(listed, rows, scale, found)
    if not differences:
        return None
    made = verdict(
        differences,
        expected=claim.expected,
        margin=claim.margin,
        failed=failures(found, claim.regime),
        spread=_spread(listed, rows, scale),
        unit="" if claim.by is not None else STATISTICS[claim.statistic.name].unit,
        what="difference" if claim.by is None else "correlation",
    )
    if made.low is None and claim.spread_from:
        other = f"tok1d reproduce {claim.spread_from} --scale {scale}"
        made = replace(made, reason=f"{made.reason}; `{other}` measures a spread between seeds for it")
    if len(differences) < len(claim.seeds):
        made = replace(made, reason=f"{len(differences)} of {len(claim.seeds)} seeds; {made.reason}")
    return Outcome(listed, made, scale, found)


def _differences(
    listed: Listed, rows: Path, scale: ScaleName, found: dict[tuple[str, int], Row] | None = None
) -> list[float]:
    """The difference, or correlation, of each seed of which all rows are stored; these rows are added to `found`."""
    claim, differences = listed.claim, list[float]()
    for seed in claim.seeds if scale in claim.scales else ():
        plans = seed_plans(listed, seed, scale)
        known = {plan.label: row for plan in plans if (row := stored(plan, rows)) is not None}
        if len(known) < len(plans):
            continue
        if claim.by is None:
            differences.append(sum(sign * known[term.label].value for sign, term in claim.terms))
        else:
            pairs = [(known[term.label].value, known[f"{term.label}-by"].value) for term in claim.plus]
            differences.append(correlation(pairs))
        if found is not None:
            found |= {(label, seed): row for label, row in known.items()}
    return differences


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation of pairs; 0 if all values of a side are equal."""
    try:
        return statistics.correlation(*zip(*pairs, strict=True))
    except statistics.StatisticsError:
        return 0.0


def _spread(listed: Listed, rows: Path, scale: ScaleName) -> Spread:
    """What is known of the spread between seeds: of the claim itself, or from the rows of another claim.

    A difference of more arms varies more: the deviation is scaled by the root of the ratio of the numbers of arms.
    """
    claim = listed.claim
    if claim.by is not None:
        return Spread(arms=len(claim.plus))
    if not claim.spread_from:
        return Spread(claim.spread)
    other = listed.file.claim(claim.spread_from)
    assert other is not None, "checked when the file was read"
    differences = _differences(Listed(other, listed.file), rows, scale)
    if len(differences) < 2:
        return Spread()
    ratio = len(claim.terms) / len(other.terms)
    return Spread(math.sqrt(ratio) * statistics.stdev(differences), len(differences) - 1)


def failures(rows: Mapping[tuple[str, int], Row], conditions: Sequence[Condition]) -> list[str]:
    """The conditions that fail, each with the number of rows and the figures of the first one.

    Args:
        rows: by label and seed.
        conditions: of the claim, whose limits count, not those of the time when the rows were measured.
    """
    failed: dict[str, list[str]] = {}
    for (label, seed), row in rows.items():
        for each in (judged(found, conditions) for found in row.regime):
            if not each.holds:
                failed.setdefault(each.name, []).append(f"{label}, seed {seed}: {each.figures}")
    return [f"{name} fails in {len(found)} of {len(rows)} rows, first {found[0]}" for name, found in failed.items()]

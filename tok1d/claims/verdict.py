"""The verdict on a claim from paired differences: a pure function of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["shown", "opposite", "bounded", "not established", "out of regime", "not run"]
CONFIDENCE = 0.95  # of the interval of the mean difference


@dataclass(frozen=True)
class Verdict:
    """What the rows of a claim say.

    Args:
        state: shown: the interval is on the expected side of 0 and the mean is at least the margin. opposite: the same
            on the other side. bounded: the interval lies within the margin. not established: none of these. out of
            regime: a condition fails. not run: rows are missing.
        reason: one sentence with the figures.
        mean: mean difference; None without differences.
        low, high: 95 % interval of the mean; None if it is not known (one seed).
        differences: one for each seed.
    """

    state: State
    reason: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    differences: tuple[float, ...] = ()


def interval(
    differences: Sequence[float], spread: float | None = None, freedom: int | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences.

    Student's t over the seeds. Of one difference it is known only with `spread`, the standard deviation of a difference
    between seeds that was measured elsewhere, with `freedom` degrees of freedom; None: it is known exactly.
    """
    from scipy import stats

    count = len(differences)
    mean = sum(differences) / count
    if count > 1:
        deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / (count - 1))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
        return mean - half, mean + half
    if spread is None:
        return None
    half = float(
        stats.norm.ppf((1 + CONFIDENCE) / 2) if freedom is None else stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    )
    half *= spread
    return mean - half, mean + half


def verdict(
    differences: Sequence[float],
    *,
    expected: Literal["higher", "lower"],
    margin: float,
    failed: Sequence[str] = (),
    spread: float | None = None,
    freedom: int | None = None,
    unit: str = "",
    what: str = "difference",
) -> Verdict:
    """The verdict on a difference that is expected to be above 0 (higher) or below 0 (lower).

    Args:
        differences: one for each seed, in the unit of the statistic; at least one.
        margin: smallest difference that counts, above 0.
        failed: the conditions of the regime that fail, in words with their figures.
        spread, freedom: see `interval`.
        what: the differences are, for the reason.
    """
    mean, found = sum(differences) / len(differences), interval(differences, spread, freedom)
    low, high = found or (None, None)
    said = describe(mean, found, len(differences), spread is not None, unit)

    def made(state: State, reason: str) -> Verdict:
        return Verdict(state, reason, mean, low, high, tuple(differences))

    if failed:
        return made("out of regime", f"{'; '.join(failed)} ({what} {said})")
    if found is None:
        return made("not established", f"{what} {said}; one seed has no interval")
    sign = 1 if expected == "higher" else -1
    near, far = sorted((sign * found[0], sign * found[1]))
    rule = f"{what} {said}; expected {expected}, by at least {margin:g}"
    if -margin < near and far < margin:
        return made("bounded", f"{rule}: the interval lies within {margin:g} of 0")
    if near > 0 and sign * mean >= margin:
        return made("shown", rule)
    if far < 0 and -sign * mean >= margin:
        return made("opposite", rule)
    return made("not established", rule)


def describe(mean: float, found: tuple[float, float] | None, count: int, stated: bool, unit: str) -> str:
    """The mean difference with its interval and number of seeds, as text."""
    unit = f" {unit}" if unit else ""
    seeds = f"{count} seeds" if count > 1 else "one seed"
    if found is None:
        return f"{mean:+.4g}{unit} ({seeds})"
    how = ", stated spread" if count == 1 and stated else ""
    return f"{mean:+.4g}{unit} ({found[0]:+.4g} to {found[1]:+.4g}, {seeds}{how})"

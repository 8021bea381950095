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
        figures: the mean with its interval and seeds, as in the reason.
    """

    state: State
    reason: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    differences: tuple[float, ...] = ()
    figures: str = ""


@dataclass(frozen=True)
class Spread:
    """What is known of the uncertainty of a single seed.

    Args:
        deviation: standard deviation of a difference between seeds, measured elsewhere; None: not known.
        freedom: degrees of freedom with which the deviation was measured; None: it is known exactly.
        arms: of a correlation, the number of arms that it is over.
    """

    deviation: float | None = None
    freedom: int | None = None
    arms: int | None = None


NO_SPREAD = Spread()


def interval(differences: Sequence[float], spread: Spread = NO_SPREAD) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences; None if it is not known.

    Student's t over several seeds. Of one seed: Student's t (normal, if the deviation is known exactly) with the
    deviation of `spread`; of a correlation Fisher's interval over its arms.
    """
    from scipy import stats

    count = len(differences)
    mean = sum(differences) / count
    upper = (1 + CONFIDENCE) / 2
    if count > 1:
        deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / (count - 1))
        half = float(stats.t.ppf(upper, count - 1)) * deviation / math.sqrt(count)
    elif spread.arms is not None:
        if spread.arms < 4:
            return None
        z, half = math.atanh(min(max(mean, -0.999999), 0.999999)), float(stats.norm.ppf(upper))
        half /= math.sqrt(spread.arms - 3)
        return math.tanh(z - half), math.tanh(z + half)
    elif spread.deviation is None:
        return None
    else:
        factor = stats.norm.ppf(upper) if spread.freedom is None else stats.t.ppf(upper, spread.freedom)
        half = float(factor) * spread.deviation
    return mean - half, mean + half


def verdict(
    differences: Sequence[float],
    *,
    expected: Literal["higher", "lower"],
    margin: float,
    failed: Sequence[str] = (),
    spread: Spread = NO_SPREAD,
    unit: str = "",
    what: str = "difference",
) -> Verdict:
    """The verdict on a difference that is expected to be above 0 (higher) or below 0 (lower).

    Args:
        differences: one for each seed, in the unit of the statistic; at least one.
        margin: smallest difference that counts, above 0.
        failed: the conditions of the regime that fail, in words with their figures.
        spread: of a single seed.
        what: the differences are, for the reason.
    """
    mean, found = sum(differences) / len(differences), interval(differences, spread)
    low, high = found or (None, None)
    said = describe(mean, found, len(differences), spread, unit)

    def made(state: State, reason: str) -> Verdict:
        return Verdict(state, reason, mean, low, high, tuple(differences), said)

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


def describe(
    mean: float, found: tuple[float, float] | None, count: int, spread: Spread = NO_SPREAD, unit: str = ""
) -> str:
    """The mean difference with its interval and number of seeds, as text."""
    unit = f" {unit}" if unit else ""
    seeds = f"{count} seeds" if count > 1 else "one seed"
    if found is None:
        return f"{mean:+.4g}{unit} ({seeds})"
    if count == 1:
        seeds += f", {spread.arms} arms" if spread.arms is not None else ", spread of other seeds"
    return f"{mean:+.4g}{unit} ({found[0]:+.4g} to {found[1]:+.4g}, {seeds})"

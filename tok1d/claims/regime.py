"""The conditions under which a claim can show at all: its regime.

The settings of a condition are part of the claim. `tok1d.claims.measure` finds the figures of a row, the functions here
decide. A claim whose condition fails is out of regime, whatever its difference is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import variance

from tok1d.config.fields import option


@dataclass
class LossFlat:
    """The training loss has stopped falling: the mean of its last tenth is close to that of the tenth before.

    In the trainings of the bundled models (`tok1d/recipes/curves`), of 2,500 to 24,000 steps, it falls by 1.9 to 3.7 %
    there, while the learning rate falls to zero.
    """

    name: str = option("loss_flat", "which condition this is")
    tolerance: float = option(0.06, "largest relative change between the two tenths, beyond two standard errors", gt=0)

    @property
    def limit(self) -> float:
        """The largest value with which the condition holds."""
        return self.tolerance


@dataclass
class ErrorBelowPca:
    """The tokenizer's squared error is below that of principal components with half as many numbers as its tokens.

    A claim that a training makes this error larger leaves out the arms of which it says so.
    """

    name: str = option("error_below_pca_half", "which condition this is")
    arms: list[str] = option([], "the arms that it is about; default: all of the claim")


@dataclass
class DecoderFloor:
    """The distance of reconstructions to test images is small beside that of samples, so samples measure the tokens."""

    name: str = option("decoder_floor", "which condition this is")
    share: float = option(1 / 3, "largest ratio of the two distances", gt=0, le=1)

    @property
    def limit(self) -> float:
        """The largest value with which the condition holds."""
        return self.share


@dataclass
class TeacherNotJudge:
    """The network that measures did not train any of the arm's models."""

    name: str = option("teacher_not_judge", "which condition this is")


Condition = LossFlat | ErrorBelowPca | DecoderFloor | TeacherNotJudge


@dataclass(frozen=True)
class Checked:
    """The outcome of a condition for one row.

    Args:
        name: of the condition.
        holds: whether it holds.
        figures: what was compared, in words.
        value: the number that the condition limits; None if it limits none.
    """

    name: str
    holds: bool
    figures: str
    value: float | None = None


def judged(found: Checked, conditions: Sequence[Condition]) -> Checked:
    """A stored outcome by the limit that its condition has now, which the figures then state."""
    limit = next((each.limit for each in conditions if each.name == found.name and hasattr(each, "limit")), None)
    if found.value is None or limit is None:
        return found
    return replace(found, holds=found.value <= limit, figures=f"{found.figures}, allowed {100 * limit:.3g} %")


def loss_flat(losses: Sequence[float], tolerance: float) -> Checked:
    """Whether a loss, logged at equal distances, changed by at most `tolerance` between its last two tenths.

    Two standard errors of the change, from the scatter of the entries, are allowed beyond it: the value of the outcome
    is the change without them. Fewer than two entries do not hold.
    """
    tenth = max(len(losses) // 10, 1)
    if len(losses) < 2:
        return Checked("loss_flat", False, f"{len(losses)} entries in the log, expected at least 2")
    parts = losses[-2 * tenth : -tenth], losses[-tenth:]
    before, last = (sum(part) / tenth for part in parts)
    change = (last - before) / abs(before) if before else 0.0
    error = math.sqrt(sum(variance(part) / tenth for part in parts)) / abs(before) if before and tenth > 1 else 0.0
    figures = f"loss {before:.4g} to {last:.4g} in the last fifth, {change:+.1%}, standard error {100 * error:.2g} %"
    value = max(abs(change) - 2 * error, 0.0)
    return Checked("loss_flat", value <= tolerance, figures, value)


def error_below_pca(error: float, baseline: float, components: int) -> Checked:
    """Whether a squared error is below that of this number of principal components."""
    figures = f"squared error {error:.4g}, {components} principal components {baseline:.4g}"
    return Checked("error_below_pca_half", error < baseline, figures)


def decoder_floor(reconstructions: float, samples: float, share: float) -> Checked:
    """Whether the distance of reconstructions is at most `share` of that of samples."""
    figures = f"distance of reconstructions {reconstructions:.3g}, of samples {samples:.3g}"
    ratio = reconstructions / samples if samples > 0 else None
    return Checked("decoder_floor", reconstructions <= share * samples, figures, ratio)


def teacher_not_judge(reason: str, judge: str) -> Checked:
    """Whether the network that measures did not train the models; `reason`: why it may not measure, "" if it may."""
    return Checked("teacher_not_judge", not reason, reason or f"measured with {judge}")

"""Scores of a study: 1 where the reconstruction was chosen, 0.5 for a tie, 0 where the distractor was chosen.

Means by number of tokens and reveal time. Their intervals resample participants and images together (a bootstrap of
crossed factors), as answers of one participant, and answers to one image, are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from tok1d.errors import DataError
from tok1d.study.folder import Study
from tok1d.study.plan import Trial, conditions, trials
from tok1d.study.request import Scoring
from tok1d.study.results import StoredAnswer

LEVEL = 0.95
COUNTED = ""  # reason of an answer that counts


@dataclass(frozen=True)
class Scored:
    """An answer with its trial and score.

    Args:
        score: 1, 0.5 or 0; of a catch trial 1 if the original was chosen, else 0.
        left_out: why it does not count; "" if it counts.
    """

    trial: Trial
    given: StoredAnswer
    score: float
    left_out: str


@dataclass(frozen=True)
class Mean:
    """The mean score of some answers, in [0, 1]; 0.5 is no preference.

    Args:
        keep, reveal_ms: None: all.
        low, high: its 95 % interval; None where neither several participants nor several images answered.
    """

    keep: int | None
    reveal_ms: int | None
    mean: float
    low: float | None
    high: float | None
    answers: int
    participants: int
    images: int


@dataclass(frozen=True)
class Score:
    """The scores of a study.

    Args:
        rules: how answers were scored and which were left out, as sentences.
        left_out: number of answers in main trials that do not count, by reason.
        excluded: participants that the catch trials exclude.
    """

    total: Mean
    by_keep: list[Mean]
    by_condition: list[Mean]
    participants: int
    excluded: list[int]
    left_out: dict[str, int]
    rules: list[str]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def said(self) -> str:
        """What was found, as a sentence."""
        each = [f"{_value(mean)} with {mean.keep} token{'s' if mean.keep != 1 else ''}" for mean in self.by_keep]
        excluded = f"; the catch trials excluded {len(self.excluded)}" if self.excluded else ""
        return (
            f"Mean score of reconstructions against distractors: {', '.join(each)} (0.5 is no preference), from "
            f"{self.total.answers} answers of {self.total.participants} participants{excluded}."
        )


def _value(mean: Mean) -> str:
    interval = "" if mean.low is None else f" [{mean.low:.2f}, {mean.high:.2f}]"
    return f"{mean.mean:.2f}{interval}"


def score(study: Study, answers: Sequence[StoredAnswer], how: Scoring) -> tuple[Score, list[Scored]]:
    """The scores of a study, and every answer with its score.

    Raises:
        DataError: no answer counts.
    """
    scored, excluded = scored_answers(study, answers, how.catch_min)
    main = [each for each in scored if each.trial.kind == "main"]
    counted = [each for each in main if each.left_out == COUNTED]
    reasons = [each.left_out for each in main if each.left_out != COUNTED]
    left_out = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    if not counted:
        why = "; ".join(f"{count} left out: {reason}" for reason, count in left_out.items())
        raise DataError(f"no answers to main trials that count{': ' + why if why else ''}; serve the study first")

    def mean_of(keep: int | None, reveal: int | None) -> Mean | None:
        chosen = [
            each for each in counted if keep in (None, each.trial.keep) and reveal in (None, each.trial.reveal_ms)
        ]
        return _mean(chosen, keep, reveal, how) if chosen else None

    total = mean_of(None, None)
    assert total is not None
    found = Score(
        total=total,
        by_keep=_known(lambda keep: mean_of(keep, None), [(keep,) for keep in study.keep]),
        by_condition=_known(mean_of, conditions(study)),
        participants=len({each.participant for each in answers}),
        excluded=excluded,
        left_out=left_out,
        rules=_rules(study, how),
    )
    return found, scored


def _known(mean_of: Callable[..., Mean | None], keys: Sequence[tuple[int, ...]]) -> list[Mean]:
    return [mean for key in keys if (mean := mean_of(*key)) is not None]


def _rules(study: Study, how: Scoring) -> list[str]:
    catch = (
        f"A participant is left out if the original was chosen in less than {how.catch_min:.0%} of the answered catch "
        "trials, or if none was answered."
        if study.catch
        else "The study has no catch trials; no participant is left out."
    )
    return [
        "Score: 1 if the reconstruction was chosen, 0.5 for a tie, 0 if the distractor was chosen.",
        catch,
        "An answer is left out if its original was shown more than once (a reload), for more than one frame longer or "
        "shorter than asked, or while the page was in the background.",
        f"Intervals: {LEVEL:.0%}, from {how.resamples} resamples of participants and images (seed {how.seed}).",
    ]


def scored_answers(study: Study, answers: Sequence[StoredAnswer], catch_min: float) -> tuple[list[Scored], list[int]]:
    """Every answer with its score, and the participants that the catch trials exclude."""

    @cache
    def mine(participant: int) -> list[Trial]:
        return trials(study, participant)

    scored: list[Scored] = []
    caught: dict[int, list[float]] = {}
    for given in answers:
        trial = mine(given.participant)[given.position]
        value = score_of(trial, given)
        caught.setdefault(given.participant, [])
        if trial.kind == "catch":
            caught[given.participant].append(value)
        scored.append(Scored(trial, given, value, _why(trial, given)))
    excluded = [
        participant
        for participant, values in caught.items()
        if study.catch and (not values or np.mean(values) < catch_min)
    ]
    reason = "participant excluded by catch trials"
    return [
        Scored(each.trial, each.given, each.score, reason) if each.given.participant in excluded else each
        for each in scored
    ], excluded


def score_of(trial: Trial, given: StoredAnswer) -> float:
    """1 for the target, 0.5 for a tie (of a catch trial 0), 0 for the other picture."""
    if given.answer.choice == "tie":
        return 0.0 if trial.kind == "catch" else 0.5
    return float(given.answer.choice == trial.target)


def _why(trial: Trial, given: StoredAnswer) -> str:
    """Why an answer of a participant who is not excluded is left out; "" if it counts."""
    answer = given.answer
    if given.reveals > 1:
        return "original shown more than once"
    if answer.hidden:
        return "page in the background"
    if abs(answer.shown_ms - trial.reveal_ms) > answer.frame_ms:
        return "reveal off by more than a frame"
    return COUNTED


def _mean(chosen: Sequence[Scored], keep: int | None, reveal: int | None, how: Scoring) -> Mean:
    people, rows = np.unique([each.given.participant for each in chosen], return_inverse=True)
    images, columns = np.unique([each.trial.item for each in chosen], return_inverse=True)
    values = np.array([each.score for each in chosen])
    low, high = interval(values, rows, columns, how)
    return Mean(keep, reveal, float(values.mean()), low, high, len(values), len(people), len(images))


def interval(
    values: np.ndarray, people: np.ndarray, images: np.ndarray, how: Scoring
) -> tuple[float, float] | tuple[None, None]:
    """The bootstrap interval of the mean of values (N,), whose participants and images are numbered from 0.

    In a resample, an answer has the product of how often its participant and its image were drawn as weight. Resamples
    without any answer are drawn again. (None, None) for one participant and one image.
    """
    sizes = int(people.max()) + 1, int(images.max()) + 1
    if sizes == (1, 1):
        return None, None
    table, present = np.zeros(sizes), np.zeros(sizes)
    np.add.at(table, (people, images), values)
    np.add.at(present, (people, images), 1.0)
    rng, means = np.random.default_rng(how.seed), np.empty(0)
    while len(means) < how.resamples:
        drawn = [rng.multinomial(size, np.full(size, 1 / size), how.resamples) for size in sizes]
        sums, counts = (np.einsum("bp,pi,bi->b", drawn[0], each, drawn[1], optimize=True) for each in (table, present))
        means = np.append(means, sums[counts > 0] / counts[counts > 0])
    low, high = np.quantile(means[: how.resamples], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

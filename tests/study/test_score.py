"""Scores of answers with planted preferences against closed forms; which answers are left out."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tok1d.cli import app as cli
from tok1d.errors import DataError
from tok1d.study.folder import RESULTS, read_study
from tok1d.study.plan import Trial, trials
from tok1d.study.request import Scoring
from tok1d.study.results import Results
from tok1d.study.score import interval, score

from .made import FRAME, given, make_study, synthetic

HOW = Scoring(resamples=400)


@pytest.mark.parametrize(("wish", "value"), [("target", 1.0), ("tie", 0.5), ("other", 0.0)])
def test_equal_answers_score_1_a_half_and_0_without_spread(wish: str, value: float) -> None:
    found, _ = score(make_study(), synthetic(make_study(), 4, lambda number, trial: wish), HOW)
    for mean in (found.total, *found.by_keep, *found.by_condition):
        assert (mean.mean, mean.low, mean.high) == (value, value, value)
    assert (found.total.answers, found.total.participants, found.total.images) == (32, 4, 8)


def test_a_planted_preference_by_tokens_and_time_is_found() -> None:
    """One token: the distractor; four tokens: the reconstruction if it was shown for 500 ms, else a tie."""

    def prefers(number: int, trial: Trial) -> str:
        return "other" if trial.keep == 1 else "target" if trial.reveal_ms == 500 else "tie"

    study = make_study(num=16)
    found, _ = score(study, synthetic(study, 4, prefers), HOW)
    assert {(m.keep, m.reveal_ms): m.mean for m in found.by_condition} == {
        (1, 100): 0.0,
        (1, 500): 0.0,
        (4, 100): 0.5,
        (4, 500): 1.0,
    }
    assert [mean.mean for mean in found.by_keep] == [0.0, 0.75]
    assert found.total.mean == 0.375
    assert "0.75" in found.said() and "1 token," in found.said() and "64 answers of 4 participants" in found.said()


def test_a_preference_for_a_side_scores_one_half() -> None:
    study = make_study(num=8)
    answers = [given(trial, n, "left") for n in range(8) for trial in trials(study, n)]
    found, _ = score(study, answers, Scoring(resamples=400, catch_min=0))
    assert {mean.mean for mean in (found.total, *found.by_keep, *found.by_condition)} == {0.5}


def test_participants_who_fail_catch_trials_are_left_out() -> None:
    study = make_study()
    answers = synthetic(study, 3, lambda number, trial: "other" if number == 1 else "target")
    wrong = {"left": "right", "right": "left"}
    mine = {trial.position: trial for trial in trials(study, 1)}
    failed = [
        replace(each, answer=replace(each.answer, choice=wrong[each.answer.choice]))
        if each.participant == 1 and mine[each.position].kind == "catch"
        else each
        for each in answers
    ]
    found, scored = score(study, failed, HOW)
    assert (found.excluded, found.total.mean, found.total.participants, found.participants) == ([1], 1.0, 2, 3)
    assert found.left_out == {"participant excluded by catch trials": 8}
    assert len(scored) == len(failed)
    kept, _ = score(study, failed, Scoring(resamples=400, catch_min=0))
    assert kept.excluded == [] and kept.total.mean == pytest.approx(2 / 3)
    unfinished = [each for each in answers if each.position < 2 or mine[each.position].kind == "main"]
    assert (
        1
        in score(
            study, [e for e in unfinished if e.participant == 1] + [e for e in answers if e.participant == 0], HOW
        )[0].excluded
    )


def test_a_tie_in_a_catch_trial_is_wrong_and_without_catch_trials_nobody_is_left_out() -> None:
    study = make_study(catch=1)
    answers = [given(trial, 0, "tie") for trial in trials(study, 0)]
    with pytest.raises(DataError, match="8 left out: participant excluded by catch trials"):
        score(study, answers, HOW)
    none = make_study(catch=0)
    found, _ = score(none, synthetic(none, 1, lambda number, trial: "tie"), HOW)
    assert found.excluded == [] and "no catch trials" in found.rules[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reveals": 2}, "original shown more than once"),
        ({"hidden": True}, "page in the background"),
        ({"shown": 100 + 1.5 * FRAME}, "reveal off by more than a frame"),
        ({"shown": 100 - 1.5 * FRAME}, "reveal off by more than a frame"),
        ({"shown": 100 + 0.5 * FRAME}, None),
    ],
)
def test_answers_to_a_wrong_reveal_are_left_out(change: dict, reason: str | None) -> None:
    study = make_study(reveal=(100,), keep=(2,), num=4, catch=0)
    mine = [trial for trial in trials(study, 0) if trial.kind == "main"]
    answers = [given(mine[0], 0, "tie", **change), *(given(trial, 0, trial.target) for trial in mine[1:])]
    found, scored = score(study, answers, HOW)
    assert found.left_out == ({} if reason is None else {reason: 1})
    assert found.total.mean == (3.5 / 4 if reason is None else 1.0)
    assert scored[0].left_out == (reason or "")


def test_practice_is_not_scored_and_no_answers_are_an_error() -> None:
    study = make_study()
    practice = [given(trial, 0, trial.target) for trial in trials(study, 0)[:2]]
    for answers in ([], practice):
        with pytest.raises(DataError, match="no answers to main trials"):
            score(study, answers, HOW)


def test_the_interval_of_one_image_is_that_of_independent_answers() -> None:
    """With one image and n participants the bootstrap mean is binomial(n, p) / n: its quantiles are known."""
    from scipy.stats import binom

    n, p = 40, 0.3
    values = np.r_[np.ones(12), np.zeros(28)]
    low, high = interval(values, np.arange(n), np.zeros(n, int), Scoring(resamples=20_000))
    assert (low, high) == pytest.approx((binom.ppf(0.025, n, p) / n, binom.ppf(0.975, n, p) / n), abs=1 / n + 1e-9)
    assert interval(values[:1], np.zeros(1, int), np.zeros(1, int), HOW) == (None, None)


def test_answers_that_agree_within_participants_or_images_widen_the_interval() -> None:
    people, images = (each.ravel() for each in np.mgrid[:10, :10])
    widths = []
    for values in ((people + images) % 2, people % 2, images % 2):
        low, high = interval(values.astype(float), people, images, HOW)
        assert low is not None and high is not None and low < 0.5 < high
        widths.append(high - low)
    assert widths[1] > 2 * widths[0] and widths[2] > 2 * widths[0]


def stored(folder: Path, participants: int) -> None:
    study = read_study(folder)
    results = Results(folder / RESULTS, study.identity)
    for each in synthetic(study, participants, lambda number, trial: "target" if trial.keep == 4 else "tie"):
        if each.position == 0:
            results.join()
        results.reveal(each.participant, each.position)
        results.answer(each.participant, each.position, each.answer)


def test_the_command_writes_tables_a_plot_and_one_sentence(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write()
    assert cli.run(["study", "score", str(folder)]) == 2
    assert "tok1d study serve" in capsys.readouterr().err
    stored(folder, 4)
    assert cli.run(["study", "score", str(folder), "--resamples", "200"]) == 0
    said = capsys.readouterr().out
    assert "0.50 [0.50, 0.50] with 1 token, 1.00 [1.00, 1.00] with 4 tokens" in said
    assert "less than 75%" in said and "95%" in said
    out = folder / "score"
    assert {path.name for path in out.iterdir()} == {"score.json", "score.csv", "answers.csv", "score.png"}
    rows = list(csv.DictReader((out / "answers.csv").open(encoding="utf-8")))
    assert len(rows) == 4 * 12 and {row["kind"] for row in rows} == {"practice", "main", "catch"}
    assert not {"code", "answered"} & set(rows[0])
    means = list(csv.DictReader((out / "score.csv").open(encoding="utf-8")))
    assert [(row["keep"], row["reveal_ms"]) for row in means[-3:]] == [("1", "all"), ("4", "all"), ("all", "all")]
    assert float(means[-1]["mean"]) == 0.75
    assert json.loads((out / "score.json").read_text())["study"]["weights"] == "0" * 12
    assert cli.run(["study", "score", str(folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    options = ["--out", str(folder.parent / "o"), "--catch-min", "1", "--seed", "4"]
    assert cli.run(["study", "score", str(folder), *options]) == 0
    assert "less than 100%" in capsys.readouterr().out

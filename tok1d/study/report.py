"""The files of a score: score.json, score.csv, answers.csv and score.png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tok1d.files import write_text
from tok1d.pictures import figure_image, plot_label, save_png
from tok1d.study.folder import Study
from tok1d.study.score import Score, Scored

if TYPE_CHECKING:
    from PIL.Image import Image


def write_score(study: Study, found: Score, scored: Sequence[Scored], out: Path) -> None:
    """Write the files of a score into a folder."""
    about = {name: getattr(study, name) for name in ("identity", "model", "weights", "data", "fingerprint", "count")}
    about |= {"distractor": study.distractor, "seed": study.seed, "versions": study.versions}
    write_text(out / "score.json", json.dumps({"study": about, **found.to_json()}, indent=1) + "\n")
    means = [*found.by_condition, *found.by_keep, found.total]
    names = ("keep", "reveal_ms", "mean", "low", "high", "answers", "participants", "images")
    write_text(out / "score.csv", _csv(names, ([_cell(getattr(mean, name)) for name in names] for mean in means)))
    write_text(out / "answers.csv", _csv(ANSWER_COLUMNS, (_row(study, each) for each in scored)))
    save_png(plot(study, found), out / "score.png")


def _cell(value: object) -> object:
    return "all" if value is None else value


ANSWER_COLUMNS = (
    *("participant", "position", "kind", "image", "keep", "reveal_ms", "target", "choice", "score", "left_out"),
    *("shown_ms", "frames", "frame_ms", "reveals", "hidden", "response_ms"),
)


def _row(study: Study, each: Scored) -> list[object]:
    trial, given, answer = each.trial, each.given, each.given.answer
    items = {"main": study.items, "practice": study.practice, "catch": study.catch}[trial.kind]
    return [
        *(given.participant, given.position, trial.kind, items[trial.item].index),
        *("" if trial.keep is None else trial.keep, trial.reveal_ms, trial.target, answer.choice, each.score),
        *(each.left_out, answer.shown_ms, answer.frames, answer.frame_ms, given.reveals, int(answer.hidden)),
        answer.response_ms,
    ]


def _csv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    return text.getvalue()


def plot(study: Study, found: Score) -> Image:
    """Plot the mean score by reveal time, one line for each number of tokens, with the intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for keep in study.keep:
        mine = [mean for mean in found.by_condition if mean.keep == keep]
        if not mine:
            continue
        gaps = [[mean.mean - (mean.mean if mean.low is None else mean.low) for mean in mine]]
        gaps += [[(mean.mean if mean.high is None else mean.high) - mean.mean for mean in mine]]
        gaps = [[max(0.0, gap) for gap in row] for row in gaps]
        times, means = [mean.reveal_ms or 0 for mean in mine], [mean.mean for mean in mine]
        label = f"{keep} of {study.num_tokens} tokens"
        axes.errorbar(times, means, yerr=gaps, marker="o", capsize=3, label=label)
    axes.axhline(0.5, color="grey", linewidth=1, linestyle="--", label="no preference")
    axes.set_xscale("log")
    axes.set_xticks(study.reveal_ms, [str(each) for each in study.reveal_ms])
    axes.minorticks_off()
    axes.set_xlabel("reveal time, ms")
    axes.set_ylabel("mean score of reconstructions")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(plot_label(f"{study.model}: {found.total.answers} answers, {found.total.participants} participants"))
    axes.legend(loc="best", fontsize="small")
    return figure_image(figure)

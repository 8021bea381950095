"""Comparing runs with each other and with the reference curve of their recipe: as text, picture and HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tok1d import files
from tok1d.compare.curves import (
    BAND,
    LEAST,
    Curve,
    Track,
    averaged,
    bands,
    reference_for,
    same_data,
    track,
    window_width,
)
from tok1d.config.differing import Differences, differences
from tok1d.pictures import data_uri, figure_image, plot_label, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from PIL.Image import Image

# Logged numbers that are not plotted.
_NOT_PLOTTED: tuple[str, ...] = ("lr", "grad_norm", "seconds", "images_per_second", "loader_wait", "tflops", "mfu")
_NOT_PLOTTED += ("scale", "skipped")
_PANELS = 12
RULE = (
    "A run is on track if its loss, averaged over the last 5 lines of the log (at least 5 % of the run), is in the "
    f"reference's band or below it. The band reaches {BAND:g} standard deviations of the reference's noise to either "
    f"side of its average, at least {LEAST:.0%} of it. A run is off track from the first of 3 lines in a row above it."
)


@dataclass(frozen=True)
class Comparison:
    """A run compared with its reference.

    Args:
        reference: None where there is no reference.
        differing: settings that differ from the reference's.
    """

    run: Curve
    reference: Curve | None
    track: Track
    differing: Differences

    @property
    def verdict(self) -> str:
        """One line: whether the run is on track, from which step, and how many settings differ."""
        if self.reference is None:
            return f"{self.run.name}: no recipe of this model on these data comes with a curve; pass any run with --to"
        track = self.track
        words = {
            "on track": f"on track up to step {track.until}",
            "better": f"better than the reference at step {track.until}",
            "off track": f"off track since step {track.left}",
            "back on track": f"was off track at step {track.left}, on track again at step {track.until}",
            "not known": f"cannot be compared: {track.reason}",
        }[track.state]
        differing = f", but the recipes differ in {_count(len(self.differing))}" if self.differing else ""
        return f"{self.run.name} against {self.reference.name}: {words}{differing}"

    def difference_lines(self) -> list[str]:
        """The settings that differ from the reference's, one per line."""
        return [f"{key}: {_text(a)}, the reference has {_text(b)}" for key, (a, b) in self.differing.items()]

    def final_rows(self) -> list[tuple[str, float | None, float | None]]:
        """Metrics at the end: (name, the run's value, the reference's value)."""
        theirs = self.reference.final if self.reference else {}
        names = dict.fromkeys([*self.run.final, *theirs])
        return [(name, self.run.final.get(name), theirs.get(name)) for name in names]

    def final_lines(self) -> list[str]:
        """Metrics that both have, for the largest number of tokens, one per line."""
        kept = {int(name.rpartition(" keep ")[2]) for name in self.run.final if " keep " in name}
        return [
            f"{name}: {mine:.4g}, the reference has {theirs:.4g}"
            for name, mine, theirs in self.final_rows()
            if mine is not None and theirs is not None
            if " keep " not in name or name.endswith(f" keep {max(kept)}")
        ]

    def to_json(self) -> dict[str, object]:
        """All results for JSON, without the curves."""
        return {
            "run": self.run.name,
            "reference": self.reference and self.reference.name,
            "state": self.track.state,
            "left": self.track.left,
            "until": self.track.until,
            "differ": {key: list(pair) for key, pair in self.differing.items()},
            "final": {name: {"run": mine, "reference": theirs} for name, mine, theirs in self.final_rows()},
            "verdict": self.verdict,
        }


def _count(settings: int) -> str:
    return f"{settings} setting{'s' * (settings != 1)}"


def _text(value: object) -> str:
    return "nothing" if value is None else str(value)


def compare(run: Curve, reference: Curve | None) -> Comparison:
    """A run compared with a reference."""
    if reference is None:
        return Comparison(run, None, Track("not known", reason="there is no reference"), {})
    differing = differences(run.recipe, reference.recipe)
    if "model.name" in differing:
        return Comparison(run, reference, Track("not known", reason="the reference is of another model"), differing)
    if not same_data(run, reference):
        return Comparison(run, reference, Track("not known", reason="the reference is of other images"), differing)
    return Comparison(run, reference, track(run, reference), differing)


def compare_all(runs: Sequence[Curve], to: str = "") -> list[Comparison]:
    """Runs compared with their references, see `reference_for`; runs without one with the first run.

    Raises:
        InputError, DataError: as `reference_for`.
    """
    return [compare(run, reference_for(run, to) or (runs[0] if run is not runs[0] else None)) for run in runs]


def panels(curves: Sequence[Curve]) -> list[str]:
    """The numbers of some runs to plot: the total loss, its terms where there are several, then all others."""
    keys = list(dict.fromkeys(key for curve in curves for key in curve.keys))
    terms = [key for key in keys if key.startswith("loss")]
    rest = [key for key in keys if key not in terms and not key.endswith(_NOT_PLOTTED)]
    return ["loss", *(terms if len(terms) > 1 else []), *rest][:_PANELS]


def plot(compared: Sequence[Comparison]) -> Image:
    """Plot one panel per logged number: runs in colour, references in black with their band.

    Thin lines are values as logged, thick lines are averages over the window."""
    from matplotlib.figure import Figure

    references = list({each.reference.name: each.reference for each in compared if each.reference}.values())
    names = panels([each.run for each in compared])
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.4 + 4.6 * columns, 0.6 + 3.2 * rows), dpi=110, layout="constrained")
    for axes, key in zip(figure.subplots(rows, columns, squeeze=False).flat, names):
        for reference in references:
            _plot_reference(axes, reference, key)
        for each, colour in zip(compared, _colours(len(compared))):
            _plot_run(axes, each, key, colour)
        _format(axes, key)
    for axes in list(figure.axes)[len(names) :]:
        axes.remove()
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure_image(figure)


def _colours(count: int) -> list[str]:
    return [f"C{i % 10}" for i in range(count)]


def _label(curve: Curve) -> str:
    """The last two parts of a run's folder or a recipe's name."""
    return "/".join(Path(curve.name).parts[-2:])


def _plot_reference(axes: Axes, reference: Curve, key: str) -> None:
    steps, values = reference.series(key)
    if not steps:
        return
    if key != "loss" or len(steps) < 3:
        axes.plot(steps, values, color="black", linewidth=1, marker="." if len(steps) < 25 else None)
        return
    mean, band = bands(steps, values, window_width(steps, steps))
    low, high = ([m + sign * b for m, b in zip(mean, band)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color="black", alpha=0.12, linewidth=0)
    axes.plot(steps, mean, color="black", linewidth=1.5, label=plot_label(f"{_label(reference)} (reference)"))


def _plot_run(axes: Axes, each: Comparison, key: str, colour: str) -> None:
    steps, values = each.run.series(key)
    if not steps:
        return
    if key != "loss":
        axes.plot(steps, values, color=colour, linewidth=1, marker="." if len(steps) < 25 else None)
        return
    ref_steps = each.reference.series(key)[0] if each.reference else []
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.4)
    width = window_width(steps, ref_steps or steps)
    axes.plot(steps, averaged(steps, values, width), color=colour, linewidth=1.8, label=plot_label(_label(each.run)))
    if each.track.left is not None:
        axes.axvline(each.track.left, color=colour, linestyle=":", linewidth=1.2)


def _format(axes: Axes, key: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = [value for line in axes.get_lines() for value in _finite(line)]
    if key.startswith("loss") and values and min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("loss, all terms" if key == "loss" else key, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _finite(line: Line2D) -> list[float]:
    import numpy as np

    values = np.asarray(line.get_ydata(), dtype=float)
    return [] if line.get_linestyle() == ":" else values[np.isfinite(values)].tolist()


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
img{max-width:100%}table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border-bottom:1px solid #ddd;
padding:.2rem .8rem;text-align:left}td.number{text-align:right;font-variant-numeric:tabular-nums}"""


def page(compared: Sequence[Comparison], picture: str) -> str:
    """The comparison as one self-contained HTML page; `picture` is a data URI."""
    parts = [
        "<h1>Runs compared with their reference</h1>",
        f"<p>{escape(RULE)}</p>",
        f'<img alt="curves" src="{picture}">',
    ]
    for each in compared:
        parts.append(f"<h2>{escape(each.run.name)}</h2><p>{escape(each.verdict)}</p>")
        if each.differing and each.reference:
            rows = [(key, _text(mine), _text(theirs)) for key, (mine, theirs) in each.differing.items()]
            parts.append(_table(("setting", each.run.name, each.reference.name), rows))
        if final := each.final_rows():
            rows = [(name, _number(mine), _number(theirs)) for name, mine, theirs in final]
            parts.append(_table(("at the end", each.run.name, "reference"), rows, numbers=True))
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>tok1d compare</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    kind = ' class="number"' if numbers else ""
    cells = [
        "<tr>" + "".join(f"<td{kind if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    ]
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(cells)}</tbody></table>"


def write(compared: Sequence[Comparison], folder: Path) -> None:
    """Write curves.png, curves.html and compare.json into a folder."""
    import json

    picture = plot(compared)
    save_png(picture, folder / "curves.png")
    files.write_text(folder / "curves.html", page(compared, data_uri(picture)))
    files.write_text(folder / "compare.json", json.dumps([each.to_json() for each in compared], indent=1) + "\n")

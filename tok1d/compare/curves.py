"""Loss and metric curves of runs, those that recipes ship, and whether a run is on track.

A curve file is JSON lines: a head (recipe, hash, seed, commit, device, final metrics), then points as in log.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tok1d.config.fields import flat
from tok1d.config.load import RECIPES
from tok1d.errors import DataError, InputError

CURVES = RECIPES / "curves"
MOST_POINTS = 200
WINDOW_LINES, WINDOW_SHARE = 5, 0.05  # what is averaged: so many lines of the log, at least so much of the run
BAND, LEAST = 3.0, 0.05  # fluctuations, and share of the reference's average, that a run's average may be above it
LINES_OUTSIDE = 3  # successive lines above the band that mean the run has left
# What decides where and when something is written or held, not what is computed.
FREE: tuple[str, ...] = ("out", "card", "cache", "evaluate", "data.root", "train.log_every", "train.save_every")
FREE += ("train.preview_every", "train.evaluate_every", "train.proxies_every", "train.peak_tflops", "train.tracker")
FREE += ("train.shard", "train.keep_last", "train.keep_every", "data.workers", "data.on_broken")


@dataclass(frozen=True)
class Curve:
    """What a run logged, and under which recipe.

    Args:
        name: what to call it.
        recipe: the resolved recipe.
        points: entries of the log, by growing step; not every entry has every number.
        final: metrics measured at the end, "name" or "name keep N" -> value.
        finished: whether the run has ended.
    """

    name: str
    recipe: dict[str, Any]
    points: list[dict[str, float]]
    final: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    commit: str = ""
    device: str = ""
    finished: bool = True

    @property
    def keys(self) -> list[str]:
        """Names of the logged numbers."""
        return list(dict.fromkeys(key for point in self.points for key in point if key != "step"))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one number; "loss" is the sum of all that are named so."""
        if key == "loss":
            found = [(point["step"], total) for point in self.points if (total := _total(point)) is not None]
        else:
            found = [(point["step"], point[key]) for point in self.points if key in point]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def losses(self) -> set[str]:
        """Names of the losses that "loss" sums."""
        return {key for key in self.keys if key.startswith("loss")}

    @property
    def last(self) -> int:
        """The last step that is logged."""
        return int(self.points[-1]["step"]) if self.points else 0


def _total(point: Mapping[str, float]) -> float | None:
    losses = [value for key, value in point.items() if key.startswith("loss")]
    return sum(losses) if losses else None


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """A hash of what a recipe computes, but for its seed: 12 hex digits."""
    settings = {key: value for key, value in flat(recipe, FREE).items() if key != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def differences(recipe: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a recipe that are not as the reference's: key -> (its, the reference's).

    A setting that only one of them has, because it is younger, counts unless it is off (0, false, null, none, empty).
    """
    a, b = flat(recipe, FREE), flat(reference, FREE)
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not (_off(a.get(key)) and _off(b.get(key)) and not (key in a and key in b))
    }


def _off(value: Any) -> bool:
    return not value or value == "none"


def read_run(folder: str | Path) -> Curve:
    """The curve of a run folder, finished or under way.

    Raises:
        DataError: no config.yaml or log.jsonl, or one that is something else.
    """
    import yaml

    folder = Path(folder)
    try:
        recipe = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        points = _points((folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
        card = _json(folder / "model" / "config.json").get("card", {})
        report = _json(folder / "report.json", [])
        if not isinstance(recipe, dict):
            raise TypeError("config.yaml holds no recipe")
        return Curve(
            name=str(folder),
            recipe=recipe,
            points=points,
            final={_metric(entry): float(entry["value"]) for entry in report if entry["value"] is not None},
            seed=recipe.get("seed"),
            commit=card.get("commit", ""),
            device=card.get("trained", {}).get("device", ""),
            finished=bool(report),
        )
    except OSError as error:
        raise DataError(
            f"{folder}: expected a run folder with config.yaml and log.jsonl (tok1d train makes them), "
            f"{error.filename and Path(error.filename).name}: {error.strerror or error}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{folder}: expected the log of a run, got something else ({error}); train anew") from None


def _json(path: Path, default: Any = None) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} if default is None else default


def _metric(entry: Mapping[str, Any]) -> str:
    keep = entry.get("keep")
    return entry["name"] if keep is None else f"{entry['name']} keep {keep}"


def _points(lines: Sequence[str]) -> list[dict[str, float]]:
    """Entries of a log; a last line that is being written just now is left out."""
    points = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            points.append({k: v for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)})
    return sorted((point for point in points if "step" in point), key=lambda point: point["step"])


def thinned(points: Sequence[dict[str, float]], most: int = MOST_POINTS) -> list[dict[str, float]]:
    """At most so many points of the losses and as many of what is measured on the way, evenly spaced, with the last.

    As logged, nothing is averaged.
    """
    kept = []
    for wanted in (True, False):
        group = [point for point in points if (_total(point) is not None) == wanted]
        chosen = {round(i * (len(group) - 1) / (most - 1)) for i in range(most)}
        kept += [point for i, point in enumerate(group) if len(group) <= most or i in chosen]
    return sorted(kept, key=lambda point: point["step"])


def save_curve(curve: Curve, path: Path) -> None:
    """Write the curve of a finished run to a file that can lie beside its recipe.

    Raises:
        InputError: the run has not ended.
        DataError: the file cannot be written.
    """
    if not curve.finished:
        raise InputError(f"{curve.name}: a reference curve is that of a finished run; the same tok1d train ends it")
    head = {
        "format": 1,
        "recipe_hash": recipe_hash(curve.recipe),
        **{key: getattr(curve, key) for key in ("seed", "commit", "device", "final")},
        # Without the places of the machine that it was made on.
        "recipe": {**curve.recipe, "out": "", "cache": None, "data": {**curve.recipe.get("data", {}), "root": None}},
    }
    lines = [json.dumps(entry) for entry in (head, *thinned(curve.points))]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the curve ({error.strerror or error}); choose another place") from None
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()


def read_curve(path: Path) -> Curve:
    """A curve file; raises DataError where it is missing or holds something else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])
        if head["format"] != 1:
            raise ValueError(f"format {head['format']}")
        name = path.relative_to(CURVES).with_suffix("").as_posix() if path.is_relative_to(CURVES) else str(path)
        told = {key: head[key] for key in ("recipe", "final", "seed", "commit", "device")}
        return Curve(name=name, points=_points(lines[1:]), **told)
    except OSError as error:
        raise DataError(f"{path}: expected a curve file, got {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a curve that tok1d compare --save-curve wrote ({error})") from None


def shipped_names() -> list[str]:
    """Names of the recipes that ship their curve, sorted."""
    return sorted(path.relative_to(CURVES).with_suffix("").as_posix() for path in CURVES.rglob("*.jsonl"))


def reference_for(run: Curve, name: str = "") -> Curve | None:
    """The curve to hold a run against: of the recipe (or file) named, else the shipped one of the nearest recipe.

    Nearest has the same kind of model and the fewest other settings; None where no recipe of such a model ships one.

    Raises:
        InputError: the recipe named ships no curve.
        DataError: a file that is no curve.
    """
    if name:
        if name in shipped_names():
            return read_curve(CURVES / f"{name}.jsonl")
        if Path(name).is_dir():
            return read_run(name)
        if Path(name).is_file():
            return read_curve(Path(name))
        raise InputError(f"--to: {name} is no run, curve file, or recipe with a curve; those are {shipped_names()}")
    curves = [read_curve(CURVES / f"{each}.jsonl") for each in shipped_names()]
    same = [curve for curve in curves if _model(curve) == _model(run)]
    return min(same, key=lambda curve: len(differences(run.recipe, curve.recipe)), default=None)


def _model(curve: Curve) -> Any:
    return curve.recipe.get("model", {}).get("name")


@dataclass(frozen=True)
class Track:
    """How a run's loss stands to a reference's.

    Args:
        state: "on track", "better" (below the band at the end), "off track" (above it at the end), "back on track"
            (it was above for a while) or "not known".
        left: the first of the steps at which it was above; None where it never was.
        until: the last step that both have.
        reason: why it is not known.
    """

    state: Literal["on track", "better", "off track", "back on track", "not known"]
    left: int | None = None
    until: int = 0
    reason: str = ""


def track(run: Curve, reference: Curve, key: str = "loss") -> Track:
    """Whether a run is on track: its loss, averaged over a window, is inside the reference's band, or below it.

    The window is the last 5 lines of the log, at least 5 % of the reference's steps. The band is 3 fluctuations (see
    `fluctuations`) wide to either side of the reference's average, at least 5 % of that. A run has left at the first
    of 3 successive lines above; 3 below, at the end, are better.
    """
    if run.losses != reference.losses:
        other = ", ".join(sorted(run.losses ^ reference.losses))
        return Track("not known", reason=f"its loss has other terms ({other})")
    steps, values = run.series(key)
    ref_steps, ref_values = reference.series(key)
    if len(ref_steps) < 2 * WINDOW_LINES:
        return Track("not known", reason=f"the reference has only {len(ref_steps)} lines")
    until = min(steps[-1] if steps else 0, ref_steps[-1])
    signs, where = _sides(steps, values, ref_steps, ref_values)
    if len(signs) < LINES_OUTSIDE:
        return Track("not known", until=int(until), reason="too few lines are logged yet")
    left = next((where[i] for i in range(len(signs) - 2) if set(signs[i : i + LINES_OUTSIDE]) == {1}), None)
    end = set(signs[-LINES_OUTSIDE:])
    if end == {1}:
        return Track("off track", left, int(until))
    if left is not None:
        return Track("back on track", left, int(until))
    return Track("better" if end == {-1} else "on track", None, int(until))


def _sides(
    steps: Sequence[float], values: Sequence[float], ref_steps: Sequence[float], ref_values: Sequence[float]
) -> tuple[list[int], list[int]]:
    """Of every step that can be judged: 1 above the band, 0 in it, -1 below; and the steps."""
    width = window_width(steps, ref_steps)
    means, band = bands(ref_steps, ref_values, width)
    signs, where = [], []
    for step in steps:
        mine = _window(steps, values, step, width)
        if step > ref_steps[-1] or min(len(mine), len(_window(ref_steps, ref_values, step, width))) < WINDOW_LINES:
            continue
        at = max(i for i, each in enumerate(ref_steps) if each <= step)
        excess = sum(mine) / len(mine) - means[at]
        signs.append((excess > band[at]) - (excess < -band[at]))
        where.append(int(step))
    return signs, where


def window_width(steps: Sequence[float], reference: Sequence[float]) -> float:
    """Steps that are averaged over: 5 lines of either log, at least 5 % of the reference."""
    return max(WINDOW_SHARE * reference[-1], WINDOW_LINES * max(_spacing(steps), _spacing(reference)))


def averaged(steps: Sequence[float], values: Sequence[float], width: float) -> list[float]:
    """The mean of each value and those up to `width` steps before it."""
    return [sum(near) / len(near) for near in (_window(steps, values, step, width) for step in steps)]


def _spacing(steps: Sequence[float]) -> float:
    return (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 0.0


def _window(steps: Sequence[float], values: Sequence[float], end: float, width: float) -> list[float]:
    return [value for step, value in zip(steps, values) if end - width < step <= end]


def bands(steps: Sequence[float], values: Sequence[float], width: float) -> tuple[list[float], list[float]]:
    """Of every value, the mean over the window that ends there, and by how much a run may be off it."""
    means = averaged(steps, values, width)
    if min(values) <= 0:  # no loss that could be compared in shares of itself
        return means, [max(BAND * each, LEAST * abs(mean)) for mean, each in zip(means, fluctuations(values))]
    shares = fluctuations([math.log(value) for value in values])
    return means, [max(BAND * share, LEAST) * mean for mean, share in zip(means, shares)]


def fluctuations(values: Sequence[float], around: int = 20) -> list[float]:
    """Of every value, the local deviation of single lines from the mean of both neighbours, as a standard deviation.

    By the median over the 41 lines around, so that the steep start does not count as fluctuation.
    """
    off = [abs(b - (a + c) / 2) / 1.5**0.5 for a, b, c in zip(values, values[1:], values[2:])]
    off = [off[0], *off, off[-1]]
    return [1.4826 * statistics.median(off[max(0, i - around) : i + around + 1]) for i in range(len(off))]

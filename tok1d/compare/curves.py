"""Loss and metric curves of runs, reference curves of recipes, and whether a run follows its reference.

A curve file holds JSON lines: a header (recipe, hash, seed, commit, device, final metrics), then points as in
log.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from tok1d import files
from tok1d.config.differing import GENERIC_DATA, Settings, differences, settings_of
from tok1d.config.load import RECIPES, stored_tree
from tok1d.errors import DataError, InputError, reason_of

T = TypeVar("T")

CURVES = RECIPES / "curves"
MOST_POINTS = 200
WINDOW_LINES, WINDOW_SHARE = 5, 0.05  # averaging window: lines of the log, and at least this fraction of the run
# Half width of the band: BAND standard deviations of the reference's noise, at least LEAST of its average.
BAND, LEAST = 3.0, 0.05
LINES_OUTSIDE = 3  # this many successive lines above the band mean that the run is off track


class _Entry(TypedDict):
    """A record of report.json, as far as it is read here."""

    name: str
    keep: int | None
    value: float | None


@dataclass(frozen=True)
class Curve:
    """The log of a run with its recipe.

    Args:
        name: name in messages: the run folder, or the recipe of a reference.
        recipe: the resolved recipe, as nested mappings.
        points: entries of the log in the order of their steps; not every entry has every number.
        final: metrics at the end, "NAME" or "NAME keep N" (N tokens) -> value.
        finished: whether the run is finished.
        data_print: fingerprint of the training images; "" if it is unknown.
    """

    name: str
    recipe: Settings
    points: list[dict[str, float]]
    final: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    commit: str = ""
    device: str = ""
    finished: bool = True
    data_print: str = ""

    @property
    def keys(self) -> list[str]:
        """Names of the logged numbers."""
        return list(dict.fromkeys(key for point in self.points for key in point if key != "step"))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one logged number; "loss" is the sum of those whose names start with "loss"."""
        if key == "loss":
            found = [(point["step"], total) for point in self.points if (total := _total(point)) is not None]
        else:
            found = [(point["step"], point[key]) for point in self.points if key in point]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def losses(self) -> set[str]:
        """Names of the terms of "loss"."""
        return {key for key in self.keys if key.startswith("loss")}

    @property
    def last(self) -> int:
        """The last logged step."""
        return int(self.points[-1]["step"]) if self.points else 0


def _total(point: Mapping[str, float]) -> float | None:
    losses = [value for key, value in point.items() if key.startswith("loss")]
    return sum(losses) if losses else None


def recipe_hash(recipe: Mapping[str, object]) -> str:
    """A hash of the settings that decide what a recipe computes, without its seed: 12 hex digits."""
    settings = {key: value for key, value in settings_of(recipe).items() if key != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_run(folder: str | Path) -> Curve:
    """The curve of a run folder, finished or not.

    Raises:
        DataError: config.yaml or log.jsonl is missing or has other content.
    """
    folder = Path(folder)
    try:
        recipe: Settings = stored_tree((folder / "config.yaml").read_text(encoding="utf-8"))
        points = _points((folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
        config: Settings = _json(folder / "model" / "config.json", {})
        card = config.get("card", {})
        report: list[_Entry] = _json(folder / "report.json", [])
        if not recipe:
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
            data_print=card.get("data_fingerprint", ""),
        )
    except OSError as error:
        raise DataError(
            f"{folder}: expected a run folder with config.yaml and log.jsonl, as tok1d train writes them; "
            f"{error.filename and Path(error.filename).name}: {error.strerror or error}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder}: expected the log of a run, got something else ({reason_of(error)}); train again"
        ) from None


def _json(path: Path, default: T) -> T:
    """The JSON content of a file, or `default` if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _metric(entry: _Entry) -> str:
    keep = entry.get("keep")
    return entry["name"] if keep is None else f"{entry['name']} keep {keep}"


def _points(lines: Sequence[str]) -> list[dict[str, float]]:
    """The numbers of a log's entries; an incomplete last line, which is being written, is left out."""
    points = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            points.append({k: v for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)})
    return sorted((point for point in points if "step" in point), key=lambda point: point["step"])


def thinned(points: Sequence[dict[str, float]], most: int = MOST_POINTS) -> list[dict[str, float]]:
    """At most `most` entries with losses and as many with metrics, evenly spaced, including the last; not averaged."""
    kept = []
    for wanted in (True, False):
        group = [point for point in points if (_total(point) is not None) == wanted]
        chosen = {round(i * (len(group) - 1) / (most - 1)) for i in range(most)}
        kept += [point for i, point in enumerate(group) if len(group) <= most or i in chosen]
    return sorted(kept, key=lambda point: point["step"])


def save_curve(curve: Curve, path: Path) -> None:
    """Write the curve of a finished run to a file.

    Raises:
        InputError: the run is not finished.
        DataError: the file cannot be written.
    """
    if not curve.finished:
        raise InputError(f"{curve.name}: expected a finished run; run the same tok1d train to the end")
    head = {
        "format": 1,
        "recipe_hash": recipe_hash(curve.recipe),
        **{key: getattr(curve, key) for key in ("seed", "commit", "device", "final")},
        # Without the paths of this machine.
        "recipe": {**curve.recipe, "out": "", "cache": None, "data": {**curve.recipe.get("data", {}), "root": None}},
    }
    lines = [json.dumps(entry) for entry in (head, *thinned(curve.points))]
    try:
        files.write_text(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot write the curve ({reason_of(error)}); choose another path") from None


def read_curve(path: Path) -> Curve:
    """The curve of a file; raises DataError where it is missing or not a curve file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])
        if head["format"] != 1:
            raise ValueError(f"format {head['format']}")
        name = path.relative_to(CURVES).with_suffix("").as_posix() if path.is_relative_to(CURVES) else str(path)
        facts = {key: head[key] for key in ("recipe", "final", "seed", "commit", "device")}
        return Curve(name=name, points=_points(lines[1:]), **facts)
    except OSError as error:
        raise DataError(f"{path}: cannot read the curve file ({reason_of(error)})") from None
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a curve file as tok1d compare --save-curve writes it ({reason_of(error)})"
        ) from None


def shipped_names() -> list[str]:
    """Names of the recipes that come with a reference curve, sorted."""
    return sorted(path.relative_to(CURVES).with_suffix("").as_posix() for path in CURVES.rglob("*.jsonl"))


def reference_for(run: Curve, name: str = "") -> Curve | None:
    """The reference curve for a run.

    Args:
        name: a recipe with a reference curve, a run folder or a curve file. Default: of the reference curves of the
            same model on the same data, the one whose recipe differs in the fewest settings; None where there is none.

    Raises:
        InputError: `name` is none of these.
        DataError: a file that is not a curve file.
    """
    if name:
        if name in shipped_names():
            return read_curve(CURVES / f"{name}.jsonl")
        if Path(name).is_dir():
            return read_run(name)
        if Path(name).is_file():
            return read_curve(Path(name))
        known = ", ".join(shipped_names())
        raise InputError(f"--to: expected a run folder, a curve file, or a recipe with a curve ({known}), got {name}")
    curves = [read_curve(CURVES / f"{each}.jsonl") for each in shipped_names()]
    same = [curve for curve in curves if _model(curve) == _model(run) and same_data(curve, run)]
    return min(same, key=lambda curve: len(differences(run.recipe, curve.recipe)), default=None)


def _model(curve: Curve) -> str | None:
    return curve.recipe.get("model", {}).get("name")


def same_data(a: Curve, b: Curve) -> bool:
    """Whether two curves are of the same data set: by its name, own images by their fingerprint or else their place."""
    name, root = ([_settings_of_data(each).get(key) for each in (a, b)] for key in ("name", "root"))
    if name[0] != name[1] or name[0] not in GENERIC_DATA:
        return name[0] == name[1]
    return a.data_print == b.data_print if a.data_print and b.data_print else root[0] == root[1]


def _settings_of_data(curve: Curve) -> Settings:
    return {"name": "fashion_mnist"} | curve.recipe.get("data", {})


@dataclass(frozen=True)
class Track:
    """How a run's loss compares with a reference.

    Args:
        state: "on track"; "better" (below the band at the end); "off track" (above the band at the end); "back on
            track" (above it for a while); or "not known".
        left: the first step at which it was above the band; None where it never was.
        until: the last step that both have.
        reason: why the state is not known.
    """

    state: Literal["on track", "better", "off track", "back on track", "not known"]
    left: int | None = None
    until: int = 0
    reason: str = ""


def track(run: Curve, reference: Curve, key: str = "loss") -> Track:
    """Whether a run is on track: its loss, averaged over a window, lies in the reference's band or below it.

    The window is the last 5 lines of the log, at least 5 % of the reference's steps. The band reaches 3 standard
    deviations (see `fluctuations`) to either side of the reference's average, at least 5 % of it. A run leaves the
    band at the first of 3 successive lines above it; with its last 3 lines below the band it is better.

    Args:
        key: the logged number to compare; "loss" is the sum of all losses.
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
    """Return 1, 0 or -1 (above, inside or below the band) for every step with enough lines, and these steps."""
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
    """Width of the averaging window in steps: 5 lines of the sparser log, at least 5 % of the reference."""
    return max(WINDOW_SHARE * reference[-1], WINDOW_LINES * max(_spacing(steps), _spacing(reference)))


def averaged(steps: Sequence[float], values: Sequence[float], width: float) -> list[float]:
    """For each value, the mean of the values of the last `width` steps up to it."""
    return [sum(near) / len(near) for near in (_window(steps, values, step, width) for step in steps)]


def _spacing(steps: Sequence[float]) -> float:
    return (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 0.0


def _window(steps: Sequence[float], values: Sequence[float], end: float, width: float) -> list[float]:
    return [value for step, value in zip(steps, values) if end - width < step <= end]


def bands(steps: Sequence[float], values: Sequence[float], width: float) -> tuple[list[float], list[float]]:
    """For each value, the mean over the window that ends there, and the half width of the band around it."""
    means = averaged(steps, values, width)
    if min(values) <= 0:  # relative deviations need positive values
        return means, [max(BAND * each, LEAST * abs(mean)) for mean, each in zip(means, fluctuations(values))]
    shares = fluctuations([math.log(value) for value in values])
    return means, [max(BAND * share, LEAST) * mean for mean, share in zip(means, shares)]


def fluctuations(values: Sequence[float], around: int = 20) -> list[float]:
    """For each value, the standard deviation of the noise around it.

    It is estimated from the differences between values and the mean of their two neighbours, whose standard deviation
    is sqrt(1.5) times that of independent noise. The median over the 41 nearest values, times 1.4826 (normal noise),
    is robust against the steep decrease at the start.
    """
    off = [abs(b - (a + c) / 2) / 1.5**0.5 for a, b, c in zip(values, values[1:], values[2:])]
    off = [off[0], *off, off[-1]]
    return [1.4826 * statistics.median(off[max(0, i - around) : i + around + 1]) for i in range(len(off))]

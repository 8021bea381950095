"""Reference curves keep what was logged, and a run is reported as off track where it leaves them."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tok1d.cli import app as cli
from tok1d.compare import curves
from tok1d.compare.curves import Curve, read_curve, read_run, recipe_hash, thinned, track
from tok1d.compare.runs import compare, page
from tok1d.config.differing import FREE, differences
from tok1d.config.fields import flat, to_mapping
from tok1d.config.load import load_recipe
from tok1d.errors import DataError, InputError

RECIPE: dict[str, Any] = {
    "kind": "tokenizer",
    "seed": 0,
    "out": "runs/a",
    "model": {"name": "maetok", "dim": 96, "mask": {"low": 0.4}},
    "train": {"steps": 3000, "batch_size": 64, "lr": 1e-3, "log_every": 50},
    "evaluate": {"keep": [16]},
}
OTHER = {
    "model.dim": 64,
    "model.mask.low": 0.0,
    "train.batch_size": 128,
    "train.lr": 2e-3,
    "train.steps": 1500,
    "seed": 1,
}


def recipe(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe with some settings, by their full key, changed."""
    tree = json.loads(json.dumps(RECIPE))
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        branch = tree
        for name in path:
            branch = branch[name]
        branch[last] = value
    return tree


def curve(seed: int = 0, lines: int = 60, factor: Any = lambda step: 1.0, noise: float = 0.03, **changes: Any) -> Curve:
    """A noisy loss that falls from 1 to 0.1, times a factor that depends on the step."""
    rng = random.Random(seed)
    points = []
    for step in range(50, 50 * lines + 1, 50):
        loss = (0.1 + 0.9 * math.exp(-step / 300)) * factor(step) * (1 + noise * rng.gauss(0, 1))
        points.append({"step": step, "loss_a": 0.75 * loss, "loss_b": 0.25 * loss, "lr": 1e-3, "seconds": step / 9})
    return Curve(f"runs/seed-{seed}", recipe(), points, **changes)


def folder(path: Path, of: Curve, report: list[dict[str, Any]] | None = None) -> str:
    """A run folder of a finished training; without a report, of a running one."""
    (path / "model").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(of.recipe))
    (path / "log.jsonl").write_text("".join(json.dumps(point) + "\n" for point in of.points))
    if report is not None:
        card = {"commit": "abc", "trained": {"device": "cpu"}}
        (path / "model" / "config.json").write_text(json.dumps({"card": card}))
        (path / "report.json").write_text(json.dumps(report))
    return str(path)


REPORT = [{"name": "psnr", "value": 18.5, "keep": 16}, {"name": "fid", "value": None, "keep": None}]


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
def test_the_same_recipe_with_other_seeds_is_on_track(noise: float) -> None:
    found = [track(curve(2 * seed, noise=noise), curve(2 * seed + 1, noise=noise)) for seed in range(200)]
    assert all(each.state in ("on track", "back on track") and each.until == 3000 for each in found)
    assert sum(each.left is not None for each in found) <= 2  # 0.2 % of 3,000 pairs were


@pytest.mark.parametrize("start", [500, 1000, 2000])
def test_a_run_is_off_track_from_where_it_leaves(start: int) -> None:
    found = track(curve(3, factor=lambda step: 1.6 if step > start else 1.0), curve(4))
    assert found.state == "off track"
    assert found.left is not None and start < found.left <= start + 5 * 50


def test_back_on_track_better_and_too_early() -> None:
    bump = curve(3, factor=lambda step: 1.6 if 1000 < step <= 1600 else 1.0)
    found = track(bump, curve(4))
    assert found.state == "back on track" and found.left is not None and 1000 < found.left <= 1250
    assert track(curve(3, factor=lambda step: 0.5), curve(4)).state == "better"
    assert track(curve(3, lines=20), curve(4)).until == 1000
    for early in (1, 5):
        assert track(curve(3, lines=early), curve(4)).state == "not known"
    assert "only 9 lines" in track(curve(3), curve(4, lines=9)).reason
    renamed = Curve("c", recipe(), [{"step": p["step"], "loss_c": p["loss_a"]} for p in curve(3).points])
    assert "other terms (loss_a, loss_b, loss_c)" in track(renamed, curve(4)).reason


@given(st.sets(st.sampled_from(sorted(OTHER))))
def test_exactly_the_other_settings_are_named(keys: set[str]) -> None:
    changed = recipe({key: OTHER[key] for key in keys})
    assert differences(changed, recipe()) == {key: (OTHER[key], flat(recipe())[key]) for key in keys}
    assert (recipe_hash(changed) == recipe_hash(recipe())) == (keys <= {"seed"})


def test_what_computes_nothing_is_not_a_difference() -> None:
    moved = recipe({"out": "elsewhere", "train.log_every": 10, "evaluate.keep": [], "train.proxies_every": 500})
    assert not differences(moved, recipe()) and recipe_hash(moved) == recipe_hash(recipe())
    younger = recipe({"model.new": 0, "model.how": "none", "model.newer": 7})
    assert differences(younger, recipe()) == {"model.newer": (7, None)}


def test_a_curve_file_holds_what_was_logged(tmp_path: Path) -> None:
    run = read_run(folder(tmp_path / "run", curve(lines=450), REPORT))
    assert (run.final, run.seed, run.commit, run.device) == ({"psnr keep 16": 18.5}, 0, "abc", "cpu")
    curves.save_curve(run, tmp_path / "deep" / "c.jsonl")
    again = read_curve(tmp_path / "deep" / "c.jsonl")
    assert flat(again.recipe, FREE) == flat(run.recipe, FREE) and again.final == run.final
    assert (again.recipe["out"], again.recipe["data"]["root"]) == ("", None), "no place of this machine"
    assert len(again.points) == curves.MOST_POINTS
    assert again.points[0] == run.points[0] and again.points[-1] == run.points[-1]
    assert all(point in run.points for point in again.points)
    gaps = [b["step"] - a["step"] for a, b in zip(again.points, again.points[1:])]
    assert max(gaps) - min(gaps) <= 50
    assert thinned(run.points[:7]) == run.points[:7]
    measured = [{"step": point["step"], "ema_psnr@8": 1.0} for point in run.points[::50]]
    both = thinned([*run.points, *measured])
    assert [point for point in both if "ema_psnr@8" in point] == measured and len(both) == len(again.points) + 9
    head = json.loads((tmp_path / "deep" / "c.jsonl").read_text().splitlines()[0])
    assert head["recipe_hash"] == recipe_hash(RECIPE)


def test_a_run_under_way_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", curve(lines=20))
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 1050, "loss_a": 0.1')
    run = read_run(path)
    assert run.last == 1000 and not run.finished
    with pytest.raises(InputError, match="finished run"):
        curves.save_curve(run, tmp_path / "c.jsonl")


def test_the_nearest_recipe_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "CURVES", tmp_path)
    assert curves.reference_for(curve()) is None
    for name, changes in (
        ("set/a", {"model.dim": 1, "seed": 5}),
        ("set/b", {"model.dim": 1}),
        ("c", {"model.name": "x"}),
    ):
        curves.save_curve(Curve(name, recipe(changes), curve().points), tmp_path / f"{name}.jsonl")
    nearest = curves.reference_for(curve())
    assert nearest is not None and nearest.name == "set/b"
    named = curves.reference_for(curve(), "c")
    assert named is not None and named.recipe["model"]["name"] == "x"
    assert compare(curve(), named).track.reason == "the reference is of another model"
    with pytest.raises(InputError, match="expected a run folder, a curve file"):
        curves.reference_for(curve(), "d")


def test_compare_writes_picture_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = curve(1), curve(2, factor=lambda step: 1.6 if step > 1000 else 1.0)
    bad.recipe["train"]["lr"] = 2e-3
    paths = [folder(tmp_path / name, of, REPORT) for name, of in (("good", good), ("bad<b>", bad))]
    saved = tmp_path / "ref.jsonl"
    assert cli.run(["compare", paths[0], "--save-curve", str(saved)]) == 0
    assert cli.run(["compare", paths[0], "--save-curve", str(saved)]) == 2
    out = tmp_path / "out"
    assert cli.run(["compare", *paths, "--to", str(saved), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"good against .*: on track up to step 3000\n", printed)
    assert re.search(r"bad<b> against .*: off track since step 1\d\d\d, but the recipes differ in 1 setting", printed)
    assert "  train.lr: 0.002, the reference has 0.001\n" in printed
    assert "  psnr keep 16: 18.5, the reference has 18.5\n" in printed
    with Image.open(out / "curves.png") as picture:
        assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 20
    text = (out / "curves.html").read_text()
    assert "bad&lt;b&gt;" in text and "bad<b>" not in text
    assert not re.search(r"https?://|<script", text) and text.count("data:image/png;base64,") == 1
    states = [each["state"] for each in json.loads((out / "compare.json").read_text())]
    assert states == ["on track", "off track"]


def test_a_page_without_a_reference_states_it() -> None:
    alone = compare(curve(), None)
    assert "no recipe of this model on these data comes with a curve" in alone.verdict
    assert "no recipe of this model" in page([alone], "data:image/png;base64,")


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    odd = Path(folder(tmp_path / "odd", curve()))
    (odd / "config.yaml").write_text("- a list")
    (tmp_path / "curve.jsonl").write_text('{"format": 2}\n')
    good = folder(tmp_path / "good", curve())
    for arguments in (
        [str(tmp_path / "none")],
        [str(tmp_path / "empty")],
        [str(odd)],
        [good, "--to", str(tmp_path / "curve.jsonl")],
        [good, "--to", "nothing"],
        [good, "--save-curve", str(tmp_path / "new.jsonl")],
        [good, good, "--save-curve", str(tmp_path / "new.jsonl")],
    ):
        assert cli.run(["compare", *arguments]) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new.jsonl").exists()
    with pytest.raises(DataError, match="log of a run"):
        read_run(odd)


def test_shipped_curves_are_of_their_recipes() -> None:
    for name in curves.shipped_names():
        shipped = read_curve(curves.CURVES / f"{name}.jsonl")
        now = to_mapping(load_recipe(name))
        assert not differences(shipped.recipe, now), name
        assert 10 <= len(shipped.points) <= 2 * curves.MOST_POINTS and shipped.last == now["train"]["steps"]
        assert shipped.final and shipped.commit and shipped.device
        assert f"| `{name}` |" in (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")

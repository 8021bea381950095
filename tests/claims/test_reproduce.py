"""Rows: trained, measured, resumed, shared, and judged; on 64 noise images and models that learn nothing."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tok1d.claims import plan, reproduce, statistics
from tok1d.claims.claim import Listed, Measurement
from tok1d.claims.measure import Busy, alone, trained
from tok1d.claims.plan import RowPlan
from tok1d.claims.report import command_text, difference_text, statistic_text
from tok1d.claims.rows import outcome, read_row
from tok1d.claims.statistics import STATISTICS
from tok1d.claims.trained import Trained
from tok1d.cli import app as cli
from tok1d.errors import InputError
from tok1d.train import run

Tiny = Callable[..., str]
TEXT = """
paper: Mine
scales:
  quick: {{num: 64, tokenizer: [train.steps=4], generator: [train.steps=3]}}
  small: {{num: 64, tokenizer: [train.steps=4], generator: [train.steps=3]}}
arms:
  a: {{recipe: {tokenizer}, step_seconds: 0.1}}
  b: {{recipe: {tokenizer}, overrides: [model.nested.enabled=false], step_seconds: 0.1}}
  same-as-a: {{recipe: {tokenizer}, step_seconds: 0.1}}
  g: {{recipe: {generator}, overrides: [tokenizer=<a>], step_seconds: 0.1}}
  h: {{recipe: {generator}, overrides: [tokenizer=<b>], step_seconds: 0.1}}
claims:
- id: nesting
  section: section 1
  statement: Something holds.
  statistic: {{name: mse, keep: 1}}
  plus: [a]
  minus: [b]
  expected: lower
  margin: 0.5
  seeds: [0, 1]
- id: tokens
  section: section 2
  statement: Something else holds.
  statistic: {{name: mse}}
  plus: [{{arm: same-as-a, name: one, keep: 1}}]
  minus: [{{arm: a, name: all}}]
  expected: lower
  margin: 0.5
  regime: [{{name: loss_flat, tolerance: 1e-9}}, {{name: error_below_pca_half, arms: [a]}}, {{name: teacher_not_judge}}]
- id: samples
  section: section 3
  statement: Samples hold.
  statistic: {{name: sample_fd, evaluate: [guidance=1]}}
  plus: [g]
  minus: [h]
  expected: lower
  margin: 1
  regime: [{{name: decoder_floor}}]
"""


@pytest.fixture
def claims(tmp_path: Path, tiny: Tiny, fashion: None) -> Path:
    path = tmp_path / "mine.yaml"
    generator = tiny("generator", tokenizer="fashion-mnist-semanticist")
    path.write_text(TEXT.format(tokenizer=tiny("tokenizer"), generator=generator), encoding="utf-8")
    return path


@pytest.fixture
def listed(claims: Path) -> dict[str, Listed]:
    return plan.read_claims([claims])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run folders of all trainings of a test."""
    folders: list[str] = []
    train = run.train

    def counting(recipe: object, **given: object) -> Path:
        folders.append(str(recipe.out))  # type: ignore[attr-defined]
        return train(recipe, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "train", counting)
    return folders


def test_the_command_trains_measures_and_judges(
    claims: Path, tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["reproduce", "nesting", "tokens", "--file", str(claims), "--out", str(out)]
    assert cli.run(command) == 0
    said = capsys.readouterr().out
    assert "nesting: bounded" in said or "nesting: not established" in said
    assert "tokens: out of regime: loss_flat fails in 2 of 2 rows, first one, seed 0: loss " in said
    for name, about in (("all", True), ("one", False)):  # the condition is about the arm a, not about same-as-a
        found = json.loads((out / "rows" / "quick" / "tokens" / f"{name}-seed0.json").read_text())["regime"]
        assert ("error_below_pca_half" in [each["name"] for each in found]) == about
    names = sorted(path.relative_to(out / "rows" / "quick").as_posix() for path in (out / "rows").rglob("*.json"))
    assert names == [
        *(f"nesting/{arm}-seed{seed}.json" for arm in "ab" for seed in (0, 1)),
        "tokens/all-seed0.json",
        "tokens/one-seed0.json",
    ]
    assert len(counted) == len(set(counted)) == 4  # two arms, two seeds; the second claim trains nothing
    row = json.loads((out / "rows/quick/nesting/a-seed0.json").read_text(encoding="utf-8"))
    assert row["steps"] == 4 and row["device"] and row["weights_hash"]["model"] and row["seconds"]["training"] >= 0
    assert str(tmp_path) not in json.dumps({**row, "recipe": ""})  # the recipe here is a file of the user's
    assert cli.run(command) == 0 and len(counted) == 4
    assert not list(out.rglob("*.lock"))


def test_a_lost_row_and_one_of_another_recipe_are_made_again(
    listed: dict[str, Listed], tmp_path: Path, counted: list[str]
) -> None:
    some, rows = [listed["tokens"]], tmp_path / "rows"
    assert reproduce.reproduce(some, "quick", tmp_path, rows) == 2
    path = rows / "quick" / "tokens" / "one-seed0.json"
    row = read_row(path)
    path.unlink()
    assert outcome(listed["tokens"], rows).verdict.reason == "1 rows, but no seed with all arms"
    assert reproduce.reproduce(some, "quick", tmp_path, rows) == 1
    assert read_row(path).value == row.value
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "key": "another"}), encoding="utf-8")
    assert len(reproduce.missing(some, "quick", rows)) == 1 and len(counted) == 1


def test_equal_measurements_are_made_once(
    listed: dict[str, Listed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 of arm a with one token belongs to two claims."""
    function, calls = STATISTICS["mse"].function, list[int]()
    assert function is not None

    def counting(arm: Trained, how: Measurement) -> float:
        calls.append(arm.recipe.seed)
        return function(arm, how)

    monkeypatch.setitem(STATISTICS, "mse", replace(STATISTICS["mse"], function=counting))
    some = [listed["nesting"], listed["tokens"]]
    assert reproduce.reproduce(some, "quick", tmp_path, tmp_path / "rows") == 6 and len(calls) == 5
    values = [
        read_row(tmp_path / "rows/quick" / name).value for name in ("nesting/a-seed0.json", "tokens/one-seed0.json")
    ]
    assert values[0] == values[1]


def test_work_of_another_process_is_left_for_later(
    listed: dict[str, Listed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a training is held: the other rows are measured, and then that one."""
    rows, waits = tmp_path / "rows", list[list[str]]()
    first = RowPlan(listed["nesting"], listed["nesting"].claim.plus[0], 0, "quick")
    held = alone(tmp_path / "runs" / first.plan.key)
    (tmp_path / "runs").mkdir()
    held.__enter__()
    with pytest.raises(Busy), alone(tmp_path / "runs" / first.plan.key):
        pass

    def wait(seconds: float) -> None:
        waits.append(sorted(path.name for path in rows.rglob("*.json")))
        held.__exit__(None, None, None)

    monkeypatch.setattr("time.sleep", wait)
    assert reproduce.reproduce([listed["nesting"]], "quick", tmp_path, rows) == 4
    assert waits == [["a-seed1.json", "b-seed0.json", "b-seed1.json"]]


def test_a_row_that_fails_does_not_stop_the_others(
    claims: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arm: Trained, how: Measurement) -> float:
        raise InputError("its tokens are broken")

    broken = replace(STATISTICS["mse"], function=fails)
    command = ["reproduce", "nesting", "tokens", "samples", "--file", str(claims), "--out", str(tmp_path)]
    monkeypatch.setitem(STATISTICS, "mse", broken)
    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert "error: 6 rows failed, the first one: nesting, a, seed 0, quick: its tokens are broken" in said
    assert sorted(path.parent.name for path in (tmp_path / "rows").rglob("*.json")) == ["samples", "samples"]


def test_an_interrupted_training_resumes(
    listed: dict[str, Listed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation at the end is interrupted; the same call goes on from the checkpoint of the last step."""
    finish = run.finish

    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce([listed["nesting"]], "quick", tmp_path, tmp_path / "rows")
    monkeypatch.setattr(run, "finish", finish)
    assert list((tmp_path / "runs").glob("*/checkpoints/*.pt")) and not (tmp_path / "rows").exists()
    assert reproduce.reproduce([listed["nesting"]], "quick", tmp_path, tmp_path / "rows") == 4


STUBBED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from tok1d.claims import measure, plan, reproduce
from tok1d.claims.statistics import STATISTICS
from dataclasses import replace

out, claims, fatal = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
log = out / "measured.txt"

def value(arm, how):
    done = len(log.read_text().splitlines()) if log.exists() else 0
    with log.open("a") as file:
        file.write("row\\n")
    if done + 1 == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(done)

measure.train = lambda plan, runs: None
arm = SimpleNamespace(model=None, of=None, recipe=SimpleNamespace(train=SimpleNamespace(steps=1)), device="cpu")
arm.tokens = arm
measure.trained = lambda plan, runs, num: arm
measure.fingerprint = lambda model: "hash"
measure.seconds_of = lambda arm: 0.0
STATISTICS["mse"] = replace(STATISTICS["mse"], function=value)
found = plan.read_claims([claims])
print(reproduce.reproduce([found["nesting"]], "quick", out, out / "rows", wait=0.1))
"""


def test_a_killed_command_loses_the_row_in_progress_alone(claims: Path, tmp_path: Path) -> None:
    """Killed (SIGKILL) while it measures the third of four rows, with trainings and the statistic replaced."""
    command = [sys.executable, "-c", STUBBED, str(tmp_path), str(claims)]
    killed = subprocess.run([*command, "3"], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = tmp_path / "rows"
    before = {path.name: path.read_bytes() for path in rows.rglob("*.json")}
    assert len(before) == 2 and all(json.loads(text) for text in before.values())
    again = subprocess.run([*command, "0"], capture_output=True, text=True, check=True, timeout=120)
    assert again.stdout.splitlines()[-1] == "2", "the row in progress and the one after it"
    after = {path.name: path.read_bytes() for path in rows.rglob("*.json")}
    assert len(after) == 4 and {name: after[name] for name in before} == before
    assert len((tmp_path / "measured.txt").read_text().splitlines()) == 5, "one row was measured twice"


def test_headline_claims_come_first_and_others_after_all_their_seeds(listed: dict[str, Listed], tmp_path: Path) -> None:
    listed["tokens"].claim.headline = True
    found = reproduce.missing([listed["nesting"], listed["tokens"]], "quick", tmp_path)
    assert [row.listed.claim.id for row in found] == ["tokens"] * 2 + ["nesting"] * 4
    assert [row.seed for row in found] == [0, 0, 0, 0, 1, 1]


def test_a_claim_of_one_scale_is_left_out_at_the_other(
    claims: Path, listed: dict[str, Listed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = claims.read_text(encoding="utf-8").replace("margin: 1\n", "margin: 1\n  scales: [small]\n")
    claims.write_text(text, encoding="utf-8")
    found = plan.read_claims([claims])
    assert not reproduce.missing([found["samples"]], "quick", tmp_path)
    assert len(reproduce.missing([found["samples"]], "small", tmp_path)) == 2
    assert [
        each.claim.id for each in plan.chosen({"samples": found["samples"], "nesting": found["nesting"]}, [], "quick")
    ] == ["nesting"]
    assert cli.run(["reproduce", "samples", "--file", str(claims), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == "error: --scale: samples is measured at small only, got quick; add --scale small\n"


def planted(listed: Listed, rows: Path, values: dict[tuple[str, int], float]) -> None:
    """Rows with given values."""
    for row in plan.row_plans(listed, "quick"):
        path = row.path(rows)
        content = {"claim": listed.claim.id, "arm": row.label, "seed": row.seed, "scale": "quick", "key": row.key}
        about = {"statistic": {}, "unit": "", "num_images": 64, "regime": [], "run": "", "recipe": "", "overrides": []}
        rest = {"steps": 1, "weights_hash": {}, "device": "cpu", "seconds": {}, "commit": "", "torch": ""}
        path.parent.mkdir(parents=True, exist_ok=True)
        value = values[row.label, row.seed]
        path.write_text(json.dumps({**content, **about, **rest, "value": value}), encoding="utf-8")


def test_the_spread_of_another_claim_gives_one_seed_an_interval(claims: Path, tmp_path: Path) -> None:
    """Differences -1 and -3 of the other claim: deviation 1.414, one degree of freedom, factor 12.706."""
    text = claims.read_text(encoding="utf-8").replace(
        "minus: [{{arm: a, name: all}}]\n".replace("{{", "{").replace("}}", "}"),
        "minus: [{arm: a, name: all}]\n  spread_from: nesting\n",
    )
    claims.write_text(text, encoding="utf-8")
    listed, rows = plan.read_claims([claims]), tmp_path / "rows"
    planted(listed["tokens"], rows, {("one", 0): 1.0, ("all", 0): 101.0})
    alone = outcome(listed["tokens"], rows)
    assert alone.verdict.low is None, "the other claim has no rows yet"
    assert "`tok1d reproduce nesting --scale quick` measures a spread" in alone.verdict.reason
    assert command_text(alone) == "tok1d reproduce nesting tokens --scale quick"
    planted(listed["nesting"], rows, {("a", 0): 1.0, ("b", 0): 2.0, ("a", 1): 1.0, ("b", 1): 4.0})
    found = outcome(listed["tokens"], rows).verdict
    assert found.state == "shown" and found.mean == -100
    assert found.high == pytest.approx(-100 + 12.706 * math.sqrt(2), abs=0.01)


def test_a_correlation_over_arms(claims: Path, tmp_path: Path, tiny: Tiny) -> None:
    """Four arms, two statistics: eight rows, and the correlation of the pairs."""
    text = claims.read_text(encoding="utf-8")
    extra = """- id: relation
  section: section 4
  statement: Errors order the tokenizers.
  statistic: {name: mse}
  by: {name: psnr}
  plus: [a, b, {arm: a, name: first, keep: 1}, {arm: b, name: second, keep: 1}]
  expected: lower
  margin: 0.5
"""
    claims.write_text(text + extra, encoding="utf-8")
    listed, rows = plan.read_claims([claims])["relation"], tmp_path / "rows"
    plan.check(listed)
    names = ["a", "b", "first", "second"]
    values = {(name, 0): float(i) for i, name in enumerate(names)}
    values |= {(f"{name}-by", 0): -2.0 * i for i, name in enumerate(names)}
    planted(listed, rows, values)
    found = outcome(listed, rows)
    assert found.verdict.mean == pytest.approx(-1) and found.verdict.state == "shown"
    assert len(found.rows) == 8 and "correlation over a, b, first, second" in difference_text(found)
    assert "`mse` with `psnr`" in statistic_text(found)


def test_a_generator_and_its_tokenizer(listed: dict[str, Listed], tmp_path: Path, counted: list[str]) -> None:
    rows = tmp_path / "rows"
    assert reproduce.reproduce([listed["samples"]], "quick", tmp_path, rows) == 2
    assert len(counted) == 4
    row = read_row(rows / "quick/samples/g-seed0.json")
    assert row.weights_hash.keys() == {"model", "tokenizer"} and row.regime[0].name == "decoder_floor"
    found = outcome(listed["samples"], rows)
    assert found.verdict.state in ("out of regime", "not established") and found.scale == "quick"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return {}


@pytest.mark.parametrize("name", [name for name, statistic in STATISTICS.items() if statistic.function])
def test_every_statistic_measures_a_finished_run(
    name: str,
    listed: dict[str, Listed],
    models: dict[str, Trained],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name in ("condition_followed", "semantic_agreement"):
        pytest.skip("needs SMAP, or images and a network of ImageNet; see the tests of analyze swap and of the metric")
    if not models:
        folder = tmp_path_factory.mktemp("statistics")
        claim = listed["samples"]
        reproduce.reproduce([claim], "quick", folder, folder / "rows")
        arm = RowPlan(claim, claim.claim.plus[0], 0, "quick").plan
        models["generator"] = trained(arm, folder / "runs", 64)
        models["tokenizer"] = models["generator"].tokens
    statistic = STATISTICS[name]
    monkeypatch.setattr(statistics, "SMALL_STEPS", 2)
    given = {"mixture_nll": {"components": 2, "dims": 3}, "prefix_share": {"keep": 4}, "mode_error": {"components": 2}}
    settings = given.get(name, {})
    assert statistic.function is not None
    value = statistic.function(models[statistic.of], Measurement(name=name, **settings))  # type: ignore[arg-type]
    assert math.isfinite(value)
    if name == "score":
        assert 1 <= value <= 10  # of ten classes
    if name == "prefix_share":
        assert value == pytest.approx(100)  # of all tokens

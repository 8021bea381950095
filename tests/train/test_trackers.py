"""Trackers receive the log's numbers, change nothing, and are rejected before the training if they are missing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from tok1d.config.load import load_recipe
from tok1d.errors import ConfigError
from tok1d.train import run, trackers
from tok1d.train.log import read_log
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]


class Notebook(GeneralTracker):
    """Stores what it receives; from step `fails` on it raises."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self, fails: int = 1000) -> None:
        super().__init__()
        self.entries: list[dict[str, Any]] = []
        self.fails, self.finished = fails, False

    @property
    def tracker(self) -> list[dict[str, Any]]:
        return self.entries

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if step is not None and step >= self.fails:
            raise OSError("the disk is full")
        self.entries.append({"step": step, **values})

    def finish(self) -> None:
        self.finished = True


def train(tiny: Tiny, out: Path, *overrides: str) -> Path:
    return run.train(replace(load_recipe(tiny("classifier"), list(overrides)), out=str(out)), quiet=True)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    made = Notebook()
    monkeypatch.setattr(trackers, "find_spec", lambda package: object())
    monkeypatch.setattr("tok1d.train.loop.tracker_options", lambda recipe, out: {"log_with": made})
    return made


def test_a_tracker_has_what_the_log_has(tiny: Tiny, fashion: None, tmp_path: Path, notebook: Notebook) -> None:
    out = train(tiny, tmp_path / "run", "train.tracker=wandb", "train.evaluate_every=4")
    log = read_log(out / "log.jsonl")
    assert notebook.entries == log and notebook.finished and len(log) > 3


def test_a_tracker_that_fails_stops_no_run(
    tiny: Tiny, fashion: None, tmp_path: Path, notebook: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = trained(tiny, tmp_path / "plain")
    notebook.fails = 4
    out = train(tiny, tmp_path / "run", "train.tracker=wandb")
    assert [entry["step"] for entry in notebook.entries] == [2] and len(read_log(out / "log.jsonl")) == 3
    assert capsys.readouterr().err.count("train.tracker: wandb failed (the disk is full)") == 1
    assert fingerprint(store.load(str(out / "model"))) == plain


def trained(tiny: Tiny, out: Path) -> str:
    return fingerprint(store.load(str(train(tiny, out) / "model")))


def test_a_missing_package_is_reported_before_the_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"^train.tracker: wandb is not installed; pip install wandb, or") as error:
        train(tiny, tmp_path / "run", "train.tracker=wandb")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_begin_is_one_line(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked:
        def init_trackers(self, name: str, **_: Any) -> None:
            raise RuntimeError("no key\nlog in first")

    monkeypatch.setattr(trackers, "find_spec", lambda package: object())
    recipe = load_recipe(tiny("classifier"), ["train.tracker=wandb"])
    with (
        pytest.raises(ConfigError, match=r"^train.tracker: wandb cannot be started \(no key log in first\)") as error,
        trackers.tracking(recipe, Locked(), tmp_path, 0),
    ):
        pass
    assert "\n" not in str(error.value)


def test_tensorboard_reads_the_log_of_a_resumed_run(tiny: Tiny, fashion: None, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    recipe = replace(load_recipe(tiny("classifier"), ["train.tracker=tensorboard"]), out=str(tmp_path / "run"))
    run.train(recipe, quiet=True, seconds=0)
    out = run.train(recipe, quiet=True)
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    log = [entry for entry in read_log(out / "log.jsonl") if "loss" in entry]
    assert [event.step for event in events.Scalars("loss")] == [entry["step"] for entry in log]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([entry["loss"] for entry in log])
    run.train(recipe, quiet=True, overwrite=True)
    assert len(list((out / "tensorboard").iterdir())) == 1, "those of the run before are gone"

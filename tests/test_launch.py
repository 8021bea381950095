"""Jobs: the SLURM script, local processes, and preemption."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.cli import app as cli
from tok1d.errors import InputError
from tok1d.launch import slurm as launch
from tok1d.train.stop import StopSignal
from tok1d.zoo import store

submitit = pytest.importorskip("submitit", reason="needs submitit: pip install 'tok1d[slurm]'")
Tiny = Callable[..., str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "a").mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / "a" / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("02:00:00", 120), ("00:00:30", 1), ("2-00", 2880), ("1-12:30", 2190), ("0-1:01:01", 62)],
)
def test_times_are_those_of_sbatch(text: str, minutes: int) -> None:
    assert launch.parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2", "0", "-5", "1d", "00:00:00"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--time: expected minutes"):
        launch.parse_time(text)


def test_the_script_contains_the_requested_settings(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    command = ["launch", tiny("tokenizer"), f"out={out}", "train.batch_size=32", "--nodes", "2", "--gpus", "8"]
    assert cli.run([*command, "--partition", "big", "--time", "2-00", "--slurm", "account=me", "--dry-run"]) == 0
    said = capsys.readouterr().out
    asked = ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "time=2880", "partition=big", "account=me", "requeue")
    for line in asked:
        assert f"#SBATCH --{line}" in said
    assert re.search(r"#SBATCH --signal=USR\d@\d+", said) and f"{out}/slurm/" in said
    assert f"tok1d train {command[1]} out={out} train.batch_size=32" in said.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "3", "--gpus", "1"], "train.batch_size: expected a multiple of 3 processes"),
        (["--time", "never"], "--time"),
        (["--slurm", "account"], "--slurm"),
        (["--cluster", "moon"], "--cluster"),
        (["train.lrr=1"], "train.lrr: unknown key"),
        ([], "SLURM not found"),
    ],
)
def test_what_is_wrong_is_reported_before_anything_is_submitted(
    tiny: Tiny, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.run(["launch", tiny("tokenizer"), f"out={tmp_path / 'run'}", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def as_job(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the process appear to be a job; returns the number of the signal that announces its end."""
    from submitit.core.job_environment import JobEnvironment

    for name, value in {"JOB_ID": 1, "NTASKS": 1, "JOB_NUM_NODES": 1, "NODEID": 0, "GLOBALID": 0, "LOCALID": 0}.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", str(value))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def test_what_is_requeued_does_not_overwrite_what_it_goes_on_from() -> None:
    command = launch.Command(["train", "recipe.yaml", "--overwrite", "seed=1"], cli.run)
    assert command.checkpoint().function.arguments == ["train", "recipe.yaml", "seed=1"]


@pytest.mark.parametrize(("code", "again"), [(0, False), (130, True), (2, False)])
def test_only_a_stopped_job_is_requeued(monkeypatch: pytest.MonkeyPatch, code: int, again: bool) -> None:
    """The signal comes in the last step of a training, in one before it, or in one that fails."""
    number, requeued = as_job(monkeypatch), []
    before = {each: signal.getsignal(each) for each in (number, signal.SIGTERM)}

    def trained(arguments: list[str]) -> int:
        with StopSignal() as stop:
            for each in (number, signal.SIGTERM, number):  # as SLURM may send them
                signal.raise_signal(each)
            assert stop.received == signal.SIGTERM
        return code

    signal.signal(number, lambda *_: requeued.append(1))
    try:
        with nullcontext() if code != 2 else pytest.raises(RuntimeError, match="exit code 2"):
            launch.Command(["train", "recipe.yaml"], trained)()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert bool(requeued) == again


def test_a_job_may_run_out_of_time_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = launch.executor_for("slurm", tmp_path, launch.Resources(), "job")
    assert executor._executor.max_num_timeout == launch.TIMEOUTS >= 1000


@pytest.mark.slow
def test_two_processes_train_and_one_measures(
    tiny: Tiny, tmp_path: Path, photos: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(cli.__file__).parents[2]), *sys.path]))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    recipe = [tiny("tokenizer"), "data.name=folder", f"data.root={photos}", f"out={out}", "train.steps=2"]
    resources = ["--gpus", "0", "--cpus", "1", "--cluster", "local", "--wait"]
    assert cli.run(["launch", *recipe, "--tasks", "2", *resources]) == 0, capsys.readouterr().err
    assert (out / "report.json").is_file() and len(list((out / "slurm").glob("*/*_log.out"))) == 2
    record = tmp_path / "record.json"
    words = ["evaluate", "reconstruction", str(out / "model"), str(photos), "--keep", "4", "--out", str(record)]
    assert cli.run(["launch", *resources, "--", *words]) == 0, capsys.readouterr().err
    assert {entry["keep"] for entry in json.loads(record.read_text())} == {4, None}  # None: of baselines
    assert list((tmp_path / "runs" / "slurm").glob("*/*_log.out"))
    capsys.readouterr()
    assert cli.run(["launch", *recipe, *resources]) == 2
    assert "exit code 2" in capsys.readouterr().err and "finished run" in next(
        path.read_text() for path in sorted((out / "slurm").glob("*/*_log.err")) if "finished run" in path.read_text()
    )


@pytest.mark.slow
def test_a_preempted_training_saves_is_requeued_and_ends_as_the_unbroken_one(
    tiny: Tiny, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's own handler is installed in the process; the signal arrives in the middle of a step."""
    from tok1d.train import loop

    recipe = [tiny("tokenizer"), "data.name=folder", f"data.root={photos}", "train.steps=4"]
    assert cli.run(["train", *recipe, f"out={tmp_path / 'whole'}"]) == 0
    train_step, number = loop.Run.train_step, as_job(monkeypatch)
    requeued: list[Any] = []

    def requeue(number: int, frame: Any) -> None:
        requeued.append(sorted((tmp_path / "run" / "checkpoints").glob("step-*.pt"))[-1].name)

    def preempted(self: Any, batches: Any) -> Any:
        if self.step == 1 and not requeued:
            signal.raise_signal(number)
        return train_step(self, batches)

    monkeypatch.setattr(loop.Run, "train_step", preempted)
    before = {each: signal.getsignal(each) for each in (number, signal.SIGTERM)}
    signal.signal(number, requeue)
    try:
        command = launch.Command(["train", *recipe, f"out={tmp_path / 'run'}"], cli.run)
        command()
        assert requeued == ["step-00000002.pt"]
        assert not (tmp_path / "run" / "report.json").exists()
        command.checkpoint().function()  # what the requeued job runs
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    whole, resumed = (store.load(tmp_path / name / "model").state_dict() for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

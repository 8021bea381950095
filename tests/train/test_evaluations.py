"""Evaluation during training: averaged and raw weights in the log, and no effect on the training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tok1d.config.load import load_recipe
from tok1d.train import run
from tok1d.train.log import read_log
from tok1d.zoo.record import read_records

Tiny = Callable[..., str]


@pytest.fixture
def trained(tiny: Tiny, fashion: None, tmp_path: Path) -> Callable[..., Path]:
    def train(name: str, kind: str, *overrides: str, **keys: Any) -> Path:
        return run.train(load_recipe(tiny(kind, **keys), [f"out={tmp_path / name}", *overrides]), quiet=True)

    return train


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def measured(out: Path, prefix: str) -> dict[int, dict[str, float]]:
    """Figures by step, of lines that hold some."""
    lines = [(e["step"], {k: v for k, v in e.items() if k.startswith(prefix)}) for e in read_log(out / "log.jsonl")]
    return {step: figures for step, figures in lines if figures}


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_evaluations_leave_the_run_as_it_is_and_end_with_its_report(kind: str, trained: Callable[..., Path]) -> None:
    keys = {"tokenizer": trained("tokenizer", "tokenizer") / "model"} if kind == "generator" else {}
    without = trained("without", kind, **keys)
    with_them = trained("with", kind, "train.evaluate_every=3", **keys)
    assert weights(with_them) == weights(without)
    averaged, raw = measured(with_them, "ema_"), measured(with_them, "raw_")
    steps = read_log(with_them / "log.jsonl")[-1]["step"]
    assert list(averaged) == list(raw) == list(range(3, steps + 1, 3)) and not measured(without, "ema_")
    report = {
        f"ema_{record.name}@{record.keep}": record.value
        for record in read_records(with_them / "report.json")
        if record.keep is not None  # else it is of the test images themselves
    }
    assert averaged[steps] == pytest.approx(report), "the run ends with what the last evaluation saw"
    assert [averaged[steps][key] for key in report] != [raw[steps]["raw_" + key[4:]] for key in report]

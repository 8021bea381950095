"""Non-finite values stop a training: the message, the files it leaves, and `tok1d replay` reproduces it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.data.images import ArrayImages
from tok1d.errors import WeightsError
from tok1d.train import checkpoint
from tok1d.train.diagnose import likely_causes
from tok1d.train.nonfinite import Evidence, read_dump, write_dump

Tiny = Callable[..., str]
BAD = 17  # the image that is planted


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One NaN pixel in image BAD of every set of images."""
    read = ArrayImages.captioned_batch

    def spoiled(self: ArrayImages, indices: Any, **when: int) -> Any:
        pixels, *rest = read(self, indices, **when)
        pixels[[i for i, index in enumerate(indices) if index == BAD], 0, 3, 3] = float("nan")
        return pixels, *rest

    monkeypatch.setattr(ArrayImages, "captioned_batch", spoiled)


def stopped(capsys: Any, *arguments: str) -> str:
    """The one-line error of a training that stops."""
    capsys.readouterr()
    assert cli.run(["train", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: step ") and "before using it" in line
    return line


def replayed(capsys: Any, *arguments: str) -> str:
    assert cli.run(["replay", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_planted_nan_is_named_stops_before_the_step_and_is_shown_again(
    tiny: Tiny, tmp_path: Path, fashion: None, planted: None, capsys: Any, optimizer: str
) -> None:
    out = tmp_path / "run"
    every = ["train.steps=20", "train.save_every=1", "train.log_every=1", f"train.optimizer={optimizer}"]
    line = stopped(capsys, tiny("tokenizer"), f"out={out}", *every)
    assert f"likely causes: image {BAD} has pixels or tokens that are not finite;" in line and "train.lr" not in line
    (dump,) = out.glob("nonfinite-step-*.pt")
    step = int(dump.stem.split("-")[-1])
    assert line.startswith(f"error: step {step}:") and f"tok1d replay {dump}" in line

    state = read_dump(dump)
    if step:  # the weights of the last good step, and its optimizer's state
        before = torch.load(out / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)
        for name, value in before["model"].items():
            assert torch.equal(state["model"][name], value), name
    evidence = Evidence(**state["evidence"][0])
    assert state["seed"] == 0 and f"image {BAD}" in evidence.samples and len(evidence.samples) == 8
    assert evidence.bad_samples == [f"image {BAD}"] and not evidence.finite
    assert "loss_flow" in evidence.losses and {"encoder", "decoder"} <= evidence.gradients.keys()
    bad_samples = [name for name, loss in zip(evidence.samples, evidence.sample_losses) if loss != loss]
    assert bad_samples == [f"image {BAD}"]

    shown = replayed(capsys, str(dump))
    assert f"likely cause: image {BAD} has pixels" in shown and f"step {step}: not finite, as in the training" in shown
    assert "on this CPU" not in shown
    assert cli.run(["replay", str(dump), "train.precision=bf16"]) == 2 and "is for GPUs" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["run"]
    of_gpu = tmp_path / "of-gpu.pt"
    torch.save({**state, "recipe": state["recipe"].replace("precision: fp32", "precision: bf16"), "world": 2}, of_gpu)
    halves = [replayed(capsys, str(of_gpu), "--rank", str(rank)) for rank in (0, 1)]
    for rank, shown in enumerate(halves):
        assert "in fp32 on this CPU; the training used bf16" in shown and f"only rank {rank} of 2:" in shown
    assert sorted("not finite, as in the training" in shown for shown in halves) == [False, True]


def test_without_the_bad_image_the_same_step_is_finite(
    tiny: Tiny, tmp_path: Path, fashion: None, planted: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    stopped(capsys, tiny("tokenizer"), f"out={out}", "train.steps=20")
    monkeypatch.undo()
    monkeypatch.setattr("tok1d.data.fashion_mnist.load", fake_images)
    (dump,) = out.glob("nonfinite-step-*.pt")
    assert "finite this time" in replayed(capsys, str(dump))


def fake_images(split: str = "train", root: object = None) -> Any:
    import numpy as np

    pixels = np.random.default_rng(len(split)).integers(0, 256, (64, 28, 28), np.uint8)
    return pixels, np.arange(64, dtype=np.int64) % 10


@pytest.mark.parametrize("kind", ["tokenizer", "maetok"])
def test_an_exploding_learning_rate_is_named_and_shown_again(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: Any, kind: str
) -> None:
    out = tmp_path / "run"
    line = stopped(capsys, tiny(kind), f"out={out}", "train.lr=1e30", "train.warmup=0", "train.steps=20")
    assert re.search(r"likely causes: train\.lr=1e\+30: the weights of \w+ have grown to \S+ \(rms\);", line), line
    (dump,) = out.glob("nonfinite-step-*.pt")
    assert read_dump(dump)["step"] >= 1
    shown = replayed(capsys, str(dump))
    assert "not finite, as in the training" in shown and "likely cause: train.lr=1e+30" in shown


def test_an_invalid_dump_is_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "text.pt").write_text("hello")
    checkpoint.save(tmp_path, 1, {"model": {}, "optimizer": {}, "ema": {}, "seconds": 0.0})
    for name in ("text.pt", "step-00000001.pt", "missing.pt"):
        assert cli.run(["replay", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and name in error and "expected a dump" in error


def test_a_damaged_dump_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    path, weight = tmp_path / "nonfinite-step-00000003.pt", torch.arange(9.0)
    players = {"model": {"model": {"w": weight}, "optimizer": {}}}
    write_dump(path, load_recipe(tiny("tokenizer")), 3, 2, players, [Evidence(), Evidence(rank=1, samples=["a"])])
    assert read_dump(path)["evidence"][1]["samples"] == ["a"] and read_dump(path)["world"] == 2
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        read_dump(path)


NAN = float("nan")
GOOD = Evidence(samples=["a", "b", "c", "d"], losses={"loss": 1.0}, weights={"encoder": 0.1}, gradients={"encoder": 1})


@pytest.mark.parametrize(
    ("evidence", "more", "expected"),
    [
        (Evidence(samples=["a", "b"], bad_samples=["b"], losses={"loss": NAN}), {}, ["b has pixels"]),
        (Evidence(samples=["a", "b", "c", "d"], sample_losses=[1, 1, 900, 1]), {}, ["the loss of c is 900 times"]),
        (Evidence(samples=["a", "b", "c", "d"], sample_losses=[1, NAN, 1, 1]), {}, ["the loss of b alone"]),
        (Evidence(samples=["a"], losses={"loss": NAN}), {"fp32": GOOD}, ["train.precision=bf16"]),
        (Evidence(samples=["a"], losses={"loss": 1.0, "d_loss": NAN}), {}, ["the discriminator: d_loss"]),
        (Evidence(losses={"loss": NAN, "d_loss": NAN}), {}, []),
        (
            Evidence(losses={"loss": NAN}),
            {"loss_rise": "the loss rose from 1 to 9"},
            ["train.lr=0.001: the loss"],
        ),
        (Evidence(losses={"loss": NAN}, weights={"a": 3.0, "b": NAN}), {}, ["train.lr=0.001: the weights of b"]),
        (GOOD, {}, []),
    ],
)
def test_likely_causes_are_named(tiny: Tiny, evidence: Evidence, more: dict[str, Any], expected: list[str]) -> None:
    found = likely_causes(load_recipe(tiny("tokenizer"), ["train.precision=bf16"]), [evidence], **more)
    assert len(found) == len(expected)
    for text, start in zip(found, expected):
        assert text.startswith(start)

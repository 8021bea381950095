"""`tok1d.train`, `evaluate` and `analyze` as functions: they do what the commands do, and show their results."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tok1d
from tok1d.api.settings import overrides_of
from tok1d.cli import app as cli
from tok1d.errors import InputError, Tok1dError
from tok1d.zoo.record import read_records

Tiny = Callable[..., str]


def test_overrides_are_texts() -> None:
    given = {"out": Path("a b"), "train": {"steps": 2, "ema": 0.5}, "model.x": None, "keep": [1, 2], "flip": True}
    expected = ["out=a b", "train.steps=2", "train.ema=0.5", "model.x=null", "keep=[1, 2]", "flip=true"]
    assert list(overrides_of(given)) == expected


def test_train(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    recipe = tiny("maetok")
    with pytest.raises(Tok1dError, match="steps"):
        tok1d.train(recipe, out=tmp_path / "run", train={"stesp": 2})
    stopped = tok1d.train(recipe, out=tmp_path / "run", quiet=True, minutes=0, train={"steps": 2})
    assert not stopped.finished and "the same call resumes" in repr(stopped)
    done = tok1d.train(recipe, out=tmp_path / "run", quiet=True, **{"train.steps": 2})
    assert done.finished and "psnr" in repr(done) and "<table" in done._repr_html_()
    assert done.load().card.trained["steps"] == 2 and done.load().card.licence == "Apache-2.0"


def test_evaluate(tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "reconstruction", "fashion-mnist-maetok", "fashion_mnist", "--metrics", "psnr", "--num", "9"]
    assert cli.run([*command, "--device", "cpu", "--quiet", "--out", str(tmp_path / "a.json")]) == 0
    loaded = tok1d.load("fashion-mnist-maetok")
    found = tok1d.evaluate(loaded, "fashion_mnist", num=9, metrics="psnr", out=tmp_path / "b.json")
    ours, theirs = read_records(tmp_path / "b.json"), read_records(tmp_path / "a.json")
    assert [(r.name, r.value) for r in ours] == [(r.name, r.value) for r in theirs]
    assert found.value("psnr") == next(r.value for r in theirs if r.name == "psnr")
    assert "psnr" in repr(found) and "<table" in found._repr_html_()
    with pytest.raises(InputError, match="fid: expected one of psnr"):
        found.value("fid")
    with pytest.raises(InputError, match="nmu: evaluate has no such setting; did you mean num"):
        tok1d.evaluate(loaded, "fashion_mnist", nmu=9)
    with pytest.raises(InputError, match=r"load it with tok1d\.load_pair"):
        tok1d.evaluate(tok1d.load("fashion-mnist-sit"))


def test_analyze(tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", "probe", "fashion-mnist-maetok", "fashion_mnist", "--out", str(tmp_path / "a")]
    assert cli.run([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    found = tok1d.analyze("probe", "fashion-mnist-maetok", "fashion_mnist", device="cpu")
    found.save(tmp_path / "b")
    assert (tmp_path / "a" / "probe.json").read_text() == (tmp_path / "b" / "probe.json").read_text()
    assert found.said in said and found.said in repr(found)
    assert found._repr_png_()[:4] == b"\x89PNG" and "<img" in found._repr_html_()
    with pytest.raises(InputError, match="expected spectrum, probe, map, semantics, got 'prob'"):
        tok1d.analyze("prob", "fashion-mnist-maetok", "fashion_mnist")
    with pytest.raises(InputError, match="expected a tokenizer, this is the model sit"):
        tok1d.analyze("probe", "fashion-mnist-sit", "fashion_mnist")

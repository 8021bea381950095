"""`tok1d.train`, `evaluate` and `analyze` as functions: they do what the commands do, and show their results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    assert stopped.load().card.trained == {"steps": 1}, "that of its newest checkpoint"
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


def test_evaluate_a_generator(tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "generation",
        "fashion-mnist-sit",
        "fashion_mnist",
        "--metrics",
        "labels",
        "--num-samples",
        "9",
    ]
    command += ["--num-samples", "9", "--steps", "2", "--quiet", "--device", "cpu"]
    assert cli.run([*command, "--out", str(tmp_path / "a.json")]) == 0
    settings: dict[str, Any] = {"metrics": ["labels"], "num_samples": 9, "steps": 2}
    pair = tok1d.load_pair("fashion-mnist-sit")[0]
    for name, model in (("b", pair), ("c", "fashion-mnist-sit")):
        tok1d.evaluate(model, "fashion_mnist", quiet=True, out=tmp_path / f"{name}.json", **settings)
    written = [[(r.name, r.value) for r in read_records(tmp_path / f"{name}.json")] for name in "abc"]
    assert written[0] == written[1] == written[2] and written[0][0][0] == "label_agreement"
    with pytest.raises(InputError, match="top_k: sit does not use it"):
        tok1d.evaluate(pair, "fashion_mnist", top_k=3, **settings)


def test_analyze(tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", "probe", "fashion-mnist-maetok", "fashion_mnist", "--out", str(tmp_path / "a")]
    assert cli.run([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    found = tok1d.analyze("probe", "fashion-mnist-maetok", "fashion_mnist", device="cpu")
    found.save(tmp_path / "b")
    assert (tmp_path / "a" / "probe.json").read_text() == (tmp_path / "b" / "probe.json").read_text()
    assert found.said in said and found.said in repr(found)
    assert found._repr_png_()[:4] == b"\x89PNG" and "<img" in found._repr_html_()
    with pytest.raises(InputError, match=r"expected prefix, increments, .*, got 'prob'"):
        tok1d.analyze("prob", "fashion-mnist-maetok", "fashion_mnist")
    with pytest.raises(InputError, match="expected a tokenizer, this is the model sit"):
        tok1d.analyze("probe", "fashion-mnist-sit", "fashion_mnist")
    with pytest.raises(InputError, match="expected split test, as the training images are fitted, got train"):
        tok1d.analyze("probe", "fashion-mnist-maetok", "fashion_mnist", split="train")
    with pytest.raises(InputError, match="expected no models and no data"):
        tok1d.analyze("modes", "fashion-mnist-maetok", "fashion_mnist")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prefix", {"keep": [1, 4], "num": 8}),
        ("increments", {"keep": 4, "num": 8}),
        ("idle", {"num": 8}),
        ("mixture", {"components": 2, "num": 40, "num_train": 40}),
        ("swap", {"num": 20, "num_train": 200}),
        ("order", {"steps": 1, "num": 8, "num_train": 16, "train_batch": 4, "dim": 32, "depth": 1}),
        ("learnability", {"steps": 1, "num": 8, "num_train": 16, "train_batch": 4, "dim": 32, "depth": 1}),
    ],
)
def test_analyses_in_python_are_those_of_the_commands(
    name: str, settings: dict[str, Any], tmp_path: Path, fashion: None
) -> None:
    found = tok1d.analyze(name, ["fashion-mnist-smap"], "fashion_mnist", **settings)
    found.save(tmp_path / "python")
    command = ["analyze", name, "fashion-mnist-smap", "fashion_mnist", "--out", str(tmp_path / "command")]
    for key, value in settings.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        command += ["--" + key.replace("_", "-"), text]
    assert cli.run(command) == 0
    records = [(tmp_path / where / f"{name}.json").read_text() for where in ("python", "command")]
    assert records[0] == records[1] and len(found.records) == 1


def test_modes_needs_no_model(tmp_path: Path) -> None:
    found = tok1d.analyze("modes", modes=[1], samples=[32], steps=2, num=50, dim=32, depth=1)
    found.save(tmp_path)
    assert found.records == [] and found.body["settings"]["modes"] == (1,) and (tmp_path / "modes.png").is_file()

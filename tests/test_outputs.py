"""Every command that writes a file or folder: nothing that it did not write is replaced, nor is what another writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d import locks
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.train import run
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import read_records
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A folder with a tokenizer, a generator, a run and pictures."""
    root = tmp_path_factory.mktemp("outputs")
    for split, count in (("train", 12), ("test", 8)):
        for i in range(count):
            path = root / "data" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)).save(path)
    torch.manual_seed(0)
    tokenizer = store.build_model(load_recipe(tiny("tokenizer")).model)
    store.save_model(tokenizer, root / "tokenizer", Card())
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    generator = store.build_model(load_recipe(tiny("generator", tokenizer="x")).model)
    store.save_model(generator, root / "generator", card)
    smap = store.build_model(load_recipe(tiny("smap")).model)
    store.save_model(smap, root / "smap", Card())
    store.save_model(store.build_model(load_recipe(tiny("classifier")).model), root / "cnn", Card())
    data = {"name": "folder", "root": str(root / "data")}
    run.train(load_recipe(tiny("tokenizer", data=data), [f"out={root / 'run'}"]), quiet=True)
    return root


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """call(*words): exit code and stderr."""
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        return code, capsys.readouterr().err

    return run


# Commands and where they write, from the folder of `place`.
FOLDERS = {
    "encode": "encode {0}/tokenizer {0}/data --out OUT",
    "reconstruct": "reconstruct {0}/tokenizer {0}/data --num 2 --steps 1 --out OUT",
    "generate": "generate {0}/generator --num 1 --classes 0 --out OUT",
    "export": "export {0}/run evaluate.num_images=2 --out OUT",
    "analyze prefix": "analyze prefix {0}/tokenizer {0}/data --num 2 --out OUT",
    "analyze increments": "analyze increments {0}/tokenizer {0}/data --num 2 --out OUT",
    "analyze mixture": "analyze mixture {0}/tokenizer {0}/data --components 1 --out OUT",
    "analyze idle": "analyze idle {0}/tokenizer {0}/data --num 2 --out OUT",
    "analyze spectrum": "analyze spectrum {0}/tokenizer {0}/data --num 2 --network model:{0}/cnn --out OUT",
    "analyze probe": "analyze probe {0}/tokenizer {0}/data --num 2 --out OUT",
    "analyze map": "analyze map {0}/tokenizer {0}/data --split all --num 12 --out OUT",
    "analyze semantics": "analyze semantics {0}/tokenizer {0}/data --num 2 --network model:{0}/cnn --out OUT",
    "compare": "compare {0}/run --to {0}/run --out OUT",
    "evaluate grid": "evaluate grid {0}/tokenizer {0}/data --num 2 --metrics psnr --out OUT",
    "demo": "demo --out OUT",
    "train": "train RECIPE out=OUT",
}
FILES = {
    "evaluate reconstruction": "evaluate reconstruction {0}/tokenizer {0}/data --num 2 --metrics psnr --out OUT.json",
    "evaluate generation": "evaluate generation {0}/generator {0}/data --num-samples 2 --network model:{0}/cnn "
    "--out OUT.json",
    "save samples": "evaluate reconstruction {0}/tokenizer {0}/data --num 2 --metrics psnr --save-samples OUT.npz",
    "save samples with records": "evaluate reconstruction {0}/tokenizer {0}/data --num 2 --metrics psnr "
    "--save-samples OUT.npz --out NEW.json",
    "reference": "reference {0}/data --network model:{0}/cnn --size 28 --channels 1 --out OUT.npz",
    "save curve": "compare {0}/run --save-curve OUT.json",
}
LOCKED = {**FOLDERS, **FILES}


def words(text: str, place: Path, out: Path, tiny: Tiny) -> list[str]:
    recipe = tiny("tokenizer", data={"name": "folder", "root": str(place / "data")})
    new = text.replace("OUT", str(out)).replace("NEW", f"{out}-new").replace("RECIPE", recipe)
    return [word.format(place) for word in new.split()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_other_things_is_left_as_it_is(
    name: str, place: Path, tmp_path: Path, call: Call, tiny: Tiny
) -> None:
    """Also where the things have the names of the command's own files."""
    for number, (file, text) in enumerate(
        (("thesis.txt", "mine"), ("config.yaml", "mine: 1"), ("config.json", "{}"), ("report.json", "[]"))
    ):
        out = tmp_path / str(number) / "mine"
        (out / "model").mkdir(parents=True)
        for path in (out / file, out / "model" / "thesis.txt"):
            path.write_text(text)
        before = contents(out)
        code, error = call(*words(FOLDERS[name], place, out, tiny))
        assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and str(out) in error, error
        assert contents(out) == before and sorted(path.name for path in out.parent.iterdir()) == ["mine"]


@pytest.mark.parametrize("name", ["train", "export"])
def test_overwrite_replaces_no_folder_of_other_things(
    name: str, place: Path, tmp_path: Path, call: Call, tiny: Tiny
) -> None:
    """--overwrite means a run or a model."""
    out = tmp_path / "mine"
    (out / "model").mkdir(parents=True)
    (out / "config.yaml").write_text("mine: 1")
    (out / "model" / "thesis.txt").write_text("mine")
    before = contents(out)
    code, error = call(*words(FOLDERS[name], place, out, tiny), "--overwrite")
    assert code == 2 and error.count("\n") == 1 and contents(out) == before
    if name == "export":
        shutil.rmtree(out)
        shutil.copytree(place / "tokenizer", out)
        (out / "notes.txt").write_text("mine")
        assert call(*words(FOLDERS[name], place, out, tiny), "--overwrite")[0] == 2
        assert (out / "notes.txt").read_text() == "mine"
        (out / "notes.txt").unlink()
        assert call(*words(FOLDERS[name], place, out, tiny), "--overwrite")[0] == 0


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_only_replaced_on_request(name: str, place: Path, tmp_path: Path, call: Call, tiny: Tiny) -> None:
    line = words(FILES[name], place, tmp_path / "out", tiny)
    (file,) = (Path(word) for word in line if word.startswith(str(tmp_path / "out.")))
    file.write_text("mine")
    code, error = call(*line)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and str(file) in error, error
    assert file.read_text() == "mine" and not (tmp_path / "out-new.json").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == [file.name]
    assert call(*line, "--overwrite")[0] == 0 and file.read_bytes() != b"mine"
    code, error = call(*line)
    assert code == (0 if name == "reference" else 2), "a reference with equal statistics stays"


@pytest.mark.parametrize("name", LOCKED)
def test_what_another_process_writes_is_refused(name: str, place: Path, tmp_path: Path, call: Call, tiny: Tiny) -> None:
    out = tmp_path / "out"
    line = words(LOCKED[name], place, out, tiny)
    ending = next((end for end in (".json", ".npz") if f"{out}{end}" in line), "")
    target = Path(f"{out}{ending}")
    if name == "demo":
        lock = target / "tokenizer" / locks.FOLDER_LOCK
    elif name in ("train", "encode"):
        lock = target / locks.FOLDER_LOCK
    elif name.startswith(("evaluate", "save samples")):
        parts = out.with_name("out-new.json") if name == "save samples with records" else target
        lock = parts.with_name(f".{parts.name}.parts.lock")
        if name == "evaluate grid":
            assert call(*line)[0] == 0
            (cell,) = (target / "cells").iterdir()
            cell.unlink()
            lock = cell.with_name(f".{cell.name}.parts.lock")
    else:
        lock = target.with_name(f".{target.name}.lock")
    with locks.hold(lock, "test", shared=True, about="another"):
        before = contents(tmp_path)
        code, error = call(*line)
        assert code == 2 and "in use" in error and "process" in error and error.count("error: ") == 1, error
        kept = {file: text for file, text in contents(tmp_path).items() if not file.startswith("cache/")}
        assert kept == {file: text for file, text in before.items() if not file.startswith("cache/")}


def test_an_evaluation_whose_end_was_interrupted_is_completed(place: Path, tmp_path: Path, call: Call) -> None:
    """The file is its own then: its folder of blocks still exists."""
    line = f"evaluate reconstruction {place}/tokenizer {place}/data --num 2 --metrics psnr --out {tmp_path}/r.json"
    from tok1d.evaluate.job import Job

    end = Job._end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "_end", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(*line.split())[0] == 130
    assert Job._end is end and (tmp_path / "r.json").exists() and (tmp_path / "r.json.parts").is_dir()
    code, error = call(*line.replace("--num 2", "--num 3").split())
    assert code == 2 and "r.json: exists" in error
    assert call(*line.split())[0] == 0 and {path.name for path in tmp_path.iterdir()} - {"cache"} == {"r.json"}
    assert len(read_records(tmp_path / "r.json")) == len(json.loads((tmp_path / "r.json").read_text())) > 0

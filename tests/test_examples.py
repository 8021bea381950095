"""The examples at tiny sizes: the scripts, and the tokenizer outside the package through the ordinary commands."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tok1d.cli import app as cli
from tok1d.config.imports import import_module
from tok1d.config.registry import MODELS
from tok1d.data.tokens import TokenCache

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["train.steps=2", "train.batch_size=8", "train.warmup=0", "train.log_every=1"]
NETWORK = ["model.dim=16", "model.depth=1", "model.heads=2"]
SAMPLES = ["evaluate.num_samples=20"]
Run = Callable[..., str]


@pytest.fixture
def run(
    fashion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """run(*arguments): what a command that imports the example prints, in a folder that holds a copy of it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = cli.run(["--import", "examples/my_tokenizer.py", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    yield call
    MODELS.pop("my_tokenizer", None)
    sys.modules.pop("my_tokenizer", None)


def test_a_user_defined_tokenizer_works_in_every_command(run: Run, tmp_path: Path) -> None:
    assert "my_tokenizer" not in MODELS
    assert "parameters" in run("train", "examples/my_tokenizer.yaml", "--dry-run")
    out = run("train", "examples/my_tokenizer.yaml", *SMALL, *NETWORK, "evaluate.num_images=8")
    assert "psnr" in out and "model: runs/my_tokenizer/model" in out
    assert list((tmp_path / "runs/my_tokenizer/samples").iterdir()), "a preview"
    log = [json.loads(line) for line in (tmp_path / "runs/my_tokenizer/log.jsonl").read_text().splitlines()]
    assert any("loss_mse" in line for line in log)

    model = "runs/my_tokenizer/model"
    run("encode", model, "fashion_mnist", "--out", "tokens")
    assert TokenCache(tmp_path / "tokens").batch([0, 1])[0].shape == (2, 8, 8)
    generators = {
        "my_sit": [*NETWORK, "model.steps=2"],
        "my_epsilon_llamagen": [*NETWORK, "model.head={width: 16, depth: 1, steps: 2}"],
    }
    for name, sizes in generators.items():
        run("train", f"examples/{name}.yaml", *SMALL, *sizes, *SAMPLES, "cache=tokens")
        run("generate", f"runs/{name}/model", "--out", f"pictures/{name}", "--classes", "3", "--num", 2)
        assert list((tmp_path / "pictures" / name).glob("*.png"))

    assert "psnr" in run("evaluate", "reconstruction", model, "fashion_mnist", "--num", 8)
    run("reconstruct", model, "fashion_mnist", "--out", "reconstructions", "--num", 2)
    run("analyze", "mixture", model, "fashion_mnist", "--out", "mixture", "--components", "1,2", "--num-train", 32)
    assert json.loads((tmp_path / "mixture/mixture.json").read_text())["models"][0]["num"] == 32


def test_without_the_import_the_model_is_unknown(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "examples/my_tokenizer.yaml"]) == 2
    assert "model.name: expected budget_head or card or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("nothing_of_that_name", None, "no such module"),
        ("missing.py", None, "no such file"),
        ("fails_first.py", "import torch\nraise ValueError('what is\\nwrong')\n", "ValueError: what is"),
        ("fails_second.py", "import nothing_of_that_name\n", "ModuleNotFoundError: No module named"),
        ("exits.py", "raise SystemExit(3)\n", "SystemExit: 3"),
        ("fails_third.py", "def f(:\n", "SyntaxError: invalid syntax"),
        ("json.py", "", "a module called json is already loaded; rename the file"),
    ],
)
def test_a_module_that_is_missing_or_fails_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str | None,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.run(["--import", name, "recipes"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --import {name}: ") and expected in err and err.count("\n") == 1
    assert name.removesuffix(".py") not in sys.modules or name == "json.py"


def test_modules_are_imported_by_name_and_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "some_helper_module.py").write_text("VALUE = []\n")
    (tmp_path / "some_file_module.py").write_text("from some_helper_module import VALUE\nVALUE.append(1)\n")
    for name in ("some_file_module.py", str(tmp_path / "some_file_module.py")):
        assert import_module(name).VALUE == [1]
    assert import_module("some_helper_module").VALUE == [1]


def test_imports_in_front_of_a_command_go_to_its_job(run: Run) -> None:
    pytest.importorskip("submitit")
    out = run("launch", "examples/my_tokenizer.yaml", "--dry-run")
    assert out.splitlines()[-1].endswith("tok1d --import=examples/my_tokenizer.py train examples/my_tokenizer.yaml")


# Script -> what it prints at its small size.
PRINTED = {
    "captions_to_emoji": "expected a caption with some of the",
    "new_tokenizer": "model.levels: expected int >= 3, got 2",
    "own_images": "",
    "prefix_dial": "",
    "published_weights": "largest difference: 0.0",
    "reading_a_training": "step 1: not finite, as in the training",
    "tour": "(2, 16, 16)",
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_scripts_run(
    name: str, fashion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TOK1D_SMALL", "1")
    try:
        scope: dict[str, Any] = runpy.run_path(f"examples/{name}.py")
    finally:
        MODELS.pop("my_tokenizer", None)
        sys.modules.pop("my_tokenizer", None)
    out, err = capsys.readouterr()
    assert PRINTED[name] in out
    if name == "reading_a_training":
        assert "the averaged weights (EMA) still contain" in err
    if name == "own_images":
        assert scope["samples"].labels == ["circle", "square", "triangle"]
    if name == "prefix_dial":
        assert len(scope["grown"]) == 16 and len(scope["mixed"]) == 4


def test_every_script_is_run() -> None:
    found = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]
    assert found == sorted(PRINTED)

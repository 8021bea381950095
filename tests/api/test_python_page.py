"""The examples of docs/python.md and of the docstrings of the Python API run, and `import tok1d` stays cheap."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tok1d

ROOT = Path(__file__).parents[2]
MODULES = (
    "tok1d.api.analyses",
    "tok1d.api.evaluation",
    "tok1d.config.pretrained",
    "tok1d.generators.base",
    "tok1d.images.convert",
    "tok1d.images.overview",
    "tok1d.tokenizers.model",
    "tok1d.zoo.listed",
    "tok1d.zoo.onnx.export",
    "tok1d.zoo.store",
)
# Public names without a snippet of their own: a decorator, a list of names, a training.
WITHOUT = {"register", "recipes", "train", "images", "__version__", "Generator"}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name: str, fashion: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert found
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in found:
        test.globs = {**vars(module)}
        lines: list[str] = []
        assert runner.run(test, out=lines.append).failed == 0, "".join(lines)


def test_every_public_function_has_a_snippet() -> None:
    for name in tok1d.__all__:
        if name in WITHOUT:
            continue
        value: Any = getattr(tok1d, name)
        if name in ("evaluate", "analyze"):
            value = getattr(
                importlib.import_module({"evaluate": "tok1d.api.evaluation", "analyze": "tok1d.api.analyses"}[name]),
                name,
            )
        assert ">>> " in (value.__doc__ or ""), name


def test_the_page_runs(fashion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(block, scope)
    assert scope["samples"].labels == ["Sneaker", "Sneaker", "Dress", "Dress"]
    assert scope["coarse"].shape == (1, 1, 28, 28) and scope["batch"].shape == (2, 1, 28, 28)
    assert (tmp_path / "out" / "psnr.json").is_file() and scope["probe"].said.endswith(".")


def test_importing_is_cheap() -> None:
    code = (
        "import sys, tok1d; tok1d.recipes; slow = {'torch', 'numpy', 'PIL', 'matplotlib', 'yaml'} & set(sys.modules); "
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

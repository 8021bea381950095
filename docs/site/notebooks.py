"""Executes the examples and writes the notebooks that the site shows: python docs/site/notebooks.py [NAME...].

A notebook has the cells of examples/NAME.py. A PIL image is shown as PNG and JPEG; the smaller one is kept.
Paths of the repository and of the home folder are shortened.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm's, of widgets that a page cannot show


def names() -> list[str]:
    """The examples that are scripts of cells."""
    return [path.stem for path in sorted(EXAMPLES.glob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]


def execute(name: str) -> Path:
    """Run an example in the root of the repository and write its notebook."""
    notebook = jupytext.read(EXAMPLES / f"{name}.py")
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            pictures = [key for key in output.get("data", {}) if key in ("image/png", "image/jpeg")]
            for larger in sorted(pictures, key=lambda key: len(output.data[key]))[1:]:
                del output.data[larger]
    path = EXAMPLES / f"{name}.ipynb"
    text = nbformat.writes(notebook).replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
    path.write_text(text, encoding="utf-8")
    return path


for each in sys.argv[1:] or names():
    print(execute(each))

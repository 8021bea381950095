"""Executes the examples and writes the notebooks that the site shows: python docs/site/notebooks.py [NAME...].

A notebook has the cells of examples/NAME.py. A PIL image is shown as PNG and JPEG; the smaller one is kept.
It is executed in an empty folder that holds a copy of examples/, so that no earlier run is resumed.
Paths of that folder, of the repository and of the home folder are shortened.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
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
    """Run an example in an empty folder with a copy of examples/, and write its notebook."""
    notebook = jupytext.read(EXAMPLES / f"{name}.py")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(EXAMPLES, Path(folder) / "examples")
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=None, record_timing=False, resources=place).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            pictures = [key for key in output.get("data", {}) if key in ("image/png", "image/jpeg")]
            for larger in sorted(pictures, key=lambda key: len(output.data[key]))[1:]:
                del output.data[larger]
    path = EXAMPLES / f"{name}.ipynb"
    text = nbformat.writes(notebook)
    for long, short in (
        (f"{os.path.realpath(folder)}/", ""),
        (f"{folder}/", ""),
        (f"{ROOT}/", ""),
        (str(Path.home()), "~"),
    ):
        text = text.replace(long, short)
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    for each in sys.argv[1:] or names():
        print(execute(each))

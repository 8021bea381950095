"""`tok1d demo`: trains small models from scratch and writes a report with images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import DataRoot, Overwrite


def demo(
    out: Annotated[Path, typer.Option(help="folder for the runs and the report")] = Path("runs/demo"),
    data_root: DataRoot = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a tokenizer and a generator on Fashion-MNIST, and write a report with images: ten minutes on two CPU cores.

    First writes images of the bundled models, then trains small models from scratch. After an interruption the same
    command resumes.
    """
    from tok1d.demo import run as module

    module.run(out, overwrite=overwrite, data_root=data_root)

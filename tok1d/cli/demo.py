"""`tok1d demo`: small models trained from scratch, and a report with pictures."""

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
    """Train a tokenizer and a generator on real images and report with pictures: ten minutes on two CPU cores.

    Shows the bundled models first, then trains small ones from scratch. The same command resumes after an
    interruption.
    """
    from tok1d.demo import run as module

    module.run(out, overwrite=overwrite, data_root=data_root)

"""Writes the output of `tok1d evaluate explain` into docs/evaluation.md: python benchmarks/evaluation_pages.py"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path
from unittest.mock import patch

from tok1d.cli import app as cli

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
BLOCK = re.compile(r"(<!-- explain (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def printed(arguments: str) -> str:
    """The command and its output, 100 columns wide."""
    output = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100"}), contextlib.redirect_stdout(output):
        assert cli.run(["evaluate", "explain", *shlex.split(arguments)]) == 0, arguments
    lines = "\n".join(line.rstrip() for line in output.getvalue().splitlines())
    return f"```text\n$ tok1d evaluate explain {arguments}\n{lines}\n```\n"


def filled(text: str) -> str:
    """The page with the current output of every command in it."""
    return BLOCK.sub(lambda match: match[1] + printed(match[2]) + match[3], text)


def main() -> None:
    """Fill the page."""
    temporary = PAGE.with_name(f".{PAGE.name}.tmp")
    temporary.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    os.replace(temporary, PAGE)


if __name__ == "__main__":
    main()

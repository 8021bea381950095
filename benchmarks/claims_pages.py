"""Writes docs/claims.md and the verdicts in docs/semanticist.md, maetok.md and smap.md from the stored rows of claims.

    python benchmarks/claims_pages.py

The rows are in benchmarks/results/claims/. To make them: tok1d reproduce --scale small --rows benchmarks/results/claims
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tok1d.claims import plan
from tok1d.claims.report import markdown, summary
from tok1d.claims.rows import Outcome, outcome

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "claims"
PAGE = ROOT / "docs" / "claims.md"
PAPERS = {name: ROOT / "docs" / f"{name.lower()}.md" for name in ("Semanticist", "MAETok", "SMAP")}


def outcomes() -> list[Outcome]:
    """The packaged claims with their verdicts."""
    return [outcome(each, ROWS) for each in plan.read_claims().values()]


def filled(text: str, paper: str, found: Sequence[Outcome]) -> str:
    """A page with the table of a paper's claims."""
    some = summary([each for each in found if each.listed.file.paper == paper])
    block = re.compile(rf"(<!-- claims {paper} -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda match: f"{match[1]}{some}\n{match[2]}", text)


def write(path: Path, text: str) -> None:
    """Write a page, completely or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    """Write all pages."""
    found = outcomes()
    write(PAGE, markdown(found))
    for paper, page in PAPERS.items():
        write(page, filled(page.read_text(encoding="utf-8"), paper, found))


if __name__ == "__main__":
    main()

"""The pages: docs/claims.md is what the stored rows give, and the report needs nothing else."""

from pathlib import Path

import pytest

from tok1d.claims import plan
from tok1d.claims.report import html, markdown, picture
from tok1d.claims.rows import Outcome, outcome
from tok1d.claims.verdict import verdict
from tok1d.cli import app as cli

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "claims"


def test_the_page_is_what_the_stored_rows_give() -> None:
    """Made by: tok1d reproduce --report --rows benchmarks/results/claims --out OUT, then cp OUT/claims.md docs/."""
    outcomes = [outcome(each, ROWS) for each in plan.read_claims().values()]
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == markdown(outcomes)


def test_the_list_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["reproduce", "--list", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "semanticist-order\n  Semanticist, section 4.3" in said and "not run: " in said and "CPU-hours" in said
    assert cli.run(["reproduce", "smap-size", "--report", "--out", str(tmp_path)]) == 0
    page, report = (tmp_path / name for name in ("claims.md", "report.html"))
    assert "- **not run**: no row has been measured" in page.read_text(encoding="utf-8")
    text = report.read_text(encoding="utf-8")
    assert "<script" not in text and "http" not in text and "smap-size" in text


def test_a_verdict_is_drawn() -> None:
    listed = plan.read_claims()["smap-size"]
    found = verdict([-2.0, -1.5, -1.8], expected="lower", margin=0.5)
    drawn = picture(found, 0.5)
    assert drawn.count("<circle") == 3 and drawn.count("<line") == 2 and "<rect" in drawn
    made = Outcome(listed, found, "small", {})
    assert drawn in html([made]) and "shown (small)" in markdown([made])
    assert "--scale small" in markdown([made])

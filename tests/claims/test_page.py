"""The pages: docs/claims.md is what the stored rows give, and the report needs nothing else."""

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import claims_pages

from tok1d.claims import plan
from tok1d.claims.report import html, markdown, picture, summary
from tok1d.claims.rows import Outcome
from tok1d.claims.verdict import verdict
from tok1d.cli import app as cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return claims_pages.outcomes()


def test_the_pages_are_what_the_stored_rows_give(outcomes: list[Outcome]) -> None:
    """Made by: python benchmarks/claims_pages.py."""
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == markdown(outcomes)
    for paper, page in claims_pages.PAPERS.items():
        text = page.read_text(encoding="utf-8")
        assert f"<!-- claims {paper} -->" in text and claims_pages.filled(text, paper, outcomes) == text


def disagreements(claims: str, page: str) -> list[str]:
    """What a system page says of claims that the text of claims.md does not say.

    Its rows are "| [`ID`](claims.md#ID) | VERDICT | DIFFERENCE |"; claims.md has a section for each id.
    """
    sections = dict(re.findall(r"^### ([\w.-]+)\n(.*?)(?=^##|\Z)", claims, re.MULTILINE | re.DOTALL))
    found = []
    for name, state, difference in re.findall(
        r"^\| \[`([\w.-]+)`\]\(claims\.md#\1\) \| (.*?) \| (.*?) \|$", page, re.M
    ):
        section = sections.get(name, "")
        if f"- **{state.partition(' (')[0]}**: " not in section or difference not in section:
            found.append(f"{name}: {state}, {difference}")
    return found


def test_the_system_pages_have_the_numbers_of_the_claims_page() -> None:
    """Read from the pages alone, without the code that writes them."""
    claims = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for page in claims_pages.PAPERS.values():
        text = page.read_text(encoding="utf-8")
        assert text.count("](claims.md#") >= 20 and disagreements(claims, text) == []


def test_the_means_of_the_arms_give_the_difference() -> None:
    """Read from the page alone: the sum over the arms compared, within the rounding of four digits."""
    claims = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^- compared: (.*?), (?:lower|higher), .*\n- .*?difference ([-+.\de]+).*\n- measured: (.*?);", claims, re.M
    )
    assert len(found) >= 10
    for compared, difference, measured in found:
        means = dict(re.findall(r"(?:^|, )([\w-]+) ([-+.\de]+)", measured))
        plus, minus = (re.findall(r"[\w-]+", part) for part in compared.split(" - "))
        total = sum(float(means[arm]) for arm in plus) - sum(float(means[arm]) for arm in minus)
        rounding = sum(abs(float(value)) for value in means.values()) * 1e-3
        assert float(difference) == pytest.approx(total, abs=rounding), compared


def test_a_changed_number_is_found() -> None:
    listed = plan.read_claims()["smap-size"]
    found = verdict([-2.0, -1.5, -1.8], expected="lower", margin=0.5)
    made = [Outcome(listed, found, "small", {})]
    page, claims = summary(made), markdown(made)
    assert "-1.767" in page and disagreements(claims, page) == []
    assert disagreements(claims, page.replace("-1.767", "-1.768")) == [f"smap-size: shown (small), {found.figures}"
                                                                       .replace("-1.767", "-1.768")]  # fmt: skip
    assert disagreements(claims.replace("**shown**: ", "**bounded**: "), page)
    assert disagreements("", page)


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
    drawn = picture(found, listed.claim.margin)
    assert drawn.count("<circle") == 3 and drawn.count("<line") == 2 and "<rect" in drawn
    made = Outcome(listed, found, "small", {})
    assert drawn in html([made]) and "shown (small)" in markdown([made])
    assert "--scale small" in markdown([made])

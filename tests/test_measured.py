"""Benchmarks with one row a line: their pages are what the rows give, and rows are kept."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import budget
import fewer
import generators
import learning
import search
import sharp
from table import fill, read_lines


@pytest.mark.parametrize("module", [budget, fewer, generators, learning, search, sharp])
def test_the_page_has_the_rows(module: Any, tmp_path: Path) -> None:
    """Made by: python benchmarks/NAME.py --write."""
    page = tmp_path / "page.md"
    page.write_text(module.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    fill(page, module.TABLES, read_lines(module.RESULT))
    assert page.read_text(encoding="utf-8") == module.PAGE.read_text(encoding="utf-8")


def test_generators_keep_their_quality_and_measure_the_speed_again(monkeypatch: Any, tmp_path: Path) -> None:
    made: list[str] = []

    def quality(name: str, pair: Any, side: str, num: int) -> dict[str, Any]:
        made.append(side)
        return {"fd": 1.5, "network": "fd@x", "sampling": 50.0, "decoding": 4.0 if side == "before" else 1.0}

    rate = iter(({"before": 10.0, "after": 20.0}, {"before": 11.0, "after": 33.0}))
    speed = lambda name, pair: {"images_per_second": next(rate), "ratio": [1.0, 2.0, 3.0]}  # noqa: E731
    monkeypatch.setattr(generators, "quality", quality)
    monkeypatch.setattr(generators, "speed", speed)
    result = tmp_path / "rows.jsonl"
    command = ["--only", "fashion-mnist-epsilon-llamagen", "--result", str(result), "--num", "7"]
    for more in ([], [], ["--again"]):
        assert generators.main([*command, *more]) == 0
    (row,) = [json.loads(line) for line in result.read_text().splitlines()]
    assert made == ["before", "after"] and row["images_per_second"]["after"] == 33 and row["num"] == 7
    assert "| `fashion-mnist-epsilon-llamagen` | decoder steps 1 | 50 + 1 | 1.500 | 33 | 2.0 (1.0 to 3.0) |" in (
        generators.table([row])
    )

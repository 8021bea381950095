"""docs/analyses.md: its commands are accepted, and each section has its picture."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from tok1d.cli import app as cli

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "analyses.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```\w*\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
PICTURES = re.findall(r"!\[[^]]+\]\(images/([^)]+)\)", TEXT)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[2])
def test_the_commands_of_the_page_are_accepted(words: list[str]) -> None:
    assert words[:2] == ["tok1d", "analyze"]
    analyze: Any = typer.main.get_command(cli.app).commands["analyze"]  # type: ignore[attr-defined]
    assert analyze.commands[words[2]].make_context(words[2], words[3:]).params["out"]


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_are_there_and_small(name: str) -> None:
    path = DOCS / "images" / name
    assert path.stat().st_size < 150_000
    assert min(Image.open(path).size) > 300


def test_every_analysis_of_several_models_has_a_section_and_a_picture() -> None:
    sections = re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)
    assert {*PICTURES} >= {f"analyze-{name}.png" for name in ("spectrum", "probe", "map", "semantics")}
    assert {*PICTURES} >= {f"analyze-{name}.png" for name in ("learnability", "order", "modes")}
    assert {*sections} >= {name.removeprefix("analyze-").removesuffix(".png") for name in PICTURES}

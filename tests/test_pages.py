"""The pages: their links, and the files and tests they name, exist; the README stays short."""

import fnmatch
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tok1d.config.fields import flat, to_mapping
from tok1d.config.load import load_recipe, recipe_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@cache
def sources() -> tuple[str, ...]:
    """The Python files of package, tests, benchmarks, examples and docs, relative to the root."""
    folders = ("tok1d", "tests", "benchmarks", "examples", "docs")
    return tuple(path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def defined() -> frozenset[str]:
    """The names of all tests and test files."""
    files = [ROOT / name for name in sources() if name.startswith("tests/")]
    functions = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    return frozenset(functions | {path.stem for path in files})


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", text_of(page))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page: Path) -> None:
    """Files are named relative to the root, to tok1d/, or (after another of the same package) alone."""
    named = {name for name in re.findall(r"`([\w/]+\.py)`", text_of(page)) if "NAME" not in name}
    assert [name for name in sorted(named) if not any(f"/{path}".endswith(f"/{name}") for path in sources())] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_packages_exist(page: Path) -> None:
    named = {name.strip("/") for name in re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)*/)`", text_of(page))}
    roots = (ROOT, ROOT / "tok1d")
    ours = {path.name for root in roots for path in root.iterdir() if path.is_dir()}
    named = {name for name in named if name.split("/")[0] in ours}
    assert [name for name in sorted(named) if not any((root / name).is_dir() for root in roots)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_tests_exist(page: Path) -> None:
    named = {part for name in re.findall(r"`(test_[\w:]+)`", text_of(page)) for part in name.split("::")}
    assert sorted(named - defined()) == []


def test_the_recipes_and_options_on_the_page_of_the_papers_exist() -> None:
    """Words in backticks that are no file, folder or command; a recipe is named with its folder or without."""
    words = re.findall(r"`([\w*/.]+)`", text_of(ROOT / "docs" / "papers.md"))
    options = [word for word in words if word.startswith(("model.", "train."))]
    some = [f"imagenet256/{name}" for name in ("semanticist_l", "epsilon_llamagen_l", "smap_b_vq_64", "sit_xl")]
    declared = {key for name in some for key in flat(to_mapping(load_recipe(name)))}
    assert options and [word for word in options if word not in declared] == []
    recipes = {each for name in recipe_names() for each in (name, name.split("/")[1])}
    recipes |= {path.stem for path in (ROOT / "tok1d" / "evaluate" / "protocols").glob("*.yaml")}
    named = [word for word in words if word not in options and not word.endswith((".py", "/"))]
    assert [word for word in named if not fnmatch.filter(recipes, word)] == []


def test_the_readme_is_short_and_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make demo" in text and "make test" in text


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) == 6
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 40), 50).save("photo.png")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["image"].size == (28, 28) and names["samples"].images.shape == (16, 1, 28, 28)

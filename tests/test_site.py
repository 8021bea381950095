"""The documentation site: it builds without warnings, loads nothing from elsewhere, and its reference is complete."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer

import tok1d
from tok1d.cli import app as cli
from tok1d.config.load import field_rows, load_recipe, recipe_names
from tok1d.config.registry import MODELS

ROOT = Path(__file__).parents[1]
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """What a page loads, its text, and the rows of its tables as lists of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED and given.get("rel") != "canonical":
            self.loaded.append(given.get(LOADED[tag]) or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def build(folder: Path, **changes: Any) -> list[str]:
    """Build the site into a folder; the warnings and errors of mkdocs."""
    import logging

    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build_site(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), **changes))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    for name in ("mkdocs", "material", "mkdocstrings", "nbconvert"):
        pytest.importorskip(name, reason=f"{name} is not installed (pip install 'tok1d[docs]')")
    folder = tmp_path_factory.mktemp("site")
    assert build(folder) == []
    yield folder


def page(site: Path, name: str) -> Page:
    return Page((site / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def configuration(site: Path) -> Page:
    return page(site, "reference/configuration.html")


def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        outside = [each for each in page(site, str(path.relative_to(site))).loaded if re.match(r"(\w+:)?//", each)]
        assert outside == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path


def test_the_search_works_without_a_server(site: Path) -> None:
    """The index is a script that pages load, and has the text of the pages."""
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "tail dropping, truncation" in index


def test_code_in_tables_has_no_backslashes(site: Path) -> None:
    assert "tok1d evaluate reconstruction|generation MODEL DATA" in page(site, "commands.html").text


def test_public_names_are_on_the_page_of_the_api(site: Path) -> None:
    text = page(site, "reference/api.html").text
    for name in tok1d.__all__:
        assert f"tok1d.{name}" in text, name
    for method in ("from_pretrained", "push_to_hub", "preprocess", "stream", "to_pil"):
        assert method in text, method


def test_every_command_and_option_is_on_its_page(site: Path) -> None:
    text = page(site, "reference/commands.html").text

    def check(command: Any, name: str) -> int:
        inside = getattr(command, "commands", {})
        assert inside or f"{name} " in text, name
        for parameter in command.params:
            assert all(option in text for option in parameter.opts), (name, parameter.opts)
        return len(inside) + sum(check(one, f"{name} {each}") for each, one in inside.items())

    assert check(typer.main.get_command(cli.app), "tok1d") > 25


def test_every_recipe_is_on_a_page(site: Path) -> None:
    index = page(site, "reference/recipes.html").text
    for name in recipe_names():
        folder, _, tail = name.rpartition("/")
        assert name in index, name
        assert f'id="{tail}"' in (site / "reference" / "recipes" / f"{folder}.html").read_text(encoding="utf-8"), name


def test_every_field_of_every_recipe_has_a_row(configuration: Page) -> None:
    """By its name and its help, as `tok1d config --fields` prints them."""
    rows = {(row[0].rpartition(".")[2], " ".join(row[3].split())) for row in configuration.rows if len(row) == 4}
    seen = set()
    for name in recipe_names():
        seen |= {(row.key.split(".")[-1], " ".join(row.help.split())) for row in field_rows(load_recipe(name))}
    missing = {(name, text) for name, text in seen if (name, text) not in rows and "[" not in name}
    assert len(seen) > 200 and missing == set()


def test_fields_are_named_by_their_keys(configuration: Page) -> None:
    names = {row[0] for row in configuration.rows}
    assert {"nested", "nested.after", "train.lr", "train.muon", "data.root"} <= names
    assert "momentum" in names, "of two places, train.muon and adversarial.optim.muon"
    assert "int >= 0 and <= 4294967295" in {row[1] for row in configuration.rows if len(row) == 4}


def test_links_show_titles_of_pages_instead_of_file_names(site: Path) -> None:
    text = page(site, "index.html").text
    assert "docs/emoji.md" not in text and "Results of the bundled emoji models" in text


def test_every_model_has_its_settings_on_the_page(configuration: Page) -> None:
    for name, entry in MODELS.items():
        assert f"model (name: {name})" in configuration.text and entry.config_class().__name__ in configuration.text


def test_bundled_models_are_on_their_page(site: Path) -> None:
    text = page(site, "reference/models.html").text
    assert [each.name for each in tok1d.models() if each.name not in text] == []


def test_pages_that_link_to_the_repository_reach_pages_of_the_site(site: Path) -> None:
    for name, target in (
        ("index.html", 'href="semanticist.html"'),
        ("commands.html", 'href="examples/index.html"'),
        ("semanticist.html", 'href="benchmarks/index.html'),
        ("tutorial.html", 'href="examples/tour.html"'),
    ):
        assert target in (site / name).read_text(encoding="utf-8"), name


def test_broken_links_and_anchors_are_found(site: Path, tmp_path: Path) -> None:
    """The checks of the build can fail."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[a](#b) [c](missing.md)\n", encoding="utf-8")
    found = build(tmp_path / "out", docs_dir=str(tmp_path / "docs"), nav=["index.md"], hooks=[], plugins=[])
    assert len(found) == 2 and "missing.md" in " ".join(found) and "#b" in " ".join(found)


def test_the_notebooks_are_the_scripts() -> None:
    """Each example has a notebook with the same cells, executed without errors, with a picture."""
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed (pip install 'tok1d[docs]')")
    scripts = [path for path in sorted((ROOT / "examples").glob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]
    assert len(scripts) == 7
    for script in scripts:
        path = script.with_suffix(".ipynb")
        assert path.stat().st_size < 300_000, path
        cells, made = jupytext.read(script).cells, jupytext.read(path).cells
        assert [(each.cell_type, each.source) for each in cells] == [(each.cell_type, each.source) for each in made]
        outputs = [output for each in made for output in each.get("outputs", [])]
        assert "error" not in {each.output_type for each in outputs}
        assert any({"image/png", "image/jpeg"} & each.get("data", {}).keys() for each in outputs), path


def test_the_python_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(block, scope)
    assert scope["samples"].images.shape == (4, 1, 28, 28) and scope["tokens"].shape == (1, 16, 16)
    assert scope["found"].value("psnr") > 0 and (tmp_path / "overview.png").is_file()

"""The papers' numbers in `tok1d/recipes/papers/` against cards, protocols and, where it is, the reference text."""

import csv
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tok1d.config.load import RECIPES, load_card, load_recipe, recipe_names
from tok1d.evaluate.published import protocol_names, published

REVIEW = Path(__file__).parents[2] / "shared" / "reference" / "review.md"
PAPERS = {"semanticist": "2503.08685", "maetok": "2502.03444", "smap": "2603.25249"}
METRICS = {"rFID": "rfid", "gFID": "gfid", "IS": "is", "PSNR": "psnr", "SSIM": "ssim"}
NAMED = re.compile(rf"\b({'|'.join(METRICS)}) (\d+(?:\.\d+)?)\b")


class Figure(NamedTuple):
    """A number of a paper: the table it is in and its row, as printed; the recipe and overrides that reproduce it."""

    place: str
    row: str
    metric: str
    value: str
    recipe: str
    overrides: str


@cache
def figures(paper: str) -> tuple[Figure, ...]:
    with (RECIPES / "papers" / f"{paper}.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == Figure._fields
    return tuple(Figure(*row) for row in rows)


def all_figures() -> list[Figure]:
    return [figure for paper in PAPERS for figure in figures(paper)]


OF_RECIPE: dict[str, list[Figure]] = defaultdict(list)
for each in all_figures():
    if each.recipe:
        OF_RECIPE[each.recipe].append(each)


def printed(value: str, text: str) -> bool:
    """Whether a text has a number, with these digits."""
    return re.search(rf"(?<![\d.]){re.escape(value)}(?!\.?\d)", text) is not None


def test_every_number_of_a_paper_is_there_once() -> None:
    places = {paper: {figure.place for figure in figures(paper)} for paper in PAPERS}
    assert places["smap"] == {"appendix C", "table 2", "table 3", "table 4", "table 7"}
    assert places["semanticist"] == {"table 1", "section 5.3"}
    tables = {"1a", "1b", "1c", "1d", *map(str, range(2, 7)), *map(str, range(10, 13)), "13a", "13b"}
    assert places["maetok"] == {"section 4.5", *(f"table {table}" for table in tables)}
    for paper in PAPERS:
        keys = [figure[:3] for figure in figures(paper)]
        assert len(keys) == len(set(keys))
    assert all(float(figure.value) > 0 for figure in all_figures())


@pytest.mark.parametrize("name", sorted(OF_RECIPE))
def test_a_card_has_every_number_that_the_paper_has_for_it(name: str) -> None:
    card = load_card(name)
    assert [figure for figure in OF_RECIPE[name] if not printed(figure.value, card.paper)] == []
    assert not re.search(r"no (figure|number)", card.paper) and card.reproduces
    paper = next(paper for paper in PAPERS if OF_RECIPE[name][0] in figures(paper))
    assert PAPERS[paper] in card.reproduces


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("fashion_mnist")])
def test_a_card_has_no_number_that_the_paper_does_not_have(name: str) -> None:
    card = load_card(name)
    for paper, number in PAPERS.items():
        if number in card.reproduces:
            known = {(figure.metric, figure.value) for figure in figures(paper)}
            found = [(METRICS[metric], value) for metric, value in NAMED.findall(card.paper)]
            assert [pair for pair in found if pair not in known] == []
    assert card.reproduces or not card.paper, "a recipe of ours has no number of a paper"


def test_the_overrides_of_a_number_give_the_configuration_of_its_row() -> None:
    rows = [figure for figure in all_figures() if figure.recipe and figure.overrides]
    rows += [figure for figure in figures("smap") if figure.place == "table 3"]
    for figure in rows:
        recipe = load_recipe(figure.recipe, figure.overrides.split())
        if figure.place == "table 12":
            scale, low, high = map(float, re.findall(r"scale (\S+) on (\S+)\.\.(\S+) ", figure.row)[0])
            assert recipe.evaluate.guidance == scale and recipe.train.steps == 2_000_000
            assert recipe.evaluate.guidance_interval == pytest.approx((1 - high, 1 - low))
            continue
        [(kind, length)] = re.findall(r"\b(SoftVQ|VQ|KL)(?:-[SBL])? (\d+)", figure.row)
        assert (recipe.model.bottleneck.name, recipe.model.num_tokens) == (kind.lower(), int(length))
        assert recipe.model.tail_drop.enabled == ("without" not in figure.row)
    assert {figure.place for figure in rows} == {"appendix C", "table 2", "table 3", "table 12"}


def test_the_protocols_have_numbers_of_the_papers() -> None:
    for name in protocol_names():
        paper, number = name.split("/")
        if paper in PAPERS:
            facts = published(name)
            metric = number.split("_")[0]
            known = {figure.value for figure in figures(paper) if figure.metric == metric}
            assert f"{facts.value:.2f}" in known, name
            if facts.recipe:
                assert printed(f"{facts.value:.2f}", load_card(facts.recipe).paper), name


# The reference text, which is not part of the repository.


@pytest.fixture
def review() -> str:
    if not REVIEW.is_file():
        pytest.skip(f"needs {REVIEW}")
    return REVIEW.read_text(encoding="utf-8")


def values(place: str, *rows: str) -> list[str]:
    """The values of rows of a table of SMAP's paper, in the order of the file."""
    found = [figure.value for row in rows for figure in figures("smap") if (figure.place, figure.row) == (place, row)]
    assert found, (place, rows)
    return found


def test_the_review_s_table_of_appendix_c_is_the_data(review: str) -> None:
    lengths = (32, 64, 96, 128, 192, 256)
    rows = re.findall(r"^\| ((?:VQ|KL|SoftVQ)-[SBL]) \|(.*)\|$", review, re.M)
    assert len(rows) == 9
    for name, cells in rows:
        row = [cell.strip() for cell in cells.split("|")]
        assert row == values("appendix C", *(f"{name} {length}" for length in lengths))


def test_the_review_s_tables_2_3_and_7_are_the_data(review: str) -> None:
    [second] = re.findall(r"^Table 2 .*", review, re.M)
    [third] = re.findall(r"^Table 3 .*", review, re.M)
    [seventh] = re.findall(r"^Table 7: .*", review, re.M)
    for line, place, left, right in (
        (second, "table 2", "TiTok {}", "SMAP {}"),
        (third, "table 3", "{} without truncation", "{} with truncation"),
    ):
        kind, count = "", 0
        for name, *cells in re.findall(r"(?:(VQ|KL) )?(?=\d+: )(\d+): ([\d.]+)/([\d.]+) -> ([\d.]+)/(\d+\.\d)", line):
            kind, count, length = name or kind, count + 1, cells[0]
            rows = [form.format(f"{kind} {length}") for form in (left, right)]
            assert cells[1:] == values(place, *rows)
        assert count == 6
    kinds = {
        r"SMAP-L-64 \+ MaskGIT-ViT 8 steps": "SMAP-L-64 + MaskGIT-ViT, 8 steps",
        r"SMAP-B-128 8 steps": "SMAP-B-128 + MaskGIT-ViT, 8 steps",
        r"64 steps": "SMAP-B-128 + MaskGIT-ViT, 64 steps",
        r"SMAP\(KL\)-B-128 \+ CARD-B": "SMAP(KL)-B-128 + CARD-B",
        r"CARD-L": "SMAP(KL)-B-128 + CARD-L",
    }
    for words, row in kinds.items():
        [cells] = re.findall(
            rf"(?<![-\w]){words}: ([\d.]+)/([\d.]+), (?:guided )?([\d.]+)/([\d.]+), (\d+\.\d)", seventh
        )
        found = {figure[1:3]: figure.value for figure in figures("smap") if figure.place == "table 7"}
        keys = [(row, "gfid"), (row, "is"), (f"{row}, guided", "gfid"), (f"{row}, guided", "is")]
        assert list(cells) == [found[key] for key in (*keys, (row, "images per second"))]


def test_the_review_s_table_of_cards_is_in_the_cards(review: str) -> None:
    block = review.split("| card | the paper has |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\w.*?) \| (.*) \|$", block, re.M)
    assert len(rows) == 10
    for label, text in rows:
        numbers = re.findall(r"\d+\.\d+", text.split(":", 1)[-1].replace("1.1B", ""))
        if label.startswith("smap_s / b / l"):
            names = [f"smap_{size}_kl_256" for size in "sbl"]
        elif label.startswith("CARD on SoftVQ"):
            names = ["card_l_softvq", "card_xl_softvq"]
        elif label == "maskgit_smap_b_128":
            names = [label, f"{label}_8_steps"]
        else:
            names = label.split(", ")
        papers = [load_card(f"imagenet256/{name}").paper for name in names]
        assert numbers and [number for number in numbers if not any(printed(number, text) for text in papers)] == []

"""The demo from nothing to its page at toy size, and the page as a pure function."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tok1d.config.load import to_yaml
from tok1d.demo import run as demo
from tok1d.demo.page import Check, Gallery, ModelResults, Page, Probe, render
from tok1d.errors import ConfigError
from tok1d.html.parts import Strip
from tok1d.pictures import data_uri
from tok1d.zoo.record import Record

SECTIONS = ["done", "reconstructions", "curve", "growing", "samples", "numbers", "probe", "next"]
TOKENIZER = [
    *("train.steps=5", "train.batch_size=8", "train.warmup=1", "evaluate.num_images=16", "evaluate.steps=2"),
    *("model.encoder.dim=16", "model.encoder.depth=1", "model.decoder.dim=16", "model.decoder.depth=1"),
]
GENERATOR = [
    *("train.steps=5", "train.batch_size=8", "train.warmup=1", "evaluate.steps=2"),
    *("model.dim=16", "model.depth=1", "model.head.width=16", "model.head.depth=1", "model.head.steps=2"),
]


class WellFormed(HTMLParser):
    """Checks that tags close in order, and gathers ids and sources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> WellFormed:
    parsed = WellFormed(text)
    assert parsed.ids == SECTIONS
    assert "http" not in text
    assert "url(" not in text
    for source in parsed.sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(content, validate=True))).verify()
    return parsed


def page_of(models: list[ModelResults]) -> Page:
    return Page(
        models=models,
        classes=["a<b", "c&d"],
        curve=data_uri(Image.new("RGB", (4, 4))),
        curve_protocol="<seed> 0",
        checks=[Check("a <thing>", "1 & 2", "at least 3", False), Check("time", "4 s"), Check("more", "5", "5", True)],
        probes=[Probe("yo<u>rs", "first <token>", 16, 0.5)],
        probe_protocol="<b>rows</b>",
        commands=[("Do <this>:", "tok1d generate 'a<b' --num 3")],
    )


def shown(name: str, value: float | None = 0.5) -> ModelResults:
    strip = Strip("1 <token>", data_uri(Image.new("L", (8, 4))))
    note = "no <judge>" if value is None else ""
    return ModelResults(
        name=name,
        about="<about>",
        decoding="<decoding>",
        sampling="<sampling>",
        reconstructions=[strip],
        by_length=[strip],
        samples=[strip],
        reconstruction_records=[
            Record(name="<psnr>", value=12.5, unit="dB", num_images=1000, keep=4, decoding={"steps": 20})
        ],
        generation_records=[
            Record(name="label_agreement", value=value, num_images=300, sampling={"guidance": 2.0}, note=note)
        ],
    )


def test_the_page_is_whole_self_contained_and_escaped() -> None:
    text = render(page_of([shown("yo<u>rs"), shown("bundled", None)]))
    check_page(text)
    for raw in ("<thing>", "<token>", "yo<u>rs", "<psnr>", "<judge>", "<about>", "<decoding>", "<sampling>", "<this>"):
        assert raw not in text, raw
    for kept in ("yo&lt;u&gt;rs", "a &lt;thing&gt;", "unavailable", "no &lt;judge&gt;", "a&lt;b", "50.0%"):
        assert kept in text, kept


def test_figures_stand_beside_each_other_with_whose_they_are() -> None:
    text = render(page_of([shown("yours"), shown("bundled", 0.25)]))
    row = re.search(r"<tr><td>label_agreement</td>(.*?)</tr>", text)
    assert row is not None
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert [cell.split(" ")[0] for cell in cells] == ["", "", "0.5", "0.25"]
    assert "300 images, guidance 2.0" in cells[2]
    assert "<th>yours</th><th>bundled</th>" in text


def test_one_model_alone_makes_a_page() -> None:
    text = render(page_of([shown("yours")]))
    check_page(text)
    assert "no bundled models" in text


def test_colour_pictures_are_at_the_top() -> None:
    page = page_of([shown("yours")])
    strips = [Strip("“red <apple>”", data_uri(Image.new("RGB", (8, 4))))]
    text = render(replace(page, colour=[Gallery("words", "Samples <from> words", "seed <0>", strips)]))
    assert WellFormed(text).ids == ["colour", *SECTIONS]
    assert "“red &lt;apple&gt;”" in text and "Samples &lt;from&gt; words" in text and "seed &lt;0&gt;" in text
    assert 'id="colour"' not in render(page)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pytest.MonkeyPatch, Path]]:
    """Random images in place of Fashion-MNIST, and a package without bundled models."""
    folder = tmp_path_factory.mktemp("demo")

    def load(split: str = "train", root: object = None) -> tuple[np.ndarray, np.ndarray]:
        num = {"train": 60, "test": 30}[split]
        rng = np.random.default_rng(num)
        return rng.integers(0, 256, (num, 28, 28), dtype=np.uint8), np.arange(num) % 10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tok1d.data.fashion_mnist.load", load)
        patch.setattr("tok1d.zoo.store.BUNDLED", folder / "bundled")
        yield patch, folder


def run(out: Path, overwrite: bool = False) -> Path:
    return demo.run(out, overwrite=overwrite, tokenizer_overrides=TOKENIZER, generator_overrides=GENERATOR)


def test_run_folders_that_do_not_fit_are_refused_before_training(world: tuple[pytest.MonkeyPatch, Path]) -> None:
    out = world[1] / "refused"
    recipes = demo._recipes(out, None, [*TOKENIZER, "seed=1"], GENERATOR)
    assert not demo._open_folders(recipes, out / "report.html", overwrite=False)
    for recipe in recipes.values():
        Path(recipe.out).mkdir(parents=True)
        (Path(recipe.out) / "config.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    (out / "tokenizer" / "log.jsonl").touch()  # as a training that began leaves it
    with pytest.raises(ConfigError, match="seed=1"):
        run(out)
    (out / "generator" / "model").mkdir()
    (out / "generator" / "model" / "config.json").touch()
    (out / "generator" / "report.json").touch()
    with pytest.raises(ConfigError, match="--overwrite"):
        run(out)


@pytest.mark.slow
def test_the_demo_ends_with_a_page_and_repeats_nothing(
    world: tuple[pytest.MonkeyPatch, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    patch, folder = world
    out = folder / "run"
    page = run(out)
    assert page == out / "report.html"
    text = page.read_text(encoding="utf-8")
    parsed = check_page(text)
    # originals and 1, 2, 4, 8 tokens; the plot; growing from 1, 2, 4, 8; a strip for each of ten classes
    assert len(parsed.sources) == 5 + 1 + 4 + 10
    assert "from start to report" in text
    measured = json.loads((out / "report.json").read_text())
    mine = measured["models"]["yours"]
    assert [point["keep"] for point in mine["curve"]] == list(range(9))
    assert {record["keep"] for record in mine["reconstruction"]} == {1, 2, 4, 8, None}  # None: of baselines
    assert "squared error from all tokens" in [check["what"] for check in measured["checks"]]
    assert mine["generation"][0]["name"] == "label_agreement"
    assert [row["size"] for row in measured["probe"]["accuracies"]] == [16, 128, 784]
    assert list(measured["models"]) == ["yours"]
    capsys.readouterr()

    def train(*_: object, **__: object) -> None:
        raise AssertionError("nothing was left to train")

    patch.setattr("tok1d.demo.run.train", train)
    stamp = page.stat().st_mtime_ns
    assert run(out) == page
    assert page.stat().st_mtime_ns == stamp
    assert str(page) in capsys.readouterr().out

    _bundle(out, folder / "bundled")
    page.unlink()  # the page alone is made again, now with bundled models beside
    run(out)
    text = page.read_text(encoding="utf-8")
    assert len(check_page(text).sources) == 2 * (5 + 4 + 10) + 1
    assert "this call only" in text
    assert (out / "bundled" / "samples.png").is_file()
    assert (out / "bundled" / "reconstructions.png").is_file()
    measured = json.loads((out / "report.json").read_text())
    assert measured["models"]["bundled"]["curve"] == measured["models"]["yours"]["curve"] == mine["curve"]
    with pytest.raises(AssertionError, match="nothing was left"):
        run(out, overwrite=True)
    assert not page.exists()


def _bundle(out: Path, target: Path) -> None:
    """The run's models as the package would hold them: each card names the other one."""
    for kind, name, key, other in (
        ("tokenizer", demo.BUNDLED, "generator", "toy-generator"),
        ("generator", "toy-generator", "tokenizer", demo.BUNDLED),
    ):
        shutil.copytree(out / kind / "model", target / name)
        config = target / name / "config.json"
        content = json.loads(config.read_text())
        content["card"][key] = other
        config.write_text(json.dumps(content))

"""What a new user meets first: own folders, longer trainings, models of runs, and what commands say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import tok1d
from tok1d.cli import app as cli
from tok1d.compare.curves import read_run
from tok1d.compare.runs import panels
from tok1d.config.load import load_recipe, stored_recipe, to_yaml
from tok1d.cost.forecast import images_of_epoch
from tok1d.data.prints import kind_of_print
from tok1d.data.tokens import TokenCache
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.evaluate.explain import explain
from tok1d.evaluate.report import table
from tok1d.images.overview import labelled_grid
from tok1d.inference import pictures
from tok1d.inference.images import open_data
from tok1d.inference.request import ReconstructionPictures
from tok1d.pictures import grid
from tok1d.tokenizers.base import TokenSpec
from tok1d.train import run
from tok1d.train.images import open_split
from tok1d.train.log import read_log
from tok1d.train.profile import duration
from tok1d.train.profile_task import with_num_images
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.pairs import check_tokens
from tok1d.zoo.record import Record, write_records
from tok1d.zoo.transfer import init_from
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
CONSTANT = ["train.schedule=constant", "model.nested.after=0", "model.nested.drop_after=0"]


def photos(folder: Path, classes: str = "ab", each: int = 12, seed: int = 0) -> str:
    """A folder of colour images, `each` in every class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What a command prints to stdout and stderr."""
    capsys.readouterr()
    assert cli.run([str(word) for word in arguments]) == code
    return "".join(capsys.readouterr())


def test_the_version_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version").startswith(f"tok1d {tok1d.__version__} (Python 3.")


def test_recipes_are_a_short_table_and_words_choose(capsys: pytest.CaptureFixture[str]) -> None:
    everything = said(capsys, "recipes")
    own = said(capsys, "recipes", "own/")
    assert len(own.splitlines()) < 20 and "own/maetok" in own and "imagenet" not in own and "reproduces" not in own
    assert "emoji/sit" in said(capsys, "recipes", "SIT", "emoji") and "reproduces" in said(capsys, "recipes", "own/sit")
    assert "reproduces" in said(capsys, "recipes", "own/", "--full")
    assert len(everything.splitlines()) < 2.2 * len(tok1d.recipes()) and "tok1d recipes WORD" in everything
    assert "no recipe has zebra" in said(capsys, "recipes", "zebra", code=2)


@pytest.mark.parametrize("words", [["train", "nosuch"], ["config", "nosuch"], ["train", "nosuch", "--dry-run"]])
def test_an_unknown_recipe_is_an_error_before_torch_is_imported(words: list[str]) -> None:
    code = f"import sys; from tok1d.cli import app as cli; print(cli.run({words}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n" and "unknown name" in done.stderr


def test_a_folder_in_data_root_is_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    recipe = load_recipe("fashion_mnist/smap", [f"data.root={root}"])
    assert (recipe.data.name, recipe.data.channels, recipe.model.channels) == ("folder", 3, 3)
    assert recipe.classes_from_data and "read as data.name=folder" in capsys.readouterr().err
    assert load_recipe("emoji/maetok", [f"data.root={root}"]).data.name == "folder"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    for kept in (tmp_path / "mnist", tmp_path / "missing"):
        assert load_recipe("fashion_mnist/smap", [f"data.root={kept}"]).data.name == "fashion_mnist"
    judge = load_recipe("fashion_mnist/judge", [f"data.root={root}"])  # its file does not name the channels
    assert (judge.model.channels, judge.classes_from_data) == (3, True)
    given = load_recipe("fashion_mnist/smap", [f"data.root={root}", "data.channels=1", "model.num_classes=2"])
    assert (given.data.channels, given.classes_from_data) == (1, False)


def test_a_size_is_given_once(tmp_path: Path) -> None:
    for key in ("data", "model"):
        recipe = load_recipe("fashion_mnist/titok_vq", [f"{key}.image_size=56", f"{key}.channels=3"])
        sizes = {(each.image_size, each.channels) for each in (recipe.data, recipe.model)}
        assert sizes == {(56, 3)}
    with pytest.raises(ConfigError, match=r"model\.image_size: expected data\.image_size=56, got 28"):
        load_recipe("fashion_mnist/titok_vq", ["data.image_size=56", "model.image_size=28"])


def test_a_longer_training_equals_an_unbroken_one(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a finished and of an unfinished run, where the schedule does not depend on the number of steps."""
    short, whole = ["train.steps=6", *CONSTANT], ["train.steps=10", *CONSTANT]
    run.train(load_recipe(tiny("tokenizer"), [f"out={tmp_path / 'whole'}", *whole]), quiet=True)
    expected = fingerprint(store.load(tmp_path / "whole/model"))
    for name, seconds in (("finished", None), ("stopped", 0.0)):
        out = tmp_path / name
        recipe = load_recipe(tiny("tokenizer"), [f"out={out}", *short])
        run.train(recipe, quiet=True, seconds=seconds)
        more = 4 if seconds is None else 9  # the stopped run has made one step
        text = said(capsys, "train", tiny("tokenizer"), f"out={out}", *short, "--more", more)
        assert f"{more} more steps for {out}, from step {10 - more} to 10; the learning rate stays 0.001" in text
        assert f"resuming at step {10 - more} of 10" in text and "model: " in text
        model = store.load(out / "model")
        assert fingerprint(model) == expected and model.card.trained["steps"] == 10
        assert stored_recipe(out / "config.yaml").train.steps == 10
        assert [entry["step"] for entry in read_log(out / "log.jsonl")][-1] == 10


def test_a_longer_training_resumes_by_its_folder_and_refuses_other_settings(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train = ["train", tiny("tokenizer", out=out), *CONSTANT[1:]]
    assert "needs a run with a checkpoint, got none" in said(capsys, *train, "--more", 4, code=2)
    said(capsys, *train)
    assert "pass --more N to train it N steps longer" in said(capsys, *train, code=2)
    assert "train.lr=0.5" in said(capsys, *train, "train.lr=0.5", "--more", 4, code=2)
    assert (out / "report.json").exists()
    stopped = said(capsys, "train", out, "--more", 4, "--minutes", 0)
    assert "the cosine schedule of the learning rate now ends at step 10, so it goes from" in stopped
    assert f"stopped; tok1d train {out} resumes" in stopped and not (out / "report.json").exists()
    assert "pass --more N to train it N steps longer, --overwrite to start over" in said(capsys, *train, code=2)
    assert "resuming at step 7 of 10" in said(capsys, "train", out) and (out / "report.json").exists()
    assert "expected without --overwrite" in said(capsys, *train, "--more", 4, "--overwrite", code=2)
    assert "expected without --dry-run" in said(capsys, *train, "--more", 4, "--dry-run", code=2)


def test_training_says_how_many_images_it_has(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    text = said(capsys, "train", tiny("tokenizer"), f"data.root={root}", f"out={tmp_path / 'run'}")
    assert "training and" in text and "test images, 2 classes: a, b" in text


def test_models_of_runs_are_found_by_the_run(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the end of a run its newest checkpoint is the model, afterwards the model of its end."""
    out = tmp_path / "run"
    train = ["train", tiny("tokenizer", out=out)]
    reconstruct = ["reconstruct", out, "fashion_mnist", "--num", 2, "--overwrite", "--out", tmp_path / "pictures"]
    said(capsys, *train, "--minutes", 0)
    assert f"{out}: is not finished, taking its checkpoint of step 1" in said(capsys, *reconstruct)
    early = tok1d.load(out)
    assert early.card.trained == {"steps": 1}
    evaluated = said(capsys, "evaluate", "reconstruction", out, "fashion_mnist", "--num", 2, "--metrics", "psnr")
    assert evaluated.count("is not finished") == 1
    said(capsys, *train)
    assert "is not finished" not in said(capsys, *reconstruct)
    final = tok1d.load(str(out))
    assert fingerprint(final) == fingerprint(tok1d.load(out / "model")) != fingerprint(early)
    assert torch.get_default_dtype() == torch.float32


def model_folder(path: Path, recipe: str, *overrides: str, seed: int = 0) -> Path:
    """A model of random weights in a folder."""
    torch.manual_seed(seed)
    store.save_model(store.build_model(load_recipe(recipe, overrides).model), path, Card())
    return path


def test_masked_and_unmasked_tokenizers_start_from_each_other(tiny: Tiny, tmp_path: Path) -> None:
    maetok, plain = tiny("maetok"), ["model.mask.low=0", "model.mask.high=0", "model.auxiliary=[]"]
    masked = store.load(model_folder(tmp_path / "masked", maetok))
    unmasked = store.load(model_folder(tmp_path / "unmasked", maetok, *plain))
    new = store.build_model(load_recipe(maetok, plain).model)
    notes = init_from(new, str(tmp_path / "masked"))
    assert any("mask token is left out" in note for note in notes)
    assert torch.equal(new.encoder.queries, masked.encoder.queries)  # type: ignore[union-attr]
    new = store.build_model(load_recipe(maetok).model)
    before = new.encoder.mask_token.clone()  # type: ignore[union-attr, operator]
    notes = init_from(new, str(tmp_path / "unmasked"))
    assert any("mask token keeps its random initialisation" in note for note in notes)
    assert torch.equal(new.encoder.mask_token, before)  # type: ignore[union-attr, arg-type]
    assert torch.equal(new.encoder.queries, unmasked.encoder.queries)  # type: ignore[union-attr]


@pytest.mark.parametrize(("ordered", "said_instead"), [(True, "num_tokens=2 with model.num_tokens=2"), (False, "")])
def test_a_generator_of_fewer_tokens_names_the_setting(tiny: Tiny, ordered: bool, said_instead: str) -> None:
    spec = TokenSpec(length=4, dim=4, vocab_size=None, ordered=ordered)
    config = load_recipe(tiny("sit", tokenizer="x"), ["model.num_tokens=2"]).model
    with pytest.raises(ConfigError, match=said_instead or r"the tokenizer is trained with model\.num_tokens=2"):
        check_tokens(config, spec, 4)
    if not ordered:
        with pytest.raises(
            ConfigError, match=r"no order.*leave it out, or train the tokenizer with model\.num_tokens=2"
        ):
            check_tokens(config, spec, 2)


def test_loose_images_beside_class_folders_are_read_where_no_class_is_needed(tiny: Tiny, tmp_path: Path) -> None:
    root = Path(photos(tmp_path / "photos"))
    Image.new("RGB", (9, 9)).save(root / "loose.png")
    given = [f"data.root={root}"]
    images = open_split(load_recipe(tiny("tokenizer"), given), "train")
    everything = [*images.keys, *open_split(load_recipe(tiny("tokenizer"), given), "test").keys]
    assert sorted(everything) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert images.class_names == ["photos"]
    for needed in ("smap", "classifier"):
        with pytest.raises(DataError, match=r"both class folders and loose images \(loose\.png"):
            open_split(load_recipe(tiny(needed), given), "train")
    tokenizer: Any = store.load(model_folder(tmp_path / "model", tiny("tokenizer")))
    assert open_data(str(root), tokenizer, split="all").class_names == ["photos"]
    with pytest.raises(DataError, match="both class folders and loose images"):  # a cache holds labels
        open_data(str(root), tokenizer, split="all", needs_classes=True)


def test_a_token_cache_names_the_files_of_its_rows(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(photos(tmp_path / "photos", "xy", each=3))
    model = model_folder(tmp_path / "model", tiny("tokenizer"))
    said(capsys, "encode", model, root, "--split", "all", "--views", "center+flip", "--out", tmp_path / "cache")
    cache = TokenCache(tmp_path / "cache")
    assert cache.files == [f"{name}/{i}.png" for name in "xy" for i in range(3)] and len(cache) == 2 * len(cache.files)
    tokenizer = store.load(model)
    with torch.no_grad():
        expected = tokenizer.encode(str(root / cache.files[4]))[0]
    torch.testing.assert_close(cache.batch([8])[0][0], expected)


def test_a_long_note_stands_once_in_a_table() -> None:
    why = "inception: expected the published weights, got no file; download them from a place with a long address"
    records = [
        Record(name="rfid", value=None, num_images=3, keep=keep, network="inception", note=why) for keep in (1, 2)
    ]
    console = Console(width=300, record=True)
    console.print(table(records))
    text = console.export_text()
    assert text.count("expected the published weights") == 1 and text.count("as above") == 1


def test_rows_of_overviews_are_labelled_and_zoomed(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    grey = torch.full((6, 1, 28, 28), 0.5)
    plain, named = grid(grey, 2, zoom=3), labelled_grid(grey, 2, ["one", "two tokens", ""])
    assert named.height == plain.height and named.width > plain.width
    assert named.crop((0, 0, *plain.size)).tobytes() == plain.tobytes()
    dark = np.asarray(named)[:, plain.width :] < 128
    rows = [dark[i * 90 : i * 90 + 84].any() for i in range(3)]
    assert rows == [True, True, False]
    with pytest.raises(InputError, match="expected 3, one for each row, got 2"):
        labelled_grid(grey, 2, ["one", "two"])
    tokenizer = store.load(model_folder(tmp_path / "model", tiny("tokenizer")))
    images = open_split(load_recipe(tiny("tokenizer")), "test")
    pictures.reconstruct(tokenizer, images, tmp_path, ReconstructionPictures(num=2, keep=(1, 4)))
    assert Image.open(tmp_path / "overview.png").width > 2 * 30 * 3


@pytest.mark.parametrize(
    ("hours", "text"), [(0.2358, "14 min"), (0.01, "36 s"), (4, "4 h"), (47.9, "47.9 h"), (72, "3 days")]
)
def test_times_are_written_in_fitting_units(hours: float, text: str) -> None:
    assert duration(hours) == text


def test_a_measured_forecast_counts_the_images(tiny: Tiny, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    recipe = load_recipe(tiny("tokenizer"), [f"data.root={root}"])
    assert images_of_epoch(recipe) is None
    assert images_of_epoch(with_num_images(recipe)) == len(open_split(recipe, "train"))
    absent = load_recipe(tiny("tokenizer"), ["data.name=folder", "data.root=nowhere"])
    assert with_num_images(absent) is absent


def finished_run(path: Path, data: Path, fingerprint: str, *overrides: str) -> str:
    """A run folder with a recipe, a log and a record of PSNR."""
    recipe = load_recipe("own/maetok", [f"data.root={data}", f"out={path}", *overrides])
    (path / "model").mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(recipe))
    points = [{"step": step, "loss_reconstruction": 1 / step, "lr": 1e-3} for step in range(50, 1001, 50)]
    (path / "log.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    card = Card(recipe=to_yaml(recipe), data="folder", data_fingerprint=fingerprint)
    (path / "model" / "config.json").write_text(json.dumps({"card": card.to_json()}))
    record = Record(name="psnr", value=20.0, num_images=98, keep=16, unit="dB", weights="ema", crop="fit 64")
    write_records(path / "report.json", [record])
    return str(path)


def test_explain_names_other_images_and_every_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changes = [
        "model.mask.high=0.5",
        "model.auxiliary=[{target: hog, cell: 8, depth: 1}]",
        "train.lr=1e-3",
        "train.ema=0.99",
    ]
    first = finished_run(tmp_path / "1", tmp_path / "a", "e2_aaaa")
    same = explain(first, finished_run(tmp_path / "2", tmp_path / "b", "e2_aaaa"))
    assert [line.key for line in same.differences] == [] and same.comparable == "yes"  # a copy of the folder
    other = explain(first, finished_run(tmp_path / "3", tmp_path / "b", "e2_bbbb"))
    assert [line.key for line in other.differences] == ["data"] and other.comparable == "no"
    assert "e2_aaaa" in str(other.differences[0].a) and "e2_bbbb" in str(other.differences[0].b)
    unlike = explain(first, finished_run(tmp_path / "4", tmp_path / "b", "e1_cccc"))  # a fingerprint of another kind
    assert unlike.comparable == "yes" and kind_of_print("e1_cccc") != kind_of_print("e2_aaaa")
    trained = explain(first, finished_run(tmp_path / "5", tmp_path / "a", "e2_aaaa", *changes))
    named = [line.key for line in trained.differences]
    assert set(named) == {"model.auxiliary", "model.mask.high", "train.lr", "ema_decay"} and named[-1] == "ema_decay"
    text = said(capsys, "evaluate", "explain", first, str(tmp_path / "5"))
    assert "hog" in text and "samples (LTH14" not in text and "Fréchet" not in text and "FID" not in text
    assert trained.differences[-1].reason_for("fid") != trained.differences[-1].reason_for("psnr")


def test_runs_are_compared_with_curves_of_the_same_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    first, second = (finished_run(tmp_path / name, tmp_path / "a", "e2_aaaa") for name in "12")
    foreign = finished_run(tmp_path / "3", tmp_path / "a", "e2_bbbb")
    assert "no recipe of this model on these data comes with a curve" in said(capsys, "compare", first)
    both = said(capsys, "compare", first, second)
    assert "no recipe of this model on these data" in both and f"{second} against {first}: on track" in both
    assert "cannot be compared: the reference is of other images" in said(capsys, "compare", foreign, "--to", first)
    to = said(capsys, "compare", first, "--to", "fashion_mnist/maetok")
    assert "the reference is of other images" in to and "off track" not in to
    assert panels([read_run(first)]) == ["loss"]


def test_models_take_a_seed_lists_and_are_called() -> None:
    generator, tokenizer = tok1d.load_pair("fashion-mnist-semanticist")
    tokens = generator.sample([3, 7], seed=1)
    ids = torch.tensor([3, 7])
    assert torch.equal(tokens, generator.sample(ids, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(tokens, generator.sample([3, 7], seed=2))
    with pytest.raises(InputError, match="generate takes names"):
        generator.sample(["Sneaker"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="got two of them"):
        generator.sample([3], seed=1, generator=torch.Generator())
    images = tokenizer.decode(tokens, seed=1)
    assert torch.equal(images, tokenizer.decode(tokens, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(images, tokenizer.decode(tokens, seed=2))
    with pytest.raises(InputError, match="got both"):
        tokenizer.decode(tokens, seed=1, generator=torch.Generator())
    maetok = tok1d.load("fashion-mnist-maetok")
    picture = torch.rand(1, 1, 28, 28)
    assert torch.equal(maetok(picture), maetok.decode(maetok.encode(picture), seed=3))

"""What a new user meets first: own folders, longer trainings, models of runs, and what commands say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tok1d
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, stored_recipe
from tok1d.errors import ConfigError
from tok1d.train import run
from tok1d.train.log import read_log
from tok1d.zoo import store
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

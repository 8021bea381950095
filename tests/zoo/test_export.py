"""Weights to give away: a MAETok leaves behind what only its training reads, a generator takes its tokenizer along."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.errors import WeightsError
from tok1d.train import run
from tok1d.train.export import export
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint


def test_auxiliary_decoders_stay_behind(tiny: Callable[..., str], tmp_path: Path, fashion: None) -> None:
    run.train(load_recipe(tiny("maetok"), [f"out={tmp_path / 'run'}", "train.steps=2"]), quiet=True)
    records = export(tmp_path / "run", tmp_path / "given", dtype="float32")
    trained, given = store.load(tmp_path / "run" / "model"), store.load(tmp_path / "given")
    assert trained.config.auxiliary and not given.config.auxiliary
    left = trained.state_dict().keys() - given.state_dict().keys()
    assert left and all(name.startswith("auxiliary.") for name in left)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(given.encode(images), trained.encode(images))
        assert torch.equal(given.decode(given.encode(images)), trained.decode(trained.encode(images)))
    assert given.card.fingerprint == fingerprint(given) != fingerprint(trained)
    before = {record.name: record.value for record in trained.card.records}
    assert {record.name: record.value for record in given.card.records} == before and len(records) > 1


def test_the_card_has_a_picture(tiny: Callable[..., str], tmp_path: Path, fashion: None) -> None:
    run.train(load_recipe(tiny("maetok"), [f"out={tmp_path / 'run'}", "train.steps=2"]), quiet=True)
    export(tmp_path / "run", tmp_path / "given")
    ten_by_two = (2 * (10 * 34 - 2), 2 * (2 * 34 - 2))  # originals and reconstructions from all tokens
    assert Image.open(tmp_path / "given" / "preview.png").size == ten_by_two
    assert "](preview.png)" in (tmp_path / "given" / "README.md").read_text()
    store.load(tmp_path / "given").save_pretrained(tmp_path / "copy")
    pictures = [(tmp_path / name / "preview.png").read_bytes() for name in ("given", "copy")]
    assert pictures[0] == pictures[1] and "](preview.png)" in (tmp_path / "copy" / "README.md").read_text()
    export(tmp_path / "run", tmp_path / "copy", picture=False)  # replaces the folder
    assert not (tmp_path / "copy" / "preview.png").exists()
    assert "preview.png" not in (tmp_path / "copy" / "README.md").read_text()


def test_an_exported_generator_is_portable(tiny: Callable[..., str], tmp_path: Path, fashion: None) -> None:
    run.train(load_recipe(tiny("tokenizer"), [f"out={tmp_path / 'a' / 'tokens'}", "train.steps=2"]), quiet=True)
    keys = [f"tokenizer={tmp_path / 'a' / 'tokens' / 'model'}", f"cache={tmp_path / 'cache'}", "train.steps=2"]
    run.train(load_recipe(tiny("generator"), [f"out={tmp_path / 'a' / 'run'}", *keys]), quiet=True)
    trained = store.load(tmp_path / "a" / "run" / "model")
    assert trained.card.tokenizer == "../../tokens/model"  # no absolute path
    shutil.move(tmp_path / "a" / "tokens", tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="pass its tokenizer with --tokenizer MODEL"):
        store.load_pair(tmp_path / "a" / "run" / "model")
    export(tmp_path / "a" / "run", tmp_path / "given", tokenizer=str(tmp_path / "elsewhere" / "model"), licence="mit")
    shutil.rmtree(tmp_path / "elsewhere")
    shutil.move(tmp_path / "given", tmp_path / "moved")
    generator, tokenizer = store.load_pair(tmp_path / "moved")
    assert generator.card.tokenizer == "tokenizer" and tokenizer.folder == (tmp_path / "moved" / "tokenizer").resolve()
    assert (tmp_path / "moved" / "preview.png").is_file()
    assert generator.card.licence == "mit" and generator.generate(num=1).images.shape == (10, 1, 28, 28)
    assert cli.run(["generate", str(tmp_path / "moved"), "--num", "1", "--out", str(tmp_path / "o")]) == 0
    shutil.move(tmp_path / "moved" / "tokenizer", tmp_path / "t")
    command = ["generate", str(tmp_path / "moved"), "--num", "1", "--out", str(tmp_path / "p")]
    assert cli.run(command) == 2
    assert cli.run([*command, "--tokenizer", str(tmp_path / "t")]) == 0

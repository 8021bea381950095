"""The page on own data: every command in it is run, in order, on a tiny folder of images with few steps."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, recipe_from_text, stored_recipe
from tok1d.train.images import with_data_classes
from tok1d.train.run import train
from tok1d.zoo import store

PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"
SHORT = ["train.steps=2", "train.warmup=0", "train.batch_size=4", "train.log_every=1", "train.save_every=0"]
SMALL = {
    "maetok": ["model.encoder.depth=1", "model.decoder.depth=1", "evaluate.num_images=4"],
    "sit": ["model.depth=1", "model.steps=2", "evaluate.num_samples=4"],
    "judge": ["model.width=4", "model.features=8"],
}
WEIGHTS = ("init_from=fashion-mnist-maetok", "init_from=fashion-mnist-sit")  # of these the depth is given


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (folder / split / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (70 + i, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return folder


@pytest.mark.slow
def test_every_command_of_the_page_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    photos(tmp_path / "PHOTOS")
    found = commands()
    assert len(found) >= 13
    for program, *words in found:
        assert program == "tok1d"
        if words[0] == "train":
            small = SMALL[words[1].split("/")[-1]]
            words += [*SHORT, *(key for key in small if "depth" not in key or not set(words) & set(WEIGHTS))]
        if words[0] == "generate":
            words[words.index("--num") + 1] = "1"
        code = cli.run(words)
        assert code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    for name in ("out/look/overview.png", "out/mine/overview.png", "out/samples/overview.png"):
        assert Image.open(name).size[0] > 0
    assert {"psnr"} <= {entry["name"] for entry in json.loads(Path("out/mine.json").read_text(encoding="utf-8"))}
    assert "56 px instead of 28" in capsys.readouterr().err or (tmp_path / "runs/tuned/model/config.json").is_file()
    assert (tmp_path / "runs/tuned-sit/report.json").is_file() and not (tmp_path / "runs/large").exists()


def test_the_number_of_classes_is_that_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = photos(tmp_path / "PHOTOS"), tmp_path / "run"
    small = ["model.encoder.depth=1", "model.decoder.depth=1", "model.encoder.dim=16", "model.decoder.dim=16"]
    given = [f"data.root={data}", "data.image_size=16", f"out={out}", "evaluate.num_images=2", *SHORT, *small]
    recipe = load_recipe("own/smap", [*given, "model.num_classes=77"])  # only for forecasts
    assert train(recipe, quiet=True) == out
    stored = stored_recipe(out / "config.yaml")
    assert stored.model.num_classes == 2 and not stored.classes_from_data
    model = store.load(str(out / "model"))
    assert model.config.num_classes == 2 and model.card.classes == ["a", "b"]
    assert recipe_from_text(model.card.recipe, "card").model.num_classes == 2
    assert with_data_classes(stored) is stored
    (out / "report.json").unlink()  # unfinished: the same recipe resumes, because both have two classes
    assert train(recipe, quiet=True) == out
    assert any(entry["name"] == "baseline:thumbnail-8:mse" for entry in json.loads((out / "report.json").read_text()))
    for wrong, message in (
        (["own/maetok", "classes_from_data=true"], "classes_from_data: maetok has no classes"),
        (["own/sit", "model.num_classes=0"], "classes_from_data: sit has no classes"),
    ):
        assert cli.run(["config", *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

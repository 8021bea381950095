"""The share of samples near to training images, and pictures of the nearest ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import DataError
from tok1d.evaluate import memorised
from tok1d.evaluate.memorised import Memorisation
from tok1d.inference import nearest
from tok1d.inference.nearest import Training

SIZE = 6


def images(pixels: np.ndarray, pad: int = 0) -> ArrayImages:
    transform = Transform(SIZE + 2 * pad, 3, pad=pad)
    return ArrayImages(pixels, np.zeros(len(pixels), np.int64), ["all"], transform)


def noise(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIZE, SIZE, 3), np.uint8)


def given(of: ArrayImages, numbers: range) -> Tensor:
    return of.batch(numbers)[0]


def test_the_nearest_image_is_that_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_ROWS", 7)
    monkeypatch.setattr(nearest, "_READ", 11)
    train = images(noise(40, 0))
    x = torch.rand(9, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    distances, where = Training(train).nearest(x)
    rows = train.batch(range(40))[0]
    expected = (x[:, None] - rows[None]).square().mean((2, 3, 4)).sqrt()
    torch.testing.assert_close(distances, expected.min(1).values)
    assert torch.equal(where, expected.argmin(1))


def test_copies_have_distance_zero_also_beyond_the_range_and_the_border() -> None:
    train = images(noise(20, 0), pad=2)
    x = train.batch([3, 17])[0]
    x[:, :, :2] = 0.7  # the border is not compared
    x[x == 1] = 1.5  # decoders are not clamped
    distances, where = Training(train, pad=2).nearest(x)
    assert distances.tolist() == [0, 0] and where.tolist() == [3, 17]


def levels(*values: int) -> ArrayImages:
    """Images of one grey level."""
    return images(np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in values]))


def test_the_share_is_of_samples_nearer_than_the_median_test_image() -> None:
    """Grey levels, whose distances are known: test images at 10, 20, 30 and 40 and 50 levels from a training image."""
    memory = Memorisation(lambda: levels(0, 255), lambda: levels(10, 20, 30, 40, 205))
    samples = given(levels(0, 29, 30, 31, 128, 230), range(6))
    distances = memory.training.nearest(samples)[0]
    number = memory.number(distances.split(4), given)  # type: ignore[arg-type]
    assert memory.median == pytest.approx(30 / 255)
    assert number.value == pytest.approx(3 / 6), "0, 29 and 230; 30 itself is not nearer"
    assert number.note.startswith("nearer in pixels to one of 2 training images than the median of 5 test images")
    assert number.note.endswith("of the reconstructions of these 0.400")
    blurred = memory.number([distances], lambda of, numbers: 0 * given(of, numbers))  # type: ignore[arg-type]
    assert blurred.note.endswith("of these 1.000") and blurred.value == number.value


def test_test_images_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorised, "NUM_TEST", 3)
    assert (
        "of 3 test images"
        in Memorisation(lambda: levels(0), lambda: levels(1, 2, 3, 4, 5)).number([torch.zeros(1)], given).note
    )  # type: ignore[arg-type]


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> ArrayImages:
        raise DataError("no test split")

    memory = Memorisation(lambda: levels(0, 255), absent)
    assert memory.number([], given).value is None and memory.missing == "no test split"  # type: ignore[arg-type]
    monkeypatch.setattr(nearest, "MOST_BYTES", 200)
    memory = Memorisation(lambda: levels(0, 255), lambda: levels(1))
    assert memory.missing == "2 training images of this size are 216 numbers, more than 200"


@pytest.fixture
def generator(tiny: Any, fashion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trained pair."""
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", tiny("maetok"), "train.steps=2", "out=first"]) == 0
    assert cli.run(["train", tiny("sit"), "train.steps=2", "tokenizer=first/model", "out=second"]) == 0
    return "second/model"


def test_at_the_command_line(generator: str, tmp_path: Path, capsys: Any) -> None:
    command = [
        "evaluate",
        "generation",
        generator,
        "fashion_mnist",
        "--num-samples",
        "8",
        "--quiet",
        "--batch-size",
        "3",
    ]
    assert cli.run([*command, "--metrics", "memorised", "--out", "m.json"]) == 0
    assert cli.run([*command, "--out", "all.json"]) == 0
    [alone], found = (json.loads(Path(name).read_text(encoding="utf-8")) for name in ("m.json", "all.json"))
    [among] = [record for record in found if record["name"] == "memorised"]
    assert alone["value"] == among["value"] and "one of 64 training images" in alone["note"]
    capsys.readouterr()
    assert cli.run(["evaluate", "reconstruction", "first/model", "fashion_mnist", "--metrics", "memorised"]) == 2
    assert "--metrics: reconstructions are no samples; expected some of psnr," in capsys.readouterr().err


def test_pictures_show_the_nearest_training_images(generator: str, tmp_path: Path, capsys: Any) -> None:
    command = ["generate", generator, "--classes", "1,2", "--num", "3", "--nearest", "fashion_mnist", "--out", "g"]
    assert cli.run(command) == 0
    assert "nearest.png" in capsys.readouterr().out
    overview, near = (np.asarray(Image.open(tmp_path / "g" / f"{name}.png")) for name in ("overview", "nearest"))
    assert near.shape[1] >= overview.shape[1] and near.shape[0] > 1.9 * overview.shape[0]  # wider labels of rows
    rows = np.array_split(np.arange(near.shape[0]), 4)
    half, wide = overview.shape[0] // 2, overview.shape[1] // 2  # left of the labels
    assert np.array_equal(near[: half - 4, :wide], overview[: half - 4, :wide]), "first row: samples of the first class"
    assert not np.array_equal(near[rows[1]][: half - 4, :wide], overview[half:][: half - 4, :wide])


def test_too_many_training_images_are_refused(generator: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MOST_BYTES", 1000)
    assert cli.run(["generate", generator, "--num", "1", "--nearest", "fashion_mnist", "--out", "g"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--nearest: 64 training images of this size are" in error and not Path("g").exists()

"""Splits, types and small sets of data folders, at the command line."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tok1d.cli import app as cli
from tok1d.data.tokens import TokenCache

Tiny = Callable[..., str]


def pictures(folder: Path, count: int, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}{suffix}")
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run([str(word) for word in words])
    return code, *capsys.readouterr()


def train(tiny: Tiny, root: Path, out: Path) -> list[object]:
    data = ["data.name=folder", f"data.root={root}", "train.steps=2", "train.warmup=0", "evaluate.num_images=1000"]
    return ["train", tiny("tokenizer"), *data, f"out={out}"]


def number_measured(path: Path) -> tuple[int, str]:
    record = next(each for each in json.loads(path.read_text(encoding="utf-8")) if each["name"] == "psnr")
    return record["num_images"], record["reference"]["split"]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return pictures(tmp_path / "flat", 131)


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A tokenizer trained on `flat`."""
    code, out, _ = run(capsys, *train(tiny, flat, tmp_path / "run"))
    assert code == 0 and "130 images; 1 of 131 images are the test split, chosen by a hash of their names" in out
    return tmp_path / "run" / "model"


def test_a_flat_folder_is_measured_whole_unless_the_model_was_trained_on_it(
    model: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pictures(tmp_path / "val2017" / "deep", 12).parent
    (other / "more").mkdir()
    for data, options, wanted in (
        (flat, [], 1),
        (other, [], 12),
        (pictures(tmp_path / "two" / "train", 3).parent, [], 1),
        (pictures(tmp_path / "three" / "val", 3).parent, [], 3),
    ):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        metrics = ["--metrics", "psnr", "--keep", "4", "--steps", "1", "--quiet"]
        code, said, _ = run(capsys, "evaluate", "reconstruction", model, data, *metrics, *options, "--out", out)
        assert code == 0 and f"{wanted} image" in said and number_measured(out)[0] == wanted, (data, options)
    assert number_measured(out)[1] == "the test split val/"
    assert run(capsys, "encode", model, flat, "--split", "all", "--out", tmp_path / "cache")[0] == 0
    assert len(TokenCache(tmp_path / "cache")) == 131
    code, said, _ = run(
        capsys, "analyze", "prefix", model, other, "--split", "test", "--num", 2, "--out", tmp_path / "c"
    )
    assert code == 0 and "1 of 12 images are the test split" in said
    code, _, err = run(capsys, "analyze", "prefix", model, other, "--split", "valid", "--out", tmp_path / "d")
    assert code == 2 and "--split" in err and "'valid'" in err


def test_capital_test_folders_are_not_trained_on(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("Train/a", 3), ("Train/b", 2), ("Test/a", 4), ("Test/b", 1)):
        pictures(tmp_path / "set" / name, count)
    (tmp_path / "set" / "Train" / "b" / "1.png").write_bytes(b"broken")
    (tmp_path / "set" / "Train" / "b" / "x.HEIC").touch()
    (tmp_path / "set" / "Train" / "c d").mkdir()
    code, out, err = run(capsys, *train(tiny, tmp_path / "set", tmp_path / "run"))
    assert code == 0 and "4 images in 3 classes (a, b, c d); the train split Train/; 1 broken; 1 file not read" in out
    assert "1 of 3 classes have no training images that can be read: c d" in err and "Train/b/x.HEIC" in out
    assert number_measured(tmp_path / "run" / "report.json") == (5, "the test split Test/")


@pytest.mark.parametrize("count", [2, 3, 36])
def test_small_sets_are_trained_on(tiny: Tiny, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *train(tiny, pictures(tmp_path / "few", count), tmp_path / "run"))
    assert code == 0, err
    tested = number_measured(tmp_path / "run" / "report.json")[0]
    assert 1 <= tested < count and f"{tested} of {count} images are the test split" in out


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def samples(labels: list[bytes]) -> list[tuple[str, bytes]]:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(stream, "PNG")
    images = [(f"cat.{i:02d}.png", stream.getvalue()) for i in range(len(labels))]
    return images + [(f"cat.{i:02d}.cls", label) for i, label in enumerate(labels)]  # apart from their images


def test_what_would_train_on_test_images_or_lose_some_is_refused_in_one_line(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    pictures(tmp_path / "1" / "test" / "a", 3)
    (tmp_path / "1" / "train").mkdir()
    for number, names in enumerate(
        (["trian/a", "test/a"], ["train/a", "val/a", "car", "plane"], ["a/train", "a/test", "b/train", "b/test"]), 2
    ):
        for name in names:
            pictures(tmp_path / str(number) / name, 2)
    pictures(tmp_path / "5", 1)
    shard(tmp_path / "6" / "0.tar", samples([b"0", str(2**40).encode()]))
    shard(tmp_path / "7" / "train-0.tar", samples([b"0", b"1"]))
    shard(tmp_path / "7" / "tets-0.tar", samples([b"0", b"1"]))
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "a.tar.gz").touch()
    culprits = ["train/", "trian", "car/, plane/", "a/test/", "0.png", "1099511627776", "tets-0.tar", "a.tar.gz"]
    for number, culprit in enumerate(culprits, 1):
        command = train(tiny, tmp_path / str(number), tmp_path / "out")
        if number > 5:
            command[2] = "data.name=webdataset"
        code, _, err = run(capsys, *command)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and culprit in err, err


def test_shards_with_names_numbers_and_dots_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("webdataset")
    from tok1d.data.broken import report_broken
    from tok1d.data.images import ImageSource, kind_of, open_images

    def opened(name: str, labels: list[bytes], **options: Any) -> Any:
        shard(tmp_path / name / "0.TAR", samples(labels))
        root = tmp_path / name
        data = open_images(ImageSource(kind_of(str(root)), root=root, image_size=28, channels=1, **options), "all")
        capsys.readouterr()
        report_broken(data)
        return data

    names = opened("names", [b"dog\n", b"cat 10", b"cat 9", b"dog"])
    assert names.class_names == ["cat 10", "cat 9", "dog"] and names.labels.tolist() == [2, 0, 1, 2]
    assert "classes in order: cat 10, cat 9, dog (data.class_order=natural" in capsys.readouterr().err
    natural = opened("names", [b"dog\n", b"cat 10", b"cat 9", b"dog"], class_order="natural")
    assert natural.class_names == ["cat 9", "cat 10", "dog"] and "in order" not in capsys.readouterr().err
    numbers = opened("numbers", [b"1", b"2.0", b"\xef\xbb\xbf3\r\n", b"03"])
    assert numbers.labels.tolist() == [1, 2, 3, 3] and [numbers.name(i)[-6:] for i in (0, 3)] == ["cat.00", "cat.03"]
    assert "class numbers 1 to 3, 3 of them, none is 0: model.num_classes must be 4" in capsys.readouterr().err

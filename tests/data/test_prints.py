"""Fingerprints see contents: replaced images, swapped classes, copies, older caches and full hashes."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tok1d.cli import app as cli
from tok1d.data import prints
from tok1d.data.folder import FolderImages
from tok1d.data.images import ImageSource, kind_of, open_images
from tok1d.data.prints import END, hash_bytes, hash_file, kind_of_print
from tok1d.data.transforms import Transform

Tiny = Callable[..., str]
NUM = 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOK1D_FULL_HASH", raising=False)


def png(seed: int) -> bytes:
    """An image of noise; all have the same number of bytes, as they are not compressed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG", compress_level=0)
    return stream.getvalue()


def folder(root: Path, first: int = 0) -> Path:
    """Images in train/ and test/, of the classes car and plane, with equal names in both."""
    for split, num in (("train", NUM), ("test", 4)):
        for label, name in enumerate(("car", "plane")):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(num // 2):
                (place / f"{i}.png").write_bytes(png(first + 1000 * label + 100 * len(split) + i))
    return root


def replace(path: Path, content: bytes) -> None:
    """Replace a file; size and modification time stay."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(root: Path) -> None:
    (root / "car").rename(root / "x")
    (root / "plane").rename(root / "car")
    (root / "x").rename(root / "plane")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folder(tmp_path / "photos")


@pytest.fixture
def tokenizer(tiny: Tiny, data: Path, tmp_path: Path) -> Path:
    arguments = ["train", tiny("tokenizer"), "data.name=folder", f"data.root={data}", "train.steps=2"]
    assert cli.run([*arguments, f"out={tmp_path / 'run'}"]) == 0
    return tmp_path / "run" / "model"


@pytest.fixture
def train(tiny: Tiny, tokenizer: Path, data: Path, tmp_path: Path) -> Callable[..., int]:
    """Encodes the images, and returns a function that trains a generator on the cache."""
    assert cli.run(["encode", str(tokenizer), str(data), "--out", str(tmp_path / "cache-1")]) == 0
    number = iter(range(99))

    def run(*more: str, root: Path = data, before: tuple[str, ...] = ()) -> int:
        given = [f"data.root={root}", f"tokenizer={tokenizer}", f"cache={tmp_path / 'cache-1'}"]
        sizes = ["data.name=folder", "model.num_classes=2", "train.steps=2", f"out={tmp_path / f'out{next(number)}'}"]
        return cli.run([*before, "train", tiny("generator"), *given, *sizes, *more])

    return run


def test_a_cache_is_refused_after_an_image_is_replaced(train: Any, data: Path, tmp_path: Path, capsys: Any) -> None:
    kept = (data / "train" / "car" / "3.png").read_bytes()
    capsys.readouterr()
    assert train() == 0
    replace(data / "train" / "car" / "3.png", png(77))
    capsys.readouterr()
    assert train() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "made from data e2_" in error and "first and last 8 KiB of each" in error
    replace(data / "train" / "car" / "3.png", kept)
    assert train() == 0


def test_a_cache_is_refused_after_two_classes_are_swapped(train: Any, data: Path, capsys: Any) -> None:
    swap(data / "train")
    assert train() == 2 and "made from data" in capsys.readouterr().err
    swap(data / "train")
    assert train() == 0


def test_a_cache_is_refused_after_a_linked_file_is_replaced(train: Any, data: Path, tmp_path: Path) -> None:
    path = data / "train" / "plane" / "2.png"
    (tmp_path / "other.png").write_bytes(png(5))
    path.unlink()
    path.symlink_to(tmp_path / "other.png")
    assert train() == 2


def test_a_copy_elsewhere_with_other_times_has_the_same_fingerprint(train: Any, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    assert train(root=copy) == 0


def test_an_older_cache_is_compared_in_the_older_way_and_said(
    train: Any, data: Path, tmp_path: Path, capsys: Any
) -> None:
    index = tmp_path / "cache-1" / "index.json"
    content = json.loads(index.read_text())
    images = open_images(ImageSource("folder", root=data, image_size=28, channels=1), "train")
    assert content["meta"]["data_fingerprint"] == images.fingerprint()
    content["meta"]["data_fingerprint"] = images.fingerprint_as("names")  # type: ignore[union-attr]
    index.write_text(json.dumps(content))
    replace(data / "train" / "car" / "3.png", png(77))
    capsys.readouterr()
    assert train() == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "older version" in line]
    assert len(said) == 1 and "not their contents" in said[0] and "tok1d encode again" in said[0]
    (data / "train" / "car" / "3.png").write_bytes(png(77) + b"0")
    assert train() == 2


def test_the_older_fingerprint_is_what_older_versions_computed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, size in (("a/1.png", 0), ("b/2.png", 1)):
        (tmp_path / name).write_bytes(png(1) + bytes(size))
    assert FolderImages(tmp_path, Transform(8, 1)).fingerprint_as("names") == "c2346d9449060710"


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_full_hash_sees_every_byte(
    how: str, tokenizer: Path, tiny: Tiny, data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    path = data / "train" / "car" / "3.png"
    path.write_bytes(png(3) + bytes(3 * END))
    before = ["--full-hash"] if how == "option" else []
    for name, whole in (("ends", False), ("whole", True)):
        if whole and how == "variable":
            monkeypatch.setenv("TOK1D_FULL_HASH", "1")
        arguments = ["encode", str(tokenizer), str(data), "--out", str(tmp_path / name)]
        assert cli.run([*(before if whole else []), *arguments]) == 0
    monkeypatch.delenv("TOK1D_FULL_HASH", raising=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 1
    replace(path, bytes(content))
    capsys.readouterr()
    given = [f"data.root={data}", f"tokenizer={tokenizer}", "data.name=folder", "model.num_classes=2", "train.steps=2"]
    for name, code in (("ends", 0), ("whole", 2)):
        places = [f"cache={tmp_path / name}", f"out={tmp_path / f'out of {name}'}"]
        assert cli.run(["train", tiny("generator"), *given, *places]) == code
    error = capsys.readouterr().err
    assert "all bytes of each image file" in error and "w2_" in error
    places = [f"cache={tmp_path / 'ends'}", f"out={tmp_path / 'third'}"]
    assert cli.run(["--full-hash", "train", tiny("generator"), *given, *places]) == 0
    assert "made without" in capsys.readouterr().err and "TOK1D_FULL_HASH" not in os.environ


def test_another_value_of_the_variable_is_one_line(data: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("TOK1D_FULL_HASH", "yes")
    assert cli.run(["reference", str(data), "--network", "fashion-mnist-cnn"]) == 2
    assert capsys.readouterr().err == "error: TOK1D_FULL_HASH: expected 0 or 1, got 'yes'\n"


def measure(data: Path, capsys: Any, *more: str) -> str:
    capsys.readouterr()
    assert cli.run(["reference", str(data), "--network", "fashion-mnist-cnn", *more]) == 0
    return str(capsys.readouterr().out)


def test_a_reference_is_measured_again_for_other_contents(tmp_path: Path, capsys: Any) -> None:
    """Two folders of equal names and sizes, a replaced image, and swapped classes."""
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 50)
    assert "read from the cache" not in measure(one, capsys)
    assert "read from the cache" in measure(one, capsys)
    assert "read from the cache" not in measure(two, capsys)
    replace(one / "train" / "car" / "1.png", png(99))
    assert "read from the cache" not in measure(one, capsys)
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    assert "read from the cache" in measure(copy, capsys)
    swap(copy / "train")
    assert "read from the cache" not in measure(copy, capsys)
    assert "read from the cache" not in measure(copy, capsys, "--split", "all")


def test_a_reference_file_is_not_replaced_by_that_of_other_contents(tmp_path: Path, capsys: Any) -> None:
    one, out = folder(tmp_path / "one"), tmp_path / "one.npz"
    measure(one, capsys, "--out", str(out))
    replace(one / "train" / "car" / "1.png", png(99))
    before = out.read_bytes()
    assert cli.run(["reference", str(one), "--network", "fashion-mnist-cnn", "--out", str(out)]) == 2
    assert "holds" in capsys.readouterr().err and out.read_bytes() == before


def write_shard(path: Path, changed: int | None = None, labels: tuple[int, int] = (0, 1)) -> None:
    with tarfile.open(path, "w") as archive:
        for i in range(NUM):
            for name, content in (
                (f"{i:03d}.png", png(500 if i == changed else i)),
                (f"{i:03d}.cls", str(labels[i % 2]).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_saved(path: Path, changed: int | None = None, names: tuple[str, str] = ("car", "plane")) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [{"bytes": png(500 if i == changed else i), "path": None} for i in range(NUM)]}
    data = datasets.Dataset.from_dict({**rows, "label": [i % 2 for i in range(NUM)]}, features=features)
    shutil.rmtree(path, ignore_errors=True)
    data._fingerprint = "0" * 16  # as if saved by a program that names all its versions alike
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(path))


def print_of(root: Path) -> str:
    source = ImageSource(kind_of(str(root)), root=root, image_size=12, channels=1)
    return open_images(source, "train").fingerprint()


@pytest.mark.parametrize("threshold", [1, 10**6], ids=["cached", "small"])
def test_shards_and_saved_data_sets_are_seen_too(threshold: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(prints, "CACHED_FROM", threshold)
    (tmp_path / "shards").mkdir()
    places = {
        "webdataset": (tmp_path / "shards" / "train-0.tar", write_shard),
        "huggingface": (tmp_path / "hf", write_saved),
    }
    for kind, (place, write) in places.items():
        root = place if kind == "huggingface" else place.parent
        write(place)
        assert kind_of(str(root)) == kind
        first = print_of(root)
        assert first == print_of(root) and kind_of_print(first) == "ends"
        write(place, changed=7)
        second = print_of(root)
        assert second != first, kind
        write(place)
        assert print_of(root) == first, kind
    write_shard(places["webdataset"][0], labels=(1, 0))
    write_saved(places["huggingface"][0], names=("plane", "car"))
    assert len({print_of(tmp_path / "shards"), print_of(tmp_path / "hf"), first}) == 3
    assert (tmp_path / "cache" / "contents").is_dir() == (threshold == 1)


def test_the_cached_hash_of_a_large_set_follows_the_files(data: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(prints, "CACHED_FROM", 1)
    opened: list[object] = []
    monkeypatch.setattr("tok1d.data.folder.hash_file", lambda path, kind: opened.append(path) or hash_file(path, kind))
    first = print_of(data)
    assert len(opened) == NUM and print_of(data) == first and len(opened) == NUM
    path = data / "train" / "plane" / "0.png"
    replace(path, png(123))  # in place, with the former modification time
    second = print_of(data)
    assert second != first and len(opened) == 2 * NUM
    (data / "new.png").write_bytes(png(124))
    os.utime(data / "new.png", ns=(path.stat().st_mtime_ns,) * 2)
    (data / "new.png").replace(path)
    assert print_of(data) not in (first, second)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * END), st.integers(0, 10_000), st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_hash_sees_size_and_ends_and_whole_files_up_to_twice_that(
    tmp_path_factory: Any, size: int, where: int, before: int, random: Any
) -> None:
    content = random.randbytes(size)
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(bytes(before) + content + b"after")
    for kind in ("ends", "whole"):
        assert hash_file(path, kind, before, size) == hash_bytes(content, kind) == hash_bytes(memoryview(content), kind)
        assert hash_bytes(content + b"\0", kind) != hash_bytes(content, kind)
    if size:
        changed = bytearray(content)
        changed[at := where % size] ^= 1
        assert hash_bytes(bytes(changed), "whole") != hash_bytes(content, "whole")
        seen = size <= 2 * END or at < END or at >= size - END
        assert (hash_bytes(bytes(changed), "ends") != hash_bytes(content, "ends")) == seen

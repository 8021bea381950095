import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from tok1d.data import fashion_mnist
from tok1d.errors import DataError


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def write_set(folder: Path, num: int = 3, gz: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(num)
    for prefix in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (num, 28, 28), np.uint8), rng.integers(0, 10, num, np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data, name = idx(array), f"{prefix}-{kind}-ubyte"
            (folder / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(data, 1) if gz else data)
    return folder


@pytest.mark.parametrize(("code", "dtype"), [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_inverts_writing(tmp_path, code, dtype, pack):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "x").write_bytes(pack(idx(array, code)))
    found = fashion_mnist.read_idx(tmp_path / "x")
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative


good = idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0", b"\x89PNG....", b"\0\0\x07\x01", good[:5], good[:-1], good + b"x", gzip.compress(good)[:-9]],
    ids=["empty", "short", "foreign", "type", "header", "truncated", "long", "gzip"],
)
def test_read_idx_names_a_damaged_file_in_one_line(tmp_path, data):
    (tmp_path / "damaged-ubyte").write_bytes(data)
    with pytest.raises(DataError, match="damaged-ubyte") as caught:
        fashion_mnist.read_idx(tmp_path / "damaged-ubyte")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("gz", [True, False])
def test_load_reads_a_given_folder_in_every_layout(tmp_path, layout, gz):
    write_set(tmp_path / layout, 4, gz)
    images, labels = fashion_mnist.load("test", tmp_path)
    assert images.shape == (4, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (4,) and labels.dtype == np.int64
    assert not np.array_equal(images, fashion_mnist.load("train", tmp_path)[0])


def test_a_given_folder_is_never_left_for_another_source(tmp_path, monkeypatch):
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "cache" / "fashion-mnist")
    given = write_set(tmp_path / "given")
    (given / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"given.*missing t10k-labels-idx1-ubyte"):
        fashion_mnist.find(given)
    assert fashion_mnist.find() == tmp_path / "cache" / "fashion-mnist"


def test_mismatched_files_and_unknown_splits_are_refused(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(5, np.uint8))))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(3, 10, np.uint8))))
    with pytest.raises(DataError, match="do not belong together"):
        fashion_mnist.load("train", tmp_path)
    with pytest.raises(DataError, match="up to 10"):
        fashion_mnist.load("test", tmp_path)
    with pytest.raises(DataError, match="validation"):
        fashion_mnist.load("validation", tmp_path)


def test_the_cache_is_filled_by_the_first_way_that_works(tmp_path, monkeypatch):
    def offline(work: Path) -> None:
        write_set(work / "FashionMNIST" / "raw").joinpath("train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(fashion_mnist, "_from_torchvision", offline)
    monkeypatch.setattr(
        fashion_mnist, "_from_debian", lambda work: write_set(work / "usr/share/datasets/fashion-mnist")
    )
    found = fashion_mnist.find(cache=tmp_path)
    assert found == tmp_path / "fashion-mnist"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fashion-mnist"]  # nothing half-written stays
    monkeypatch.setattr(fashion_mnist, "_from_debian", offline)
    assert fashion_mnist.find(cache=tmp_path) == found


def test_damaged_downloads_do_not_enter_the_cache_and_the_error_names_all_sources(tmp_path, monkeypatch):
    def damaged(work: Path) -> None:
        write_set(work).joinpath("train-images-idx3-ubyte.gz").write_bytes(b"half")

    def offline(work: Path) -> None:
        raise OSError("no network")

    monkeypatch.setattr(fashion_mnist, "_from_torchvision", damaged)
    monkeypatch.setattr(fashion_mnist, "_from_debian", offline)
    with pytest.raises(DataError, match=r"folder.*torchvision.*dataset-fashion-mnist.*no network") as caught:
        fashion_mnist.find(cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


APT = """#!/bin/sh
for word in "$@"; do case "$word" in
  Dir::State::lists=*) lists="${word#*=}" ;;
  update) [ -d "$lists/partial" ] || exit 100; touch "$lists/fresh"; exit 100 ;;  # as with a broken third source
  download) [ -f "$lists/fresh" ] || { echo "E: Unable to locate package" >&2; exit 100; }
            echo deb > dataset-fashion-mnist_1_all.deb ;;
esac; done
"""
DPKG = '#!/bin/sh\n[ "$1" = -x ] && [ -f "$2" ] && cp -r "$FAKE_PACKAGE/." "$3"\n'


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("apt-get", APT), ("dpkg", DPKG)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    write_set(tmp_path / "package" / "usr/share/datasets/fashion-mnist")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PACKAGE", str(tmp_path / "package"))


def test_the_debian_package_is_fetched_with_private_lists_when_the_system_has_none(tmp_path, fake_apt):
    work = tmp_path / "work"
    work.mkdir()
    fashion_mnist._from_debian(work)
    assert fashion_mnist.load("train", work)[0].shape == (3, 28, 28)
    assert not list(work.glob("*.deb"))


def test_a_missing_apt_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get and no dpkg"):
        fashion_mnist._from_debian(tmp_path)

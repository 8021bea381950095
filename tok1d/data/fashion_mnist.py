"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): a reader of idx files, and three sources of the files."""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tok1d.data import debian
from tok1d.data.scan_cache import cache_writable
from tok1d.errors import DataError, reason_of

CLASS_NAMES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
# Captions are templates, filled with the noun of the image's class.
NOUNS = [
    *("a T-shirt", "a pair of trousers", "a pullover", "a dress", "a coat"),
    *("a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot"),
]
TEMPLATES = ["a photo of {}", "a grey picture of {}", "{} on a black background", "a small photo of {}, nothing else"]
_PREFIX = {"train": "train", "test": "t10k"}
_FILES = [f"{prefix}-{kind}" for prefix in _PREFIX.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_PACKAGE = "dataset-fashion-mnist"
# Subfolders in which the files are searched: the folder itself, two layouts of torchvision, the Debian package.
_LAYOUTS = ("", "raw", "FashionMNIST/raw", "usr/share/datasets/fashion-mnist")
_NETWORK_ERRORS = (OSError, subprocess.SubprocessError, DataError)


def read_idx(path: str | Path) -> np.ndarray:
    """Read an idx file, plain or gzipped, to an array of the shape and type that its header states.

    Raises:
        DataError: the file is missing, not an idx file, or has another length than its header states.
    """
    # Header: two zero bytes, the type, the number of dimensions, and each dimension as a big-endian 32-bit number.
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an idx file: {reason_of(error)}") from error
    dtype = _IDX_TYPES.get(data[2]) if len(data) >= 4 and data[:2] == b"\0\0" else None
    if dtype is None:
        raise DataError(f"{path}: not an idx file: expected to begin 00 00 08 .., got {data[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4 : start if len(data) >= start else 4], ">u4"))
    expected = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if len(shape) != data[3] or len(data) != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for the shape {shape} in its header, got {len(data)}: download it again"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))


def load(split: str = "train", root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split, uint8 (N, 28, 28), and their labels, int64 (N,) in 0..9.

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        root: see `find`.

    Raises:
        DataError: the files are missing or damaged, or `split` is neither of the two.
    """
    if split not in _PREFIX:
        raise DataError(f"Fashion-MNIST has the splits train and test, got {split!r}")
    folder = find(root)
    images = read_idx(_file(folder, f"{_PREFIX[split]}-images-idx3-ubyte"))
    labels = read_idx(_file(folder, f"{_PREFIX[split]}-labels-idx1-ubyte"))
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(f"{folder}: {split} images {images.shape} and labels {labels.shape} do not belong together")
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{folder}: {split} labels go up to {labels.max()}, expected 0 to {len(CLASS_NAMES) - 1}")
    return images, labels.astype(np.int64)


def captions(labels: np.ndarray) -> list[str]:
    """Return captions of the first N images of a split, from their labels (N,) in 0..9; templates are used in turn."""
    return [TEMPLATES[i % len(TEMPLATES)].format(NOUNS[label]) for i, label in enumerate(labels)]


def cache_home() -> Path:
    """Return the cache folder: $TOK1D_CACHE or ~/.cache/tok1d."""
    return Path(os.environ.get("TOK1D_CACHE") or Path.home() / ".cache" / "tok1d")


def find(root: str | Path | None = None, cache: Path | None = None) -> Path:
    """Return the folder with the four files, downloading them to the cache if necessary.

    Args:
        root: folder of the files, plain or gzipped, directly or in torchvision's layout. If it is given, no other
            place is tried.
        cache: default: see `cache_home`. It is filled by torchvision's download, or else from the Debian package.

    Raises:
        DataError: the files are not in `root`, or every source failed; the message lists all of them.
    """
    if root is not None:
        if found := _locate(Path(root)):
            return found
        missing = [name for name in _FILES if not _file(Path(root), name).is_file()]
        raise DataError(
            f"{root}: no Fashion-MNIST there: expected {', '.join(_FILES)} (plain or .gz), missing {', '.join(missing)}"
        )
    home = cache or cache_home()
    if found := _locate(home / "fashion-mnist"):
        return found
    if not cache_writable():
        raise DataError(f"Fashion-MNIST is not in {home} yet")
    failures = []
    for name, fetch in (("torchvision", _from_torchvision), (f"Debian package {_PACKAGE}", _from_debian)):
        print(f"Fashion-MNIST: downloading with {name} ...", file=sys.stderr, flush=True)
        try:
            return _fill(home, fetch)
        except _NETWORK_ERRORS as error:
            failures.append(f"{name}: {debian.process_reason(error)}")
            print(f"Fashion-MNIST: {failures[-1]}", file=sys.stderr, flush=True)
    raise DataError(
        "Fashion-MNIST not found: give a folder with its four idx files, or allow torchvision's download, or run where"
        f" apt-get can fetch the package {_PACKAGE} ({'; '.join(failures)})"
    )


def here() -> Path | None:
    """The folder with the four files in the cache, without a download; None if they are not there."""
    return _locate(cache_home() / "fashion-mnist")


def has_files(folder: str | Path) -> bool:
    """Whether a folder has one of the four files, or is empty."""
    folder = Path(folder)
    places = (folder / layout for layout in _LAYOUTS)
    return not any(folder.iterdir()) or any(_file(place, name).is_file() for place in places for name in _FILES)


def _file(folder: Path, name: str) -> Path:
    """Return the path of the plain file if it exists, else of the gzipped one."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _locate(folder: Path) -> Path | None:
    places = (folder / layout for layout in _LAYOUTS)
    return next((place for place in places if all(_file(place, name).is_file() for name in _FILES)), None)


def _fill(home: Path, fetch: Callable[[Path], None]) -> Path:
    """Download to a temporary folder next to the cache, check the files, and move them into the cache at once."""
    target = home / "fashion-mnist"
    try:
        home.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".fashion-mnist-", dir=home))
    except OSError as error:
        raise DataError(
            f"{home}: cannot write to this cache folder ({error.strerror}): set TOK1D_CACHE to a writable one"
        ) from error
    try:
        fetch(work)
        found = _locate(work)
        if found is None:
            raise DataError("the four files are not part of the download")
        complete = work / "complete"
        complete.mkdir()
        for name in _FILES:
            read_idx(_file(found, name))
            os.replace(_file(found, name), complete / _file(found, name).name)
        if _locate(target) is None:  # else another process was faster
            shutil.rmtree(target, ignore_errors=True)
            os.replace(complete, target)
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_torchvision(work: Path) -> None:
    # A process of its own can be stopped after a time limit, and its socket timeout does not affect this process.
    code = (
        "import socket, sys; socket.setdefaulttimeout(10); from torchvision.datasets import FashionMNIST;"
        " FashionMNIST(sys.argv[1], download=True)"
    )
    debian.run([sys.executable, "-c", code, str(work)], work, timeout=120)


def _from_debian(work: Path) -> None:
    debian.fetch_package(_PACKAGE, work, "Fashion-MNIST")


def _main() -> int:
    try:
        print(f"Fashion-MNIST is in {find()}")
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())

"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): our own idx reader, and three ways to find the files."""

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

from tok1d.data.records import writing
from tok1d.errors import DataError

CLASS_NAMES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
# For captions: what an image of each class shows, and sentences that say so.
NOUNS = [
    *("a T-shirt", "a pair of trousers", "a pullover", "a dress", "a coat"),
    *("a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot"),
]
TEMPLATES = ["a photo of {}", "a grey picture of {}", "{} on a black background", "a small photo of {}, nothing else"]
_PREFIX = {"train": "train", "test": "t10k"}
_FILES = [f"{prefix}-{kind}" for prefix in _PREFIX.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_PACKAGE = "dataset-fashion-mnist"
# The folder itself, torchvision's two layouts, and the Debian package's.
_LAYOUTS = ("", "raw", "FashionMNIST/raw", "usr/share/datasets/fashion-mnist")
_NETWORK_ERRORS = (OSError, subprocess.SubprocessError, DataError)


def read_idx(path: str | Path) -> np.ndarray:
    """Read an idx file, gzipped or plain, into an array of the shape and type that its header states.

    Raises DataError naming the file where it is missing, not an idx file, or of another length than stated.
    """
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an idx file: {error}") from error
    dtype = _IDX_TYPES.get(data[2]) if len(data) >= 4 and data[:2] == b"\0\0" else None
    if dtype is None:
        raise DataError(f"{path}: not an idx file: expected to begin 00 00 08 .., got {data[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4 : start if len(data) >= start else 4], ">u4"))
    expected = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if len(shape) != data[3] or len(data) != expected:
        raise DataError(f"{path}: {len(data)} bytes where its header {shape} asks for {expected}: fetch it again")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))


def load(split: str = "train", root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split, uint8 (N, 28, 28), and their labels, int64 (N,) in 0..9.

    `split` is "train" (60,000) or "test" (10,000); `root` as in `find`. Raises DataError.
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
    """Captions of a split's first images, from their labels (N,) in 0..9; the templates take turns."""
    return [TEMPLATES[i % len(TEMPLATES)].format(NOUNS[label]) for i, label in enumerate(labels)]


def cache_home() -> Path:
    """The folder that fetched data are kept in: $TOK1D_CACHE or ~/.cache/tok1d."""
    return Path(os.environ.get("TOK1D_CACHE") or Path.home() / ".cache" / "tok1d")


def find(root: str | Path | None = None, cache: Path | None = None) -> Path:
    """Return the folder of the four files: `root`, or else the cache, filled on first use.

    A given `root` may hold the files itself or in torchvision's layout, gzipped or plain, and is never left for
    another source. The cache is `cache`, by default `$TOK1D_CACHE` or `~/.cache/tok1d`; it is filled by torchvision's
    download or the Debian package, whichever works first. Raises DataError that says all ways.
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
    if not writing():
        raise DataError(f"Fashion-MNIST is not in {home} yet")
    failures = []
    for name, fetch in (("torchvision", _from_torchvision), (f"Debian package {_PACKAGE}", _from_debian)):
        print(f"Fashion-MNIST: fetching by {name} ...", file=sys.stderr, flush=True)
        try:
            return _fill(home, fetch)
        except _NETWORK_ERRORS as error:
            failures.append(f"{name}: {_brief(error)}")
            print(f"Fashion-MNIST: {failures[-1]}", file=sys.stderr, flush=True)
    raise DataError(
        "Fashion-MNIST not found: give a folder with its four idx files, or allow torchvision's download, or run where"
        f" apt-get can fetch the package {_PACKAGE} ({'; '.join(failures)})"
    )


def _file(folder: Path, name: str) -> Path:
    """Return the plain file, or else where its gzipped form is or would be."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _locate(folder: Path) -> Path | None:
    places = (folder / layout for layout in _LAYOUTS)
    return next((place for place in places if all(_file(place, name).is_file() for name in _FILES)), None)


def _fill(home: Path, fetch: Callable[[Path], None]) -> Path:
    """Fetch into a temporary folder beside the cache, check the files, and move them in place at once."""
    target = home / "fashion-mnist"
    try:
        home.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".fashion-mnist-", dir=home))
    except OSError as error:
        raise DataError(
            f"{home}: cannot be written ({error.strerror}): set TOK1D_CACHE to a folder that can"
        ) from error
    try:
        fetch(work)
        found = _locate(work)
        if found is None:
            raise DataError("the four files are not among what was fetched")
        complete = work / "complete"
        complete.mkdir()
        for name in _FILES:
            read_idx(_file(found, name))
            os.replace(_file(found, name), complete / _file(found, name).name)
        if _locate(target) is None:  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            os.replace(complete, target)
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_torchvision(work: Path) -> None:
    # In a process of its own: an upper bound on the time whatever stalls, and no change to this process's sockets.
    code = (
        "import socket, sys; socket.setdefaulttimeout(10); from torchvision.datasets import FashionMNIST;"
        " FashionMNIST(sys.argv[1], download=True)"
    )
    _run([sys.executable, "-c", code, str(work)], work, timeout=120)


def _from_debian(work: Path) -> None:
    """Fetch and unpack the Debian package without root: apt with private state and cache folders."""
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise DataError(f"no {' and no '.join(missing)} here")
    state, cache = work / "apt-state", work / "apt-cache"
    for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
        folder.mkdir(parents=True)  # apt does not make them itself
    private_cache = [f"Dir::Cache={cache}", f"Dir::Cache::archives={cache / 'archives'}"]
    private_state = [f"Dir::State={state}", f"Dir::State::lists={state / 'lists'}"]
    # As root, apt would otherwise fetch as user _apt, who may not write here; package hashes are checked all the same.
    quick = ["APT::Sandbox::User=root", "Acquire::Retries=1", "Acquire::Languages=none"]
    quick += ["Acquire::http::Timeout=15", "Acquire::https::Timeout=15"]
    # apt's binary caches cost 60 MB of writing and are of no use for one package.
    quick += ["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]

    def apt(*arguments: str, options: list[str]) -> None:
        flags = [part for option in (*private_cache, *quick, *options) for part in ("-o", option)]
        _run(["apt-get", "-q", *flags, *arguments], work, timeout=300)

    try:
        apt("download", _PACKAGE, options=[])
    except (OSError, subprocess.SubprocessError):
        # The system's lists are empty or out of date: refresh into private ones. A broken third-party source
        # makes `update` fail though Debian's own lists came, so only the download decides.
        try:
            apt("update", options=private_state)
        except subprocess.CalledProcessError as error:
            print(f"Fashion-MNIST: apt-get update: {_brief(error)}", file=sys.stderr, flush=True)
        apt("download", _PACKAGE, options=private_state)
    archives = list(work.glob(f"{_PACKAGE}_*.deb"))
    if not archives:
        raise DataError(f"apt-get left no {_PACKAGE} package")
    _run(["dpkg", "-x", str(archives[0]), str(work)], work, timeout=120)
    archives[0].unlink()


def _run(command: list[str], folder: Path, timeout: float) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", timeout=timeout, check=True,
    )  # fmt: skip


def _brief(error: BaseException) -> str:
    """Tell in one line why a way failed: the last line that the command printed."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        return lines[-1] if lines else f"{Path(error.cmd[0]).name} ended with {error.returncode}"
    return str(error)


def _main() -> int:
    try:
        print(f"Fashion-MNIST lies in {find()}")
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())

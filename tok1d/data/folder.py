"""Image sets in folders: listing files, class folders, and the check for broken files."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tok1d.data.broken_files import broken_reason, scan_file
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.lazy import LazyImages, OnBroken, decoding_pool
from tok1d.data.prints import Kind, hash_file
from tok1d.data.scan_cache import cache_writable, read_scan, stat_text, write_scan
from tok1d.data.splits import spread
from tok1d.data.transforms import Transform
from tok1d.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Folders with fewer images are scanned for broken files each time they are opened; scans of others are cached.
SCAN_CACHED_FROM = 1000


def list_images(root: str | Path) -> list[str]:
    """Return the images below `root` as relative paths with forward slashes, sorted by their parts.

    Hidden files and folders are left out; symbolic links are followed.

    Raises:
        DataError: `root` is not a folder or contains no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}: expected a folder of images")
    files: list[str] = []
    above: dict[str, set[str]] = {}  # real paths of a folder and of all folders that contain it
    for place, folders, names in os.walk(root, followlinks=True):
        real, outer = os.path.realpath(place), above.get(os.path.dirname(place), set())
        above[place] = outer | {real}
        # Class folders are often links, so links are followed, except to a folder that contains them.
        folders[:] = [] if real in outer else [name for name in folders if not name.startswith(".")]
        if real not in outer:
            images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            files.extend(Path(place, name).relative_to(root).as_posix() for name in images)
    if not files:
        raise DataError(f"{root}: no images found: expected {', '.join(SUFFIXES)} files, in class folders or directly")
    return sorted(files, key=lambda file: file.split("/"))


def first_image(root: str | Path) -> Path | None:
    """Return some image below a folder, or None; symbolic links to folders are not followed."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                return Path(place, name)
    return None


def classes_of(root: str | Path, files: Sequence[str], *, captioned: bool = False) -> list[str]:
    """Return the sorted class names: the first folder of each path, or the name of `root` if there are no folders.

    Args:
        captioned: the images have captions. Images inside and outside of folders may then be mixed, as one class.

    Raises:
        DataError: some images are in class folders and some are not, and they are not `captioned`.
    """
    loose = [file for file in files if "/" not in file]
    if not loose:
        return sorted({file.split("/")[0] for file in files})
    if len(loose) < len(files) and not captioned:
        raise DataError(
            f"{root}: both class folders and loose images ({loose[0]}, ...): move the loose ones into a class"
        )
    return [Path(root).resolve().name]


class FolderImages(LazyImages):
    """Images in class folders, in which files may be nested to any depth, or directly in a folder (one class).

    Args:
        on_broken: "skip" leaves out the files that a scan finds to be broken and lists them in `broken`; "stop" raises
            DataError for the first one. Files that fail only when they are decoded: see `LazyImages`.
        files: paths relative to `root`; default: all images below it, see `list_images`.
        class_names: names of the class folders; default: see `classes_of`.
        limit: number of files to use, at even distances in the sorted list, so that all classes occur.
        captions: caption by file, for some or all files. Images with captions need no class folders.
        workers: see `LazyImages`.

    Raises:
        DataError: no readable images, or files without a class; see also `list_images` and `classes_of`.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Transform,
        on_broken: OnBroken = "skip",
        *,
        files: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        limit: int | None = None,
        captions: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> None:
        self.root = Path(root)
        listed = list(files if files is not None else list_images(root))
        names = list(class_names or classes_of(root, listed, captioned=captions is not None))
        listed = spread(listed, limit)
        super().__init__(transform, on_broken, names, np.zeros(0, np.int64), [], workers)
        self.files = self._without_broken(listed)
        if not self.files:
            why = f"all {len(listed)} images are broken" if listed else "no images chosen"
            first = f" (the first, {listed[0]}: {self.broken[0][1]})" if listed else ""
            raise DataError(f"{self.root}: {why}{first}: nothing to read")
        self.labels = np.zeros(len(self.files), dtype=np.int64)
        if len(self.class_names) > 1:
            label_of = {name: label for label, name in enumerate(self.class_names)}
            self.labels[:] = [label_of[file.split("/")[0]] for file in self.files]
        self.captions = [(captions or {}).get(file, "") for file in self.files]

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def read(self, index: int) -> Path:
        return self.root / self.files[index]

    def _keys(self) -> list[str]:
        return self.files

    def _sources(self) -> list[Path]:
        return [self.root / file for file in self.files]

    def _hashes(self, kind: Kind) -> Iterable[bytes]:
        return decoding_pool(self.workers).map(partial(hash_file, kind=kind), self._sources())

    def _older_fingerprint(self) -> str:
        digest = hashlib.sha256(self.transform.fingerprint().encode())
        for file, label in zip(self.files, self.labels, strict=True):
            digest.update(os.fsencode(f"\n{label} {os.path.getsize(self.root / file)} {file}"))
        return digest.hexdigest()[:16]

    def _without_broken(self, files: list[str]) -> list[str]:
        paths = [self.root / file for file in files]
        if len(files) < SCAN_CACHED_FROM:
            found = dict(zip(files, decoding_pool(self.workers).map(broken_reason, paths), strict=True))
        else:
            found = _cached_scan(files, paths, self.workers)
        for file, reason in found.items():
            if reason is not None:
                self._record_broken(str(self.root / file), reason)
        return [file for file in files if found[file] is None]


def _cached_scan(files: list[str], paths: list[Path], workers: int | None) -> dict[str, str | None]:
    """Return why each file is broken, or None: from the cached scan of equal files, else from a new one.

    Files are equal if `stat_text` is. A new scan is cached if all its results are permanent.
    While the cache is read-only no scan is made, and broken files are found when they are decoded.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(f"\n{stat_text(path)}"))
    record = cache_home() / "checked" / f"{digest.hexdigest()[:24]}.json"
    broken = read_scan(record)
    if not isinstance(broken, dict):
        scanned = list(decoding_pool(workers).map(scan_file, paths)) if cache_writable() else []
        broken = {file: reason for file, (reason, _) in zip(files, scanned) if reason is not None}
        if all(permanent for _, permanent in scanned):
            write_scan(record, broken)
    return {file: broken.get(file) for file in files}

"""A folder of images on disk: listing, and the check for broken files."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tok1d.data.decoded import DecodedImages, OnBroken, report_broken, threads
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.records import keep, recall, writing
from tok1d.data.splits import spread
from tok1d.data.transforms import MAX_PIXELS, Transform, reason
from tok1d.errors import DataError

__all__ = ["SUFFIXES", "FolderImages", "OnBroken", "classes_of", "list_images", "report_broken"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CHECKED_BELOW = 1000  # images of a folder that are looked through anew at every start


def list_images(root: str | Path) -> list[str]:
    """Return the images below `root` as relative posix paths, sorted by class and name, hidden ones left out.

    Raises DataError where `root` is not a folder or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}: expected a folder of images")
    files: list[str] = []
    above: dict[str, set[str]] = {}  # of a folder, the real places of all folders that it lies in
    for place, folders, names in os.walk(root, followlinks=True):
        real, outer = os.path.realpath(place), above.get(os.path.dirname(place), set())
        above[place] = outer | {real}
        # Links to folders are followed (class folders often are links), circles are not.
        folders[:] = [] if real in outer else [name for name in folders if not name.startswith(".")]
        if real not in outer:
            images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            files.extend(Path(place, name).relative_to(root).as_posix() for name in images)
    if not files:
        raise DataError(f"{root}: no images there: expected {', '.join(SUFFIXES)} files, in class folders or directly")
    return sorted(files, key=lambda file: file.split("/"))


def first_image(root: str | Path) -> Path | None:
    """Some image below a folder, or None; links to folders are not followed."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                return Path(place, name)
    return None


def classes_of(root: str | Path, files: Sequence[str], *, captioned: bool = False) -> list[str]:
    """Return the sorted class names: the first folders of the paths, or the root's own name for a flat folder.

    Raises DataError where class folders and loose images stand side by side; `captioned` images are then one class.
    """
    loose = [file for file in files if "/" not in file]
    if not loose:
        return sorted({file.split("/")[0] for file in files})
    if len(loose) < len(files) and not captioned:
        raise DataError(
            f"{root}: both class folders and loose images ({loose[0]}, ...): move the loose ones into a class"
        )
    return [Path(root).resolve().name]


def broken_reason(path: str | Path) -> str | None:
    """Tell why an image file is broken, or None, reading as little of it as its format allows."""
    return _look(path)[0]


def _look(path: str | Path) -> tuple[str | None, bool]:
    """As `broken_reason`, and whether the file itself is to blame: a disk or a right may be there again tomorrow."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are read", True
            image.verify()
        if not _looks_complete(path):
            with Image.open(path) as image:
                image.load()
    except MemoryError:
        raise
    except Exception as error:  # see `decode_image`
        return reason(error), getattr(error, "errno", None) is None
    return None, True


def _looks_complete(path: str | Path) -> bool:
    """Check the end of a JPEG, which `verify` does not read; of a PNG or WebP it reads the whole."""
    with open(path, "rb") as file:
        head = file.read(3)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
        return head != b"\xff\xd8\xff" or file.read().rstrip(b"\0").endswith(b"\xff\xd9")


class FolderImages(DecodedImages):
    """Images in a folder of class folders (classes sorted, files nested at will), or in a flat folder: one class.

    `on_broken="skip"` leaves broken files out and lists them in `broken` as (path, reason); "stop" raises DataError
    naming the first one. A file that only fails when it is decoded is replaced by the next good one. `files`
    (relative paths) and `class_names` choose a part of the folder; `limit` takes that many, spread evenly over the
    sorted list so that every class is met. `captions` by file, of some or all of them, make them captioned images,
    which need no class folders; `self.captions` holds one an image, "" where there is none.
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

    def fingerprint(self) -> str:
        """Return 16 hex digits of the file names, sizes and labels and of the transform (pixels are not read)."""
        digest = hashlib.sha256(self.transform.fingerprint().encode())
        for file, label in zip(self.files, self.labels, strict=True):
            digest.update(os.fsencode(f"\n{label} {os.path.getsize(self.root / file)} {file}"))
        return digest.hexdigest()[:16]

    def _without_broken(self, files: list[str]) -> list[str]:
        paths = [self.root / file for file in files]
        if len(files) < CHECKED_BELOW:
            found = dict(zip(files, threads(self.workers).map(broken_reason, paths), strict=True))
        else:
            found = _checked(files, paths, self.workers)
        for file, why in found.items():
            if why is not None:
                self._report(str(self.root / file), why)
        return [file for file in files if found[file] is None]


def _checked(files: list[str], paths: list[Path], workers: int | None) -> dict[str, str | None]:
    """Why each file is broken, or None, as the last look at equal files (names, sizes, times) found; else by a look.

    What was found is kept in the cache folder, so that a large folder is looked through once, not at every start.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            digest.update(os.fsencode(f"\n{stat.st_size} {stat.st_mtime_ns} {path.absolute()}"))
        except OSError:
            digest.update(os.fsencode(f"\ngone {path.absolute()}"))
    record = cache_home() / "checked" / f"{digest.hexdigest()[:24]}.json"
    broken: dict[str, str] | None = recall(record)
    if not isinstance(broken, dict):
        # A look at every file pays where it is remembered; else the images that are read tell themselves.
        looked = list(threads(workers).map(_look, paths)) if writing() else []
        broken = {file: why for file, (why, _) in zip(files, looked) if why is not None}
        if all(lasts for _, lasts in looked):
            keep(record, broken)
    return {file: broken.get(file) for file in files}

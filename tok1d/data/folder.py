"""A folder of images on disk: listing, the check for broken files, and batches decoded by threads."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tok1d.data.order import uniforms
from tok1d.data.transforms import DECODE_ERRORS, MAX_PIXELS, Transform, decode_image, reason
from tok1d.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OnBroken = Literal["stop", "skip"]


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    # PIL decodes and resizes outside the interpreter lock, so threads are enough.
    return ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1), thread_name_prefix="tok1d-decode")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: the child makes its own
    os.register_at_fork(after_in_child=_threads.cache_clear)


def list_images(root: str | Path) -> list[str]:
    """Return the images below `root` as relative posix paths, sorted by class and name, hidden ones left out.

    Raises DataError where `root` is not a folder or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}: expected a folder of images")
    files: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        # Links to folders are followed (class folders often are links), circles are not.
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            files.extend(Path(place, name).relative_to(root).as_posix() for name in images)
        seen.add(real)
    if not files:
        raise DataError(f"{root}: no images there: expected {', '.join(SUFFIXES)} files, in class folders or directly")
    return sorted(files, key=lambda file: file.split("/"))


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
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are read"
            image.verify()
        if not _looks_complete(path):
            with Image.open(path) as image:
                image.load()
    except DECODE_ERRORS as error:
        return reason(error)
    return None


def _looks_complete(path: str | Path) -> bool:
    """Check the end of a JPEG, which `verify` does not read; of a PNG or WebP it reads the whole."""
    with open(path, "rb") as file:
        head = file.read(3)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
        return head != b"\xff\xd8\xff" or file.read().rstrip(b"\0").endswith(b"\xff\xd9")


class FolderImages:
    """Images in a folder of class folders (classes sorted, files nested at will), or in a flat folder: one class.

    `on_broken="stop"` raises DataError naming the first broken file; "skip" leaves broken files out and lists them in
    `broken` as (path, reason). A file that only fails when it is decoded is replaced by the next good one. `files`
    (relative paths) and `class_names` choose a part of the folder; `limit` takes that many, spread evenly over the
    sorted list so that every class is met. `captions` by file, of some or all of them, make them captioned images,
    which need no class folders; `self.captions` holds one an image, "" where there is none.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Transform,
        on_broken: OnBroken = "stop",
        *,
        files: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        limit: int | None = None,
        captions: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.transform, self.on_broken = Path(root), transform, on_broken
        listed = list(files if files is not None else list_images(root))
        self.class_names = list(class_names or classes_of(root, listed, captioned=captions is not None))
        if limit is not None and limit < len(listed):
            listed = [listed[i * len(listed) // limit] for i in range(limit)]
        self._broken: dict[str, str] = {}
        self.files = self._without_broken(listed)
        if not self.files:
            why = f"all {len(listed)} images are broken" if listed else "no images chosen"
            raise DataError(f"{self.root}: {why}: nothing to read")
        self.labels = np.zeros(len(self.files), dtype=np.int64)
        if len(self.class_names) > 1:
            label_of = {name: label for label, name in enumerate(self.class_names)}
            self.labels[:] = [label_of[file.split("/")[0]] for file in self.files]
        self.captions = [(captions or {}).get(file, "") for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The broken files met so far, as (path, reason)."""
        return list(self._broken.items())

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) in [0, 1] and labels (B,) int64; the same arguments give the same pixels.

        A transform of V views gives V rows an image, one after the other.
        """
        return self.captioned_batch(indices, seed=seed, epoch=epoch)[:2]

    def captioned_batch(
        self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, with the caption of every row."""
        draws = uniforms(3, seed=seed, epoch=epoch, indices=indices)
        loaded = list(_threads().map(self._load, [int(i) for i in indices], draws))
        images = torch.stack([image for image, _ in loaded]).flatten(0, -4).float().div_(255)
        rows = np.repeat([used for _, used in loaded], self.transform.num_views)
        return images, torch.from_numpy(self.labels[rows]), [self.captions[row] for row in rows]

    def fingerprint(self) -> str:
        """Return 16 hex digits of the file names, sizes and labels and of the transform (pixels are not read)."""
        digest = hashlib.sha256(self.transform.fingerprint().encode())
        for file, label in zip(self.files, self.labels, strict=True):
            digest.update(os.fsencode(f"\n{label} {os.path.getsize(self.root / file)} {file}"))
        return digest.hexdigest()[:16]

    def _without_broken(self, files: list[str]) -> list[str]:
        good = []
        for file, why in zip(files, _threads().map(broken_reason, [self.root / file for file in files]), strict=True):
            if why is None:
                good.append(file)
                continue
            self._report(str(self.root / file), why)
        return good

    def _report(self, path: str, why: str) -> None:
        if self.on_broken == "stop":
            raise DataError(
                f"{path}: broken image: {why}: mend or remove it, or choose data.on_broken=skip "
                "(tok1d train) or --on-broken skip (other commands)"
            )
        self._broken.setdefault(path, why)

    def _load(self, index: int, draws: np.ndarray) -> tuple[Tensor, int]:
        """Return an image (or its views) and the index it came from: another than asked for if that fails to decode."""
        for used in (*range(index, len(self)), *range(index)):
            path = self.root / self.files[used]
            try:
                return self.transform.apply(decode_image(path, self.transform.channels), draws), used
            except (DataError, ValueError) as error:
                self._report(str(path), str(error).removeprefix(f"{path}: "))
        raise DataError(f"{self.root}: no image there can be decoded")


def tell_broken(images: object) -> None:
    """Name on stderr the images of a set that could not be read and were skipped, and count them."""
    broken = getattr(images, "broken", [])
    for path, why in broken:
        print(f"skipped {path}: {why}", file=sys.stderr)
    if broken:
        print(f"skipped {len(broken)} broken images of {len(broken) + len(images)}", file=sys.stderr)  # type: ignore[arg-type]

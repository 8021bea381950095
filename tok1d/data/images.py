"""Image sets: in memory, and opened from an `ImageSource`."""

import copy
import hashlib
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tok1d.data import fashion_mnist
from tok1d.data.arrow import ArrowImages
from tok1d.data.base import ImageSet, Indices
from tok1d.data.captions import CLASS_SENTENCES, captions_of
from tok1d.data.folder import FolderImages, classes_of, first_image, list_images
from tok1d.data.lazy import LazyImages
from tok1d.data.order import uniforms
from tok1d.data.shards import ShardImages
from tok1d.data.source import DataName, ImageSource
from tok1d.data.splits import Split, is_test, split_folders
from tok1d.data.transforms import NUM_RANDOMS, Transform
from tok1d.errors import DataError

__all__ = [
    "ArrayImages",
    "FolderImages",
    "ImageSet",
    "ImageSource",
    "LazyImages",
    "at_size",
    "kind_of",
    "open_images",
    "prefetch",
    "without_train",
]

T = TypeVar("T")


class ArrayImages:
    """Images in memory.

    Args:
        images: uint8 (N, H, W) or (N, H, W, C).
        labels: (N,), indices into `class_names`.
        captions: N texts; default: "" for every image.

    Raises:
        DataError: the arrays do not match.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        transform: Transform,
        captions: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DataError(f"images: expected uint8 (N, H, W) or (N, H, W, C), got {images.dtype} {images.shape}")
        if labels.shape != (len(images),) or not len(images):
            raise DataError(f"labels: expected one for each of {len(images)} images (at least 1), got {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise DataError(f"labels: expected 0 to {len(class_names) - 1}, got {labels.min()} to {labels.max()}")
        if captions is not None and len(captions) != len(images):
            raise DataError(f"captions: expected one for each of {len(images)} images, got {len(captions)}")
        self.captions = list(captions) if captions is not None else [""] * len(images)
        self.images = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
        self.labels = labels.astype(np.int64)
        self.class_names = list(class_names)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) in [0, 1] and labels (B,), see `ImageSet.batch`."""
        indices = np.asarray(indices, dtype=np.int64)
        pixels = self._as_arrays(indices, seed, epoch) if self._crop_is_noop else self._by_pil(indices, seed, epoch)
        images = pixels.float().div_(255)
        if images.shape[1] < self.transform.channels:
            images = images.repeat(1, self.transform.channels, 1, 1)
        return images.contiguous(), torch.from_numpy(self.labels[indices].repeat(self.transform.num_views))

    def captioned_batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, followed by the caption of every row."""
        rows = np.repeat(np.asarray(indices, dtype=np.int64), self.transform.num_views)
        return *self.batch(indices, seed=seed, epoch=epoch), [self.captions[row] for row in rows]

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify pixels, labels and transform."""
        return hashlib.sha256(f"{self._contents} {self.transform.fingerprint()}".encode()).hexdigest()[:16]

    @cached_property
    def _contents(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.data)
        return digest.hexdigest()

    @property
    def _crop_is_noop(self) -> bool:
        channels = self.images.shape[3] if self.images.ndim == 4 else 1
        size = self.transform.inner
        plain = self.transform.num_views == 1 and self.transform.crop != "random_scale"
        return plain and self.images.shape[1:3] == (size, size) and channels in (1, self.transform.channels)

    def _as_arrays(self, indices: np.ndarray, seed: int, epoch: int) -> Tensor:
        """Transform a batch as one array: faster than PIL, but possible only if nothing is cropped or resized."""
        pixels = self.images[indices]
        if self.transform.flip:
            flipped = uniforms(NUM_RANDOMS, seed=seed, epoch=epoch, indices=indices)[:, 2] < 0.5
            pixels[flipped] = pixels[flipped, :, ::-1]
        batch = torch.from_numpy(pixels)
        return self.transform.border(batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2))

    def _by_pil(self, indices: np.ndarray, seed: int, epoch: int) -> Tensor:
        randoms = uniforms(NUM_RANDOMS, seed=seed, epoch=epoch, indices=indices)
        images = (Image.fromarray(self.images[index]) for index in indices)
        views = [self.transform.apply(image, numbers) for image, numbers in zip(images, randoms, strict=True)]
        return torch.stack(views).flatten(0, -4)


def open_images(source: ImageSource, split: Split) -> ArrayImages | LazyImages:
    """Open the "train" or the "test" split of a data set.

    A folder with subfolders train/ and test/ (or val/, validation/, ...) is split by them. In any other folder a hash
    of the relative path puts 5 % of the files into the test split, which does not change when files are added or
    removed. For shards and saved data sets see `ShardImages` and `ArrowImages`.

    Raises:
        DataError: the data are missing or broken, or the source has values that do not fit it.
        ConfigError: see `Transform`.
    """
    name, root, limit, captions = source.name, source.root, source.limit, source.captions
    if split not in ("train", "test"):
        raise DataError(f"split: expected train or test, got {split!r}")
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected at least 1 image, got {limit}")
    if name == "fashion_mnist":
        return _open_fashion_mnist(source, split)
    if name not in get_args(DataName):
        raise DataError(f"data set: expected {' or '.join(get_args(DataName))}, got {name!r}")
    if root is None:
        raise DataError(f"data set {name}: expected the path of its data, got none")
    if name != "folder":
        try:
            return ShardImages(source, split) if name == "webdataset" else ArrowImages(source, split)
        except ModuleNotFoundError as error:
            raise DataError(f"data.name={name} needs the package {error.name}: pip install 'tok1d[{name}]'") from None
    root = Path(root)
    place, files, class_names = _folder_split(root, split, captions is not None)
    prefix = "" if place == root else f"{place.name}/"
    return FolderImages(
        place,
        source.transform,
        source.on_broken,
        files=files,
        class_names=class_names,
        limit=limit,
        captions=None if captions is None else captions_of(root, prefix, files, captions),
        workers=source.workers,
    )


def _open_fashion_mnist(source: ImageSource, split: Split) -> ArrayImages:
    if source.captions not in (None, CLASS_SENTENCES):
        raise DataError(f"captions of fashion_mnist: expected {CLASS_SENTENCES} or none, got {source.captions!r}")
    images, labels = (array[: source.limit] for array in fashion_mnist.load(split, source.root))
    captions = fashion_mnist.captions(labels) if source.captions else None
    return ArrayImages(images, labels, fashion_mnist.CLASS_NAMES, source.transform, captions)


def kind_of(place: str) -> DataName:
    """Return which data set a command line's DATA argument names.

    "fashion_mnist" itself, a pattern or folder of tar shards, a folder written by `save_to_disk`, or else a folder of
    images.

    Raises:
        DataError: the folder contains both shards and images.
    """
    root = Path(place)
    if place == "fashion_mnist":
        return "fashion_mnist"
    if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
        return "huggingface"
    if place.endswith(".tar") and not root.is_dir():
        return "webdataset"
    shard = next((found for shape in ("*.tar", "*/*.tar") for found in root.glob(shape)), None)
    if shard is None:
        return "folder"
    if (image := first_image(root)) is not None:
        raise DataError(f"{place}: expected images or shards, got both {image} and {shard}: move one of them elsewhere")
    return "webdataset"


def at_size(images: ArrayImages | LazyImages, size: int) -> ArrayImages | LazyImages:
    """Return the same images with squares of `size` pixels; the data are shared, border and augmentation are equal."""
    other = copy.copy(images)
    other.transform = replace(images.transform, size=size)
    return other


def _folder_split(root: Path, split: Split, captioned: bool) -> tuple[Path, list[str], list[str]]:
    """Return the folder of a split, its files relative to this folder, and the class names of all splits.

    Images with captions are one class if any of them is not in a class folder.
    """
    files = list_images(root)
    parts = {file.split("/")[0] for file in files}
    if (pair := split_folders(parts)) is not None:
        inside = {part: [file[len(part) + 1 :] for file in files if file.startswith(f"{part}/")] for part in pair}
        names = sorted(
            {name for part, within in inside.items() for name in classes_of(root / part, within, captioned=captioned)}
        )
        flat = [part for part, within in inside.items() if any("/" not in file for file in within)]
        if len(flat) == 1 and not captioned:
            raise DataError(
                f"{root}: {flat[0]}/ has no class folders, but the other split has: use them in both or in neither"
            )
        part = pair[split == "test"]
        return root / part, inside[part], [root.resolve().name] if flat else names
    root, files = without_train(root, files)
    chosen = [file for file in files if is_test(file) == (split == "test")]
    if not chosen:
        raise DataError(f"{root}: {split} split of {len(files)} images is empty: make train/ and test/ folders in it")
    return root, chosen, classes_of(root, files, captioned=captioned)


def without_train(root: Path, files: list[str]) -> tuple[Path, list[str]]:
    """Return (root, files), or if all files are in train/, that folder and the files relative to it.

    Such a folder train/ is not a class; there is no test folder, so the test images are chosen among these files.
    """
    if {file.split("/")[0] for file in files} == {"train"}:
        return root / "train", [file.removeprefix("train/") for file in files]
    return root, files


def prefetch(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Run an iterator in a background thread, up to `depth` items ahead.

    Its exceptions are raised to the consumer, after the items before them. Closing the returned generator ends the
    thread after the item that it is computing.
    """
    ready: SimpleQueue[tuple[str, T | BaseException | None]] = SimpleQueue()
    slots = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while slots.acquire() and not stopped.is_set():
                ready.put(("item", next(iterator)))
        except StopIteration:
            ready.put(("end", None))
        except BaseException as error:
            ready.put(("error", error))

    thread = threading.Thread(target=work, name="tok1d-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if isinstance(value, BaseException) and kind == "error":
                raise value
            slots.release()
            yield value  # type: ignore[misc]  # an "item" is a T
    finally:
        stopped.set()
        slots.release()
        thread.join(timeout=10)

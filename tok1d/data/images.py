"""Image sets: in memory, and opened from an `ImageSource`."""

import copy
import hashlib
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tok1d.data import emoji, fashion_mnist
from tok1d.data.arrow import ArrowImages
from tok1d.data.base import ImageSet, Indices
from tok1d.data.captions import CLASS_SENTENCES, captions_of, without_captions
from tok1d.data.classes import order_note
from tok1d.data.folder import FolderImages
from tok1d.data.layout import folder_part
from tok1d.data.lazy import LazyImages
from tok1d.data.listing import first_image, list_folder
from tok1d.data.order import uniforms
from tok1d.data.shards import COMPRESSED, ShardImages
from tok1d.data.source import BY_NAME, DataName, ImageSource
from tok1d.data.splits import Split, spread
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
        self.notes: list[str] = []  # lines on what is left out
        self.shuffled = True  # whether the images are in random order

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
    """Open the "train" or the "test" split of a data set, or "all" images.

    Names of folders or shards state the split, or else a hash of the images' names, see `splits`. What else belongs to
    the data is in the attributes `left_out` and `notes` of the set.

    Raises:
        DataError: the data are missing or broken, or the source has values that do not fit it.
        ConfigError: see `Transform`.
    """
    name, root, limit = source.name, source.root, source.limit
    if split not in get_args(Split):
        raise DataError(f"split: expected train, test or all, got {split!r}")
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected at least 1 image, got {limit}")
    if name == "fashion_mnist":
        return _open_fashion_mnist(source, split)
    if name == "emoji":
        return _open_emoji(source, split)
    if name not in get_args(DataName):
        raise DataError(f"data set: expected {' or '.join(get_args(DataName))}, got {name!r}")
    if root is None:
        raise DataError(f"data set {name}: expected the path of its data, got none")
    if name == "folder":
        images: LazyImages = _open_folder(source, Path(root), split)
    else:
        try:
            images = ShardImages(source, split) if name == "webdataset" else ArrowImages(source, split)
        except ModuleNotFoundError as error:
            raise DataError(f"data.name={name} needs the package {error.name}: pip install 'tok1d[{name}]'") from None
    images.place = str(root)
    images.notes += [*order_note(images.class_names), *_without_images(images, split)]
    return images


def _open_folder(source: ImageSource, root: Path, split: Split) -> FolderImages:
    mixed = source.captions is not None or not source.needs_classes
    part = folder_part(root, split, mixed=mixed, order=source.class_order)
    found = None if source.captions is None else captions_of(root, part.prefix, part.files, source.captions)
    images = FolderImages(
        part.place,
        source.transform,
        source.on_broken,
        files=part.files,
        class_names=part.classes,
        class_of=part.class_of,
        limit=source.limit,
        captions=found,
        workers=source.workers,
    )
    images.how, images.notes = part.how, part.notes
    images.left_out = part.left_out
    if source.captions is not None:
        images.left_out = without_captions(part.left_out, list_folder(root).files, source.captions)
    return images


def _without_images(images: LazyImages, split: Split) -> list[str]:
    """A line on the classes of which a training has no image, if there are any."""
    counts = np.bincount(images.labels, minlength=images.num_classes)
    empty = [name for name, count in zip(images.class_names, counts) if not count]
    if not empty or split == "test":
        return []
    shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
    what = "training images" if split == "train" else "images"
    return [f"{len(empty)} of {images.num_classes} classes have no {what} that can be read: {shown}"]


def _open_fashion_mnist(source: ImageSource, split: Split) -> ArrayImages:
    if source.captions not in (None, CLASS_SENTENCES):
        raise DataError(f"captions of fashion_mnist: expected {CLASS_SENTENCES} or none, got {source.captions!r}")
    halves: list[Literal["train", "test"]] = ["train", "test"] if split == "all" else [split]
    loaded = [fashion_mnist.load(each, source.root) for each in halves]
    joined = loaded[0] if len(loaded) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*loaded))
    images, labels = (array[: source.limit] for array in joined)
    captions = fashion_mnist.captions(labels) if source.captions else None
    return ArrayImages(images, labels, fashion_mnist.CLASS_NAMES, source.transform, captions)


def _open_emoji(source: ImageSource, split: Split) -> ArrayImages:
    if source.captions not in (None, emoji.NAMES):
        raise DataError(f"captions of emoji: expected {emoji.NAMES} or none, got {source.captions!r}")
    transform, root = source.transform, None if source.root is None else str(source.root)
    images, labels, names, captions, notes = emoji.load(
        split, transform.inner, root=root, classes=source.classes or "groups"
    )
    chosen = spread(range(len(images)), source.limit or len(images))
    found = [captions[i] for i in chosen] if source.captions else None
    opened = ArrayImages(images[chosen], labels[chosen], names, transform, found)
    opened.notes, opened.shuffled = notes, False
    return opened


def kind_of(place: str) -> DataName:
    """Return which data set a command line's DATA argument names.

    "fashion_mnist" or "emoji" itself, a pattern or folder of tar shards, a folder written by `save_to_disk`, or else a
    folder of images.

    Raises:
        DataError: the folder contains both shards and images.
    """
    root = Path(place)
    if place in BY_NAME:
        return place  # type: ignore[return-value]
    if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
        return "huggingface"
    if not root.is_dir():
        return "webdataset" if place.lower().endswith((".tar", *COMPRESSED)) else "folder"
    near = [path for shape in ("*", "*/*") for path in root.glob(f"{shape}.[tT]*") if not path.name.startswith(".")]
    packed = next((path for shape in ("*", "*/*") for path in root.glob(f"{shape}.tar.*")), None)
    shard = next((path for path in near if path.suffix.lower() == ".tar"), None)
    packed = next((path for path in near if path.suffix.lower() in COMPRESSED), packed)
    image = first_image(root) if shard or packed else None
    if shard is not None and image is not None:
        raise DataError(f"{place}: expected images or shards, got both {image} and {shard}: move one of them elsewhere")
    return "webdataset" if image is None and (shard or packed) else "folder"


def at_size(images: ArrayImages | LazyImages, size: int) -> ArrayImages | LazyImages:
    """Return the same images with squares of `size` pixels; the data are shared, border and augmentation are equal."""
    other = copy.copy(images)
    other.transform = replace(images.transform, size=size)
    return other


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

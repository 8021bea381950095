"""Sets of images that answer whole batches, and the one way to open them by name."""

import copy
import hashlib
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tok1d.data import fashion_mnist
from tok1d.data.arrow import ArrowImages
from tok1d.data.captions import LABELS, captions_of
from tok1d.data.decoded import DecodedImages, OnBroken
from tok1d.data.folder import FolderImages, classes_of, first_image, list_images
from tok1d.data.order import uniforms
from tok1d.data.shards import ShardImages
from tok1d.data.splits import Split, is_test, split_folders
from tok1d.data.transforms import NUM_DRAWS, Crop, Transform
from tok1d.errors import DataError

__all__ = ["ArrayImages", "DecodedImages", "FolderImages", "ImageSet", "at_size", "open_images", "prefetch"]

T = TypeVar("T")
DataName = Literal["fashion_mnist", "folder", "webdataset", "huggingface"]


class ImageSet(Protocol):
    """Images with labels, read in batches; augmentation is a pure function of (seed, epoch, index)."""

    class_names: list[str]
    captions: list[str]  # one an image, "" where there is none

    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images, float (B, C, H, W) in [0, 1], and labels, int64 (B,); V rows an image for V views."""
        ...

    def captioned_batch(
        self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, with the caption of every row."""
        ...

    def fingerprint(self) -> str:
        """Return a stable hash of what the images are and of how they are transformed."""
        ...


class ArrayImages:
    """Images held in memory: uint8 (N, H, W) or (N, H, W, C), labels (N,) in range(len(class_names)), captions (N).

    Batches are gathered, flipped and converted as whole arrays where the crop has nothing to do. Raises DataError
    where the arrays do not fit together.
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

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) in [0, 1] and labels (B,) int64; the same arguments give the same pixels.

        A transform of V views gives V rows an image, one after the other.
        """
        indices = np.asarray(indices, dtype=np.int64)
        pixels = self._whole(indices, seed, epoch) if self._crop_is_noop else self._by_pil(indices, seed, epoch)
        images = pixels.float().div_(255)
        if images.shape[1] < self.transform.channels:
            images = images.repeat(1, self.transform.channels, 1, 1)
        return images.contiguous(), torch.from_numpy(self.labels[indices].repeat(self.transform.num_views))

    def captioned_batch(
        self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, with the caption of every row, "" where there is none."""
        rows = np.repeat(np.asarray(indices, dtype=np.int64), self.transform.num_views)
        return *self.batch(indices, seed=seed, epoch=epoch), [self.captions[row] for row in rows]

    def fingerprint(self) -> str:
        """Return 16 hex digits of the pixels, the labels and the transform."""
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

    def _whole(self, indices: np.ndarray, seed: int, epoch: int) -> Tensor:
        pixels = self.images[indices]
        if self.transform.flip:
            flipped = uniforms(NUM_DRAWS, seed=seed, epoch=epoch, indices=indices)[:, 2] < 0.5
            pixels[flipped] = pixels[flipped, :, ::-1]
        batch = torch.from_numpy(pixels)
        return self.transform.border(batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2))

    def _by_pil(self, indices: np.ndarray, seed: int, epoch: int) -> Tensor:
        draws = uniforms(NUM_DRAWS, seed=seed, epoch=epoch, indices=indices)
        images = (Image.fromarray(self.images[index]) for index in indices)
        views = [self.transform.apply(image, draw) for image, draw in zip(images, draws, strict=True)]
        return torch.stack(views).flatten(0, -4)


def open_images(
    name: DataName,
    split: Split,
    *,
    root: str | Path | None = None,
    image_size: int,
    channels: int,
    crop: Crop = "center",
    flip: bool = False,
    pad: int = 0,
    on_broken: OnBroken = "skip",
    limit: int | None = None,
    captions: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    workers: int | None = None,
) -> ArrayImages | DecodedImages:
    """Open one split of a data set: "fashion_mnist" (`root` optional), "folder", "webdataset" or "huggingface".

    A folder with train/ and test/ (or val/, validation/) subfolders is split by them; any other by a hash of the
    relative path, 5 % to test, so that a file stays in its split when others come or go. `limit` keeps the first that
    many of Fashion-MNIST; of a folder, whose files are sorted by class, that many spread evenly. `captions` are
    "labels" (of Fashion-MNIST: sentences that name the class), "files" or a file of a folder, see
    `captions.captions_of`; with them a folder needs no class folders; of webdataset a member, of huggingface a column.
    `image_key` and `label_key` are such too, see `ShardImages` and `ArrowImages`. `workers` threads decode.
    Raises DataError.
    """
    if split not in ("train", "test"):
        raise DataError(f"split: expected train or test, got {split!r}")
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected at least 1 image, got {limit}")
    transform = Transform(image_size, channels, crop, flip, pad)
    if name == "fashion_mnist":
        if captions not in (None, LABELS):
            raise DataError(f"captions of fashion_mnist: expected {LABELS} or none, got {captions!r}")
        images, labels = fashion_mnist.load(split, root)
        images, labels = images[:limit], labels[:limit]
        sentences = fashion_mnist.captions(labels) if captions else None
        return ArrayImages(images, labels, fashion_mnist.CLASS_NAMES, transform, sentences)
    if name not in get_args(DataName):
        raise DataError(f"data set: expected {' or '.join(get_args(DataName))}, got {name!r}")
    if root is None:
        raise DataError(f"data set {name}: expected the path of a folder of images, got none")
    if name != "folder":
        return _open_library(name, str(root), split, transform, on_broken, image_key=image_key, label_key=label_key,
                             captions=captions, limit=limit, workers=workers)  # fmt: skip
    root, captioned = Path(root), captions is not None
    place, files, class_names = _folder_split(root, split, captioned)
    prefix = "" if place == root else f"{place.name}/"
    text = captions_of(root, prefix, files, captions) if captions is not None else None
    return FolderImages(
        place, transform, on_broken, files=files, class_names=class_names, limit=limit, captions=text, workers=workers
    )


def _open_library(name: str, *arguments: Any, **options: Any) -> DecodedImages:
    """A set that another library wrote; raises DataError that says what to install where that library is missing."""
    try:
        if name == "webdataset":
            return ShardImages(*arguments, **options)

        return ArrowImages(*arguments, **options)
    except ModuleNotFoundError as error:
        raise DataError(f"data.name={name} needs the package {error.name}: pip install 'tok1d[{name}]'") from None


def kind_of(place: str) -> DataName:
    """Which data set a command's DATA is: "fashion_mnist", a pattern or folder of tar shards, a saved arrow folder, or
    else a folder of images. Raises DataError where a folder holds both shards and images."""
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


def at_size(images: ArrayImages | DecodedImages, size: int) -> ArrayImages | DecodedImages:
    """The same images cut to squares of `size` pixels, nothing read anew; border and augmentation stay."""
    other = copy.copy(images)
    other.transform = replace(images.transform, size=size)
    return other


def _folder_split(root: Path, split: Split, captioned: bool) -> tuple[Path, list[str], list[str]]:
    """Return a split's folder, its files relative to it, and the class names of all splits together.

    Captioned images are one class where any of them lies in no class folder.
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
            raise DataError(f"{root}: {flat[0]}/ has no class folders but its sibling has: give both or neither")
        part = pair[split == "test"]
        return root / part, inside[part], [root.resolve().name] if flat else names
    root, files = without_train(root, files)
    chosen = [file for file in files if is_test(file) == (split == "test")]
    if not chosen:
        raise DataError(f"{root}: {split} split of {len(files)} images is empty: make train/ and test/ folders in it")
    return root, chosen, classes_of(root, files, captioned=captioned)


def without_train(root: Path, files: list[str]) -> tuple[Path, list[str]]:
    """A folder and its files; where all lie in train/ that one: no class, its test part is yet to be chosen."""
    if {file.split("/")[0] for file in files} == {"train"}:
        return root / "train", [file.removeprefix("train/") for file in files]
    return root, files


def prefetch(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Run an iterator in a background thread, up to `depth` items ahead; its exceptions are raised here.

    Abandoning or closing the returned generator ends the thread after the item it is making.
    """
    ready: SimpleQueue[tuple[str, T | BaseException | None]] = SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while room.acquire() and not stopped.is_set():
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
            room.release()
            yield value  # type: ignore[misc]  # an "item" is a T
    finally:
        stopped.set()
        room.release()
        thread.join(timeout=10)

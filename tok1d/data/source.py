"""The description of an image data set, from which it is opened."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from tok1d.config.colour import WHITE
from tok1d.data.classes import ClassOrder
from tok1d.data.emoji import Classes
from tok1d.data.lazy import OnBroken
from tok1d.data.transforms import Crop, Transform
from tok1d.files import as_path

DataName = Literal["fashion_mnist", "emoji", "folder", "webdataset", "huggingface"]
BY_NAME = ("fashion_mnist", "emoji")  # data sets that need no path


@dataclass(frozen=True)
class ImageSource:
    """A data set and how its images are read; `images.open_images` opens one split of it.

    Args:
        name: "fashion_mnist", "emoji", "folder", "webdataset" (tar shards) or "huggingface" (of `save_to_disk`).
        root: the folder of the data; optional for "fashion_mnist" (see `fashion_mnist.find`) and "emoji" (the font,
            see `emoji_font.find`), and for "webdataset" also a pattern of shards (see `shards.find_shards`).
        image_size, channels, crop, flip, pad, background: see `transforms.Transform`.
        on_broken: see `lazy.LazyImages`.
        limit: number of images to use; None is all. They are the first images of Fashion-MNIST, and evenly spaced
            images of other sets.
        captions: "labels" for sentences with the class name ("fashion_mnist"), "names" ("emoji"), "files" or the
            path of a JSON Lines file ("folder", see `captions.captions_of`), a member such as txt ("webdataset"), or a
            column ("huggingface"); None is no captions.
        image_key: member ("webdataset", default: any image that is read) or column ("huggingface", default image) that
            holds the image.
        label_key: member (default cls) or column (default label) that holds the class.
        class_order: order of the class names, which gives their numbers: "sorted" by code points ("10" before "2"), or
            "natural" ("2" before "10"). Numbers in shards, and names in a saved data set, have their own order.
        classes: what the classes of "emoji" are, groups or subgroups; None is groups.
        needs_classes: whether the classes are read. If not, "folder" may have images both in class folders and beside
            them, which are then one class.
        workers: number of decoding threads, see `lazy.decoding_pool`.
    """

    name: DataName
    _: KW_ONLY
    root: str | Path | None = None
    image_size: int
    channels: int
    crop: Crop = "center"
    flip: bool = False
    pad: int = 0
    background: str = WHITE
    on_broken: OnBroken = "skip"
    limit: int | None = None
    captions: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    class_order: ClassOrder = "sorted"
    classes: Classes | None = None
    needs_classes: bool = True
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", as_path(str(self.root)))

    @property
    def transform(self) -> Transform:
        """The transform of the images; raises ConfigError for values out of range."""
        return Transform(self.image_size, self.channels, self.crop, self.flip, self.pad, self.background)

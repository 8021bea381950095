"""Opens images for a model, with its image size and channels, and with captions if it reads them."""

from __future__ import annotations

from pathlib import Path

from tok1d.config.condition import text_condition
from tok1d.data.broken import report_broken
from tok1d.data.captions import CLASS_SENTENCES, TEXT_FILES, captions_of
from tok1d.data.folder import FolderImages, list_images
from tok1d.data.images import ImageSet, kind_of, open_images, without_train
from tok1d.data.source import ImageSource
from tok1d.data.splits import split_folders
from tok1d.data.transforms import Transform
from tok1d.generators.base import Generator
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.card import padding_of, trained_with


def open_data(
    name: str,
    model: Tokenizer,
    *,
    split: str = "test",
    data_root: str | None = None,
    on_broken: str = "skip",
    size: int | None = None,
    generator: Generator | None = None,
) -> ImageSet:
    """Open the images of a data set with the size, the channels and the border of the tokenizer's training images.

    Images are not augmented. Unreadable images are named on stderr.

    Args:
        name: "fashion_mnist", or the path of a folder of images, of shards or of a saved data set, see `kind_of`.
        model: the tokenizer.
        size: side of the images in pixels; default: the tokenizer's.
        generator: a generator of the tokenizer's tokens; captions are opened if it or the tokenizer reads them.
    """
    config, kind = model.config, kind_of(name)
    same = trained_with(model, "name", None) == kind  # then the recipe's keys are valid
    source = ImageSource(
        kind,
        root=data_root if name == "fashion_mnist" else name,
        image_size=size or config.image_size,
        channels=config.channels,
        pad=padding_of(model),
        on_broken=on_broken,  # type: ignore[arg-type]
        captions=captions_for(name, model, *([] if generator is None else [generator])),
        image_key=trained_with(model, "image_key", None) if same else None,
        label_key=trained_with(model, "label_key", None) if same else None,
    )
    images = open_images(source, split)  # type: ignore[arg-type]
    report_broken(images)
    return images


def captions_for(data: str, *models: Tokenizer | Generator) -> str | None:
    """The field `captions` of `ImageSource` for these models; None if none of them reads captions.

    For a folder this is the caption file that the model's card names, if the folder has it, else one text file for each
    image.
    """
    reader = next((model for model in models if text_condition(model.config) is not None), None)
    if reader is None:
        return None
    if data == "fashion_mnist":
        return CLASS_SENTENCES
    known = trained_with(reader, "captions", TEXT_FILES)
    if (kind := kind_of(data)) != "folder":
        own = trained_with(reader, "name", None) == kind
        return known if own else {"webdataset": "txt"}.get(kind, "caption")
    return known if known not in (None, CLASS_SENTENCES) and (Path(data) / known).is_file() else TEXT_FILES


def open_own(
    path: str, model: Tokenizer, *, data_root: str | None = None, on_broken: str = "skip", size: int | None = None
) -> ImageSet:
    """Open images to reconstruct.

    The path is an image file, a folder without splits, of which all images are opened, or "fashion_mnist", shards, a
    saved data set or a folder with train/ and test/, of which the test split is opened. Captions, if the tokenizer
    reads them, are in text files with the names of the images.
    """

    if kind_of(path) != "folder":
        return open_data(path, model, data_root=data_root, on_broken=on_broken, size=size)
    transform = Transform(size or model.config.image_size, model.config.channels, pad=padding_of(model))
    where = Path(path)
    if where.is_dir() and split_folders(place.name for place in where.iterdir()) is not None:
        return open_data(path, model, data_root=data_root, on_broken=on_broken, size=size)
    if where.is_file():
        root, files, on_broken = where.parent, [where.name], "stop"
    else:
        root, files = without_train(where, list_images(where))
    found = captions_of(root, "", files, TEXT_FILES) if text_condition(model.config) is not None else {}
    return FolderImages(root, transform, on_broken, files=files, captions=found or None)  # type: ignore[arg-type]

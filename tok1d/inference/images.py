"""Images for a model: opened at its size and channels, with captions if the model reads them."""

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
    """The images of a data set as a tokenizer reads them: its channels, its size, the border of its training images.

    Nothing is augmented. Unreadable images are named on stderr.

    Args:
        name: "fashion_mnist", or the path of a folder of images, of shards or of a saved data set, see `kind_of`.
        model: the tokenizer.
        size: side of the images in pixels; default: the tokenizer's.
        generator: with captions if this generator, or the tokenizer, reads them.
    """
    config, kind = model.config, kind_of(name)
    same = trained_with(model, "name", None) == kind  # then the keys are those of the training
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
    """The captions argument of `open_images` for these models; None if none of them reads captions.

    For a folder this is the file of captions that the model's card names, if it exists in the folder; else a text file
    for each image.
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
    """The images to reconstruct: the test split of "fashion_mnist", of shards, of a saved data set or of a folder with
    train/ and test/, every image of any other folder, or one image file.

    For a tokenizer of captions, the captions are in text files with the names of the images.
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

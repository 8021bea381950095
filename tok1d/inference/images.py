"""Opens images for a model, with its image size and channels, and with captions if it reads them."""

from __future__ import annotations

import os
from pathlib import Path

from tok1d.config.condition import text_condition
from tok1d.data.broken import report_broken
from tok1d.data.captions import CLASS_SENTENCES, TEXT_FILES, captions_of
from tok1d.data.emoji import NAMES
from tok1d.data.folder import FolderImages
from tok1d.data.images import ImageSet, kind_of, open_images
from tok1d.data.layout import default_split, has_splits
from tok1d.data.lazy import LazyImages
from tok1d.data.listing import list_folder
from tok1d.data.shards import default_part
from tok1d.data.source import BY_NAME, DataName, ImageSource
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.generators.base import Generator
from tok1d.images.framing import framing_of, trained_with
from tok1d.tokenizers.base import Tokenizer


def open_data(
    name: str,
    model: Tokenizer,
    *,
    split: str | None = None,
    data_root: str | None = None,
    on_broken: str = "skip",
    size: int | None = None,
    generator: Generator | None = None,
    report: bool = True,
    needs_classes: bool | None = None,
) -> ImageSet:
    """Open the images of a data set with the size, channels, framing and border of the tokenizer's training images.

    Images are not augmented. What the data hold and what is left out is printed, see `report_broken`, with `report`.

    Args:
        name: "fashion_mnist", "emoji", or the path of a folder of images, of shards or of a saved data set, see
            `kind_of`.
        model: the tokenizer.
        split: train, test or all; default: see `measured_split`.
        size: side of the images in pixels; default: the tokenizer's.
        generator: a generator of the tokenizer's tokens; captions are opened if it or the tokenizer reads them.
        needs_classes: whether images beside class folders are an error, see `ImageSource`; default: if the tokenizer
            needs labels, or with a generator. Else all images of such a folder are one class.
    """
    if needs_classes is None:
        needs_classes = model.spec.needs_label or generator is not None
    how = {"data_root": data_root, "on_broken": on_broken, "size": size, "needs_classes": needs_classes}
    images = _opened(name, model, split, generator=generator, **how)  # type: ignore[arg-type]
    if report:
        report_broken(images)
    return images


def _opened(
    name: str,
    model: Tokenizer,
    split: str | None,
    *,
    data_root: str | None,
    on_broken: str,
    size: int | None,
    needs_classes: bool,
    generator: Generator | None = None,
) -> ImageSet:
    """As `open_data`, without a report."""
    config, kind = model.config, kind_of(name)
    same = trained_with(model, "name", None) == kind  # then the recipe's keys are valid
    source = ImageSource(
        kind,
        root=data_root if kind in BY_NAME else name,
        image_size=size or config.image_size,
        channels=config.channels,
        **framing_of(model),
        on_broken=on_broken,  # type: ignore[arg-type]
        captions=captions_for(name, model, *([] if generator is None else [generator])),
        image_key=trained_with(model, "image_key", None) if same else None,
        label_key=trained_with(model, "label_key", None) if same else None,
        class_order=trained_with(model, "class_order", "sorted"),
        classes=trained_with(model, "classes", None) if same else None,
        needs_classes=needs_classes,
    )
    chosen, note = (split, "") if split is not None else measured_split(name, kind, model)
    images = open_images(source, chosen)  # type: ignore[arg-type]
    if note and isinstance(images, LazyImages):
        images.notes.append(note)
    return images


def measured_split(name: str, kind: DataName, model: Tokenizer) -> tuple[str, str]:
    """The split of the data that is measured unless another is chosen, and a line about it, "" for none.

    It is the test split, except for folders that `default_split` takes as a whole. Of a folder on which the model was
    trained, as its card says, it is always the test split.
    """
    if kind != "folder":
        return default_part(name) if kind == "webdataset" else ("test", "")
    split = default_split(Path(name))
    if split == "test":
        return split, ""
    root = trained_with(model, "root", None)
    try:
        trained_here = isinstance(root, str) and os.path.samefile(root, name)
    except OSError:
        trained_here = False
    if trained_here and trained_with(model, "name", None) == "folder" and len(list_folder(name).files) > 1:
        return "test", "the model was trained on this folder, so only its test images are measured (--split all: all)"
    return "all", "measured whole; where the model was trained on this folder, --split test measures its test images"


def captions_for(data: str, *models: Tokenizer | Generator) -> str | None:
    """The field `captions` of `ImageSource` for these models; None if none of them reads captions.

    For a folder this is the caption file that the model's card names, if the folder has it, else one text file for each
    image.
    """
    reader = next((model for model in models if text_condition(model.config) is not None), None)
    if reader is None:
        return None
    if data in BY_NAME:
        return {"fashion_mnist": CLASS_SENTENCES, "emoji": NAMES}[data]
    known = trained_with(reader, "captions", TEXT_FILES)
    if (kind := kind_of(data)) != "folder":
        own = trained_with(reader, "name", None) == kind
        return known if own else {"webdataset": "txt"}.get(kind, "caption")
    return known if known not in (None, CLASS_SENTENCES) and (Path(data) / known).is_file() else TEXT_FILES


def open_own(
    path: str,
    model: Tokenizer,
    *,
    split: str | None = None,
    data_root: str | None = None,
    on_broken: str = "skip",
    size: int | None = None,
) -> ImageSet:
    """Open images to reconstruct.

    The path is an image file; or a folder without splits, of which all images are opened by default; or other data, see
    `open_data`, but nothing is printed. Captions, if the tokenizer reads them, are in text files with the names of the
    images.

    Raises:
        InputError: a split of an image file.
    """
    where, kind = Path(path), kind_of(path)
    if kind != "folder" or not where.is_file():
        if split is None and kind == "folder" and not has_splits(where):
            split = "all"
        how = {"on_broken": on_broken, "size": size, "needs_classes": model.spec.needs_label}
        return _opened(path, model, split, data_root=data_root, **how)  # type: ignore[arg-type]
    if split is not None:
        raise InputError(f"--split: {path} is one image, expected no split, got {split}")
    transform = Transform(size or model.config.image_size, model.config.channels, **framing_of(model))
    found = None
    if text_condition(model.config) is not None:
        found = captions_of(where.parent, "", [where.name], TEXT_FILES) or None
    image = FolderImages(where.parent, transform, "stop", files=[where.name], captions=found)
    image.place = path  # in messages, in place of its folder
    return image

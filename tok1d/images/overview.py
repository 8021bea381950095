"""`show`: an overview of images for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tok1d.errors import InputError
from tok1d.images.convert import Pictures, to_tensor
from tok1d.pictures import grid

MARGIN = 14  # height of a line of labels, in pixels
GAP = 6  # between a row and its label, in pixels
WIDEST_LABEL = 180  # width of a row's label, in pixels
WIDEST = 8  # columns by default


def show(images: Pictures, labels: Sequence[object] | None = None, columns: int | None = None) -> Image.Image:
    """One picture of all images in rows, which a notebook displays; small images are enlarged.

        >>> import torch
        >>> show(torch.rand(6, 1, 28, 28), labels=["bag"] * 6, columns=3).size
        (264, 208)

    Args:
        images: (B, C, H, W) in [0, 1], or anything else that `tok1d.images.to_tensor` reads, all of one size.
        labels: a text below each image; None: none.
        columns: images in a row; default: at most 8.

    Raises:
        InputError: images of several sizes, another number of labels, or columns below 1.
    """
    x = images.detach().float().cpu().clamp(0, 1) if isinstance(images, Tensor) else to_tensor(images)
    x = x[None] if x.dim() == 3 else x
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise InputError(f"images: expected (B, 1 or 3, H, W) in [0, 1], got {tuple(x.shape)}")
    if labels is not None and len(labels) != len(x):
        raise InputError(f"labels: expected {len(x)}, one for each image, got {len(labels)}")
    columns = min(WIDEST, len(x)) if columns is None else columns
    if columns < 1:
        raise InputError(f"columns: expected at least 1, got {columns}")
    zoom = zoom_for(x)
    if labels is None:
        return grid(x, columns, zoom=zoom)
    rows = [_labelled(x[i : i + columns], labels[i : i + columns], columns, zoom) for i in range(0, len(x), columns)]
    whole = Image.new(rows[0].mode, (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        whole.paste(row, (0, i * row.height))
    return whole


def labelled_grid(images: Tensor, columns: int, labels: Sequence[object]) -> Image.Image:
    """Images (N, C, H, W) in [0, 1] in rows of `columns`, enlarged if they are small, with a label right of each row.

    Raises:
        InputError: another number of labels than rows.
    """
    rows = -(-len(images) // columns)
    if len(labels) != rows:
        raise InputError(f"labels: expected {rows}, one for each row, got {len(labels)}")
    zoom = zoom_for(images)
    sheet = grid(images, columns, zoom=zoom)
    measure = ImageDraw.Draw(sheet)
    texts = [_cut(str(label), WIDEST_LABEL, measure) for label in labels]
    margin = round(max((measure.textlength(text) for text in texts), default=0)) + 2 * GAP
    whole = Image.new(sheet.mode, (sheet.width + margin, sheet.height), "white")
    whole.paste(sheet, (0, 0))
    draw, height = ImageDraw.Draw(whole), images.shape[-2] * zoom
    for i, text in enumerate(texts):
        draw.text((sheet.width + GAP, i * (height + 2 * zoom) + height // 2 - MARGIN // 2), text, fill="black")
    return whole


def zoom_for(images: Tensor) -> int:
    """The integer factor that enlarges small images to a width of about 84 pixels; at least 1."""
    return max(1, round(84 / images.shape[-1]))


def _labelled(images: Tensor, labels: Sequence[object], columns: int, zoom: int) -> Image.Image:
    """One row of images with their labels below."""
    empty = images.new_ones(columns - len(images), *images.shape[1:])
    row = grid(torch.cat([images, empty]), columns, zoom=zoom)
    sheet = Image.new(row.mode, (row.width, row.height + MARGIN + 2 * zoom), "white")
    sheet.paste(row, (0, 0))
    draw = ImageDraw.Draw(sheet)
    cell = (images.shape[-1] + 2) * zoom
    for i, label in enumerate(labels):
        draw.text((i * cell, row.height + 1), _cut(str(label), cell, draw), fill="black")
    return sheet


def _cut(text: str, width: int, draw: ImageDraw.ImageDraw) -> str:
    """A label that fits below its image."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    try:
        while len(text) > 1 and draw.textlength(text) > width - 4:
            text = text[:-1]
        return text
    except UnicodeEncodeError:  # PIL without FreeType draws Latin-1 only
        return _cut(ascii(text)[1:-1], width, draw)

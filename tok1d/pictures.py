"""Images for people: grids, PNG files and data addresses."""

from __future__ import annotations

import base64
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tok1d.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


def to_uint8(images: Tensor) -> Tensor:
    """(..., H, W) in [0, 1] -> uint8, clamped and rounded (truncation would darken by half a level)."""
    import torch

    return (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image:
    """One image (C, H, W) in [0, 1], C = 1 or 3."""
    from PIL import Image

    array = to_uint8(image).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def grid(images: Tensor, columns: int, *, zoom: int = 1, gap: int = 2, background: float = 1.0) -> Image:
    """Images (N, C, H, W) in [0, 1] in rows of `columns`, each pixel `zoom` pixels wide, `gap` pixels apart."""
    import torch
    from PIL import Image

    num, channels, height, width = images.shape
    rows = -(-num // columns)
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), background)
    for i, image in enumerate(images.detach().cpu().float()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    picture = to_pil(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def save_png(picture: Image, path: Path) -> Path:
    """Write a PNG, whole or not at all, making its folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, format="PNG")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()
    return path


def data_uri(picture: Image) -> str:
    """The picture as a PNG data address, for pages that need no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

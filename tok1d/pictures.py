"""Images for display: grids, PNG files and data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tok1d.errors import DataError, reason_of
from tok1d.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def to_uint8(images: Tensor) -> Tensor:
    """Convert (..., H, W) in [0, 1] to uint8 on the CPU, clamped and rounded.

    Truncation instead of rounding would darken by half a level on average.
    """
    import torch

    return (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image:
    """Convert an image (C, H, W) in [0, 1], C = 1 or 3, to PIL mode "L" or "RGB"."""
    from PIL import Image

    array = to_uint8(image).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def grid(images: Tensor, columns: int, *, zoom: int = 1, gap: int = 2, background: float = 1.0) -> Image:
    """Arrange images (N, C, H, W) in [0, 1] in rows of `columns`, `gap` pixels apart.

    Args:
        zoom: factor by which the finished grid, gaps included, is enlarged (nearest neighbour).
        background: grey level of gaps and empty places, in [0, 1].
    """
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


def figure_image(figure: Figure) -> Image:
    """Draw a matplotlib figure; returns mode "RGB"."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save_png(picture: Image, path: Path) -> Path:
    """Write a PNG file atomically, creating its folder; returns the path.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path, shared=False) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason_of(error)}") from None
    return path


def data_uri(picture: Image) -> str:
    """Encode the picture as a PNG data URI, to embed it in an HTML page."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

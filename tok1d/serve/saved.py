"""Files to save, as data URIs: PNG, PNG with settings, a strip of prefixes, an animated WebP. Nothing is written."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from tok1d.images.overview import zoom_for
from tok1d.pictures import grid, to_pil
from tok1d.serve.uploads import KEY

LEAST = 256  # pixels: side to which small pictures are enlarged in an animation
FRAME_MS, LAST_MS = 160, 1200


def png(picture: Image.Image, settings: str = "") -> str:
    """A picture as a PNG, with settings in a text chunk."""
    info = PngInfo()
    if settings:
        info.add_text(KEY, settings)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return _uri("image/png", buffer)


def strip(images: Tensor) -> str:
    """Images (N, C, H, W) in [0, 1] in one row, as a PNG."""
    return png(grid(images, len(images), zoom=zoom_for(images)))


def animation(images: Tensor) -> str:
    """Images (N, C, H, W) in [0, 1] one after the other, as an animated WebP that repeats."""
    zoom = max(1, -(-LEAST // images.shape[-1]))
    frames = [_enlarged(to_pil(image).convert("RGB"), zoom) for image in images]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80, method=0
    )
    return _uri("image/webp", buffer)


def sheet(images: Tensor, columns: int, settings: str = "") -> str:
    """Images (N, C, H, W) in [0, 1] in rows, as a PNG with settings."""
    return png(grid(images, columns, zoom=zoom_for(images)), settings)


def error_map(a: Tensor, b: Tensor) -> Image.Image:
    """The absolute difference of two images (C, H, W) in [0, 1], mean of the channels; white from 0.5 on."""
    return to_pil(((a - b).abs().mean(0, keepdim=True) * 2).clamp(0, 1))


def uris(images: Sequence[Tensor]) -> list[str]:
    """Images (C, H, W) in [0, 1] as PNG files."""
    return [png(to_pil(image)) for image in images]


def _enlarged(picture: Image.Image, zoom: int) -> Image.Image:
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

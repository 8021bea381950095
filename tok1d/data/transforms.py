"""The only crop, resize and decode code of the project: PIL images in, PIL images or tensors out."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from tok1d.errors import ConfigError, DataError

# Larger images are refused: a PNG of 50 kB can unpack to gigabytes. PIL itself warns above this and raises above twice.
MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# EXIF's orientations and what sets them upright; `ImageOps.exif_transpose` fails where any other tag is damaged.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

WHITE = (255, 255, 255)
VIEW_SCALES = (1.05, 1.10)
NUM_DRAWS = 4  # random numbers of an image: crop across, crop down, flip, scale
SMALLEST_SHARE = 0.8  # of the short side, that a crop of random scale shows
Crop = Literal["center", "random", "random_scale", "center+flip", "tencrop"]
RANDOM: tuple[Crop, ...] = ("random", "random_scale")
NUM_VIEWS: dict[Crop, int] = {"center": 1, "random": 1, "random_scale": 1, "center+flip": 2, "tencrop": 20}


def decode_image(
    source: str | Path | bytes, channels: int = 3, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Read an image file or its bytes as mode "RGB" (`channels=3`) or "L" (`channels=1`), 8 bits a channel.

    EXIF rotation is applied and alpha is composited over `background`. Raises DataError naming the file.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {image.width}x{image.height} pixels, at most {MAX_PIXELS} are read: shrink it"
                )
            image.load()
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return flatten(image if turn is None else image.transpose(turn), channels, background)
    except (DataError, MemoryError):  # told already; of this machine, not of the image
        raise
    except Exception as error:  # every format plugin of PIL has errors of its own, RuntimeError and TypeError too
        raise DataError(f"{name}: not a readable image: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Tell a decoding error in a few words on one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown or damaged image format"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())


def flatten(image: Image.Image, channels: int, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Convert any PIL mode (palette, alpha, CMYK, 1, 8 or 16 bits) to "RGB" (`channels=3`) or "L" (`channels=1`).

    Raises ValueError for floating-point or 32-bit images, whose range is unknown.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode.startswith("I;16") or image.mode == "I":
        # PIL clips instead of scaling when it converts these; 65535 / 257 = 255 exactly.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values outside 16 bits ({values.min()} to {values.max()})")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # The premultiplied modes convert to their straight siblings only.
        straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
        rgba = (image.convert(straight) if straight else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre square as ADM does (Dhariwal and Nichol 2021), returning `size` x `size` pixels.

    Box halving while the short side is at least 2 * `size`, one bicubic resize of the short side, floor crop.
    """
    image = _short_side(image, size)
    return _crop(image, (image.width - size) // 2, (image.height - size) // 2, size)


def ten_crop(image: Image.Image, size: int) -> list[Image.Image]:
    """Return ten `size` x `size` crops: four corners (row by row) and the centre, then those of its mirror image."""
    right, bottom = image.width - size, image.height - size
    if right < 0 or bottom < 0:
        raise ValueError(f"ten-crop of {size} from an image of {image.width}x{image.height}")
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2)))
    return [_crop(view, left, top, size) for view in (image, ImageOps.mirror(image)) for left, top in corners]


def tencrop_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Return the 20 training views of Semanticist's token cache: ten-crops of two slightly larger centre crops."""
    return [view for scale in VIEW_SCALES for view in ten_crop(center_crop(image, int(size * scale)), size)]


def centercrop_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Return the centre crop and its mirror image."""
    crop = center_crop(image, size)
    return [crop, ImageOps.mirror(crop)]


def random_crop(image: Image.Image, size: int, across: float, down: float) -> Image.Image:
    """Resize the short side to `size` (bicubic, antialiased), crop the square where two draws in [0, 1) say."""
    short, width, height = min(image.size), image.width, image.height
    if short != size:
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        image = _resize(image, width, height)
    return _crop(image, int(across * (width - size + 1)), int(down * (height - size + 1)), size)


def random_scale_crop(image: Image.Image, size: int, across: float, down: float, scale: float) -> Image.Image:
    """Resize the short side as ADM does to `size` to ceil(`size` / 0.8) pixels, each as likely, then crop.

    `across`, `down` and `scale` are draws in [0, 1).
    """
    longest = math.ceil(size / SMALLEST_SHARE)
    image = _short_side(image, size + int(scale * (longest + 1 - size)))
    return _crop(image, int(across * (image.width - size + 1)), int(down * (image.height - size + 1)), size)


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Convert a PIL image or uint8 array (H, W) or (H, W, C) to a float tensor (C, H, W) in [0, 1]."""
    return _to_uint8(image).float().div_(255)


def _to_uint8(image: Image.Image | np.ndarray) -> Tensor:
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if width * height > MAX_PIXELS:  # a very long strip of pixels, whose short side is to be enlarged
        raise ValueError(f"a shape of {image.width}x{image.height} is too long: crop it first")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _short_side(image: Image.Image, size: int) -> Image.Image:
    """The image with its short side of `size` pixels: box halving while it is twice as long, one bicubic resize."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        image = _resize(image, round(image.width * scale), round(image.height * scale))
    return image


@dataclass(frozen=True)
class Transform:
    """From a PIL image to a square tensor: centre or random crop to `size` pixels, `channels` 1 or 3, optional flip.

    "random" crops from the short side at `size`, "random_scale" from one of up to `size` / 0.8. The crops "center+flip"
    and "tencrop" give several views of an image, of both directions. With `pad` the crop is smaller by a black border
    of that many pixels on each side, `size` includes it. Raises ConfigError for values out of range.
    """

    size: int
    channels: int = 3
    crop: Crop = "center"
    flip: bool = False
    pad: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"image size: expected a positive number of pixels, got {self.size}")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.crop not in NUM_VIEWS:
            raise ConfigError(f"crop: expected {', '.join(NUM_VIEWS)}, got {self.crop!r}")
        if self.flip and self.num_views > 1:
            raise ConfigError(f"flip: expected false, the views of crop={self.crop} are of both directions")
        if not 0 <= 2 * self.pad < self.size:
            raise ConfigError(f"pad: expected less than half of the image size {self.size}, got {self.pad}")

    @property
    def num_views(self) -> int:
        """Views V of an image."""
        return NUM_VIEWS[self.crop]

    @property
    def inner(self) -> int:
        """Side of what is seen of an image, inside the border."""
        return self.size - 2 * self.pad

    def border(self, pixels: Tensor) -> Tensor:
        """Pixels (..., inner, inner) within the black border, (..., size, size)."""
        return F.pad(pixels, (self.pad,) * 4) if self.pad else pixels

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """Return uint8 (C, size, size), of V > 1 views (V, C, size, size); `rng` may go when nothing is random."""
        if rng is None and (self.flip or self.crop in RANDOM):
            raise ValueError("a random transform needs a generator")
        return self.apply(image, rng.random(NUM_DRAWS) if rng is not None else (0.0, 0.0, 1.0, 0.0))

    def apply(self, image: Image.Image, draws: Sequence[float] | np.ndarray) -> Tensor:
        """Return uint8 (C, size, size) for draws in [0, 1): crop across, crop down, flip (below 0.5), and scale.

        Crops of V > 1 views return (V, C, size, size); nothing of them is random.
        """
        image = flatten(image, self.channels)
        if self.num_views > 1:
            views = tencrop_views if self.crop == "tencrop" else centercrop_views
            return self.border(torch.stack([_to_uint8(view) for view in views(image, self.inner)]))
        if self.crop == "center":
            image = center_crop(image, self.inner)
        elif self.crop == "random":
            image = random_crop(image, self.inner, draws[0], draws[1])
        else:
            image = random_scale_crop(image, self.inner, draws[0], draws[1], draws[3])
        return self.border(_to_uint8(ImageOps.mirror(image) if self.flip and draws[2] < 0.5 else image))

    def fingerprint(self) -> str:
        """Return a string that is equal for equal transforms, across runs and machines."""
        kinds = {
            "center": "adm-center",
            "random": "short-side-random",
            "random_scale": "adm-random-scale",
            "center+flip": "adm-center+flip",
            "tencrop": "adm-ten",
        }
        kind = kinds[self.crop]
        border = f"/pad{self.pad}" if self.pad else ""
        return f"{kind}-crop/{self.size}px/{self.channels}ch/{'flip' if self.flip else 'noflip'}{border}"


def without_border(images: Tensor, pad: int) -> Tensor:
    """Images (..., H, W) without `pad` pixels on each side, (..., H - 2 pad, W - 2 pad)."""
    return images[..., pad : images.shape[-2] - pad, pad : images.shape[-1] - pad]

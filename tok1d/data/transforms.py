"""Decoding, cropping and resizing of images, for the whole package: from files to PIL images and tensors."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor
from torch.nn import functional as F

from tok1d.config.colour import WHITE as DEFAULT_BACKGROUND
from tok1d.config.colour import rgb_of
from tok1d.errors import ConfigError, DataError, reason_of

# Larger images are refused: a PNG of 50 kB can unpack to gigabytes. PIL itself warns above its limit, and raises an
# error above twice the limit.
MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# EXIF orientations and the transposition that undoes each. `ImageOps.exif_transpose` would do the same, but fails if
# any other EXIF tag is damaged.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

WHITE = rgb_of(DEFAULT_BACKGROUND)
VIEW_SCALES = (1.05, 1.10)  # sizes of the two centre crops of `tencrop_views`, as multiples of the size of a view
NUM_RANDOMS = 4  # random numbers per image: horizontal and vertical crop position, flip, scale
SMALLEST_SHARE = 0.8  # smallest side of a random-scale crop, relative to the short side of the image
Crop = Literal["center", "random", "random_scale", "fit", "center+flip", "fit+flip", "tencrop"]
RANDOM: tuple[Crop, ...] = ("random", "random_scale")
FIT: tuple[Crop, ...] = ("fit", "fit+flip")  # of the whole image
NUM_VIEWS: dict[Crop, int] = {
    **{"center": 1, "random": 1, "random_scale": 1, "fit": 1},
    **{"center+flip": 2, "fit+flip": 2, "tencrop": 20},
}


def decode_image(
    source: str | Path | bytes, channels: int = 3, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Decode an image file, or its content as bytes, to mode "RGB" (`channels=3`) or "L" (`channels=1`).

    The EXIF rotation is applied, and transparent images are composited over `background`.

    Raises:
        DataError: the image cannot be decoded or has more than `MAX_PIXELS` pixels; names the file.
        MemoryError: passed on unchanged, because the machine and not the image is the cause.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {image.width}x{image.height} pixels, at most {MAX_PIXELS} are read: shrink it"
                )
            alpha = _alpha_of_16_bits(image, source)
            _scale_transparency(image)
            image.load()
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            whole = image if alpha is None else Image.merge("RGBA", (*image.split(), alpha))
            return flatten(whole if turn is None else whole.transpose(turn), channels, background)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # PIL's format plugins raise many types, RuntimeError and TypeError among them
        raise DataError(f"{name}: not a readable image: {decoding_reason(error)}") from error


def _alpha_of_16_bits(image: ImageFile.ImageFile, source: str | Path | bytes) -> Image.Image | None:
    """The alpha channel of a PNG of 16-bit colours with one transparent colour; None for any other image.

    Must be called before the pixels are decoded. Removes the transparent colour from `image.info`.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or _raw_mode(image) != "RGB;16B" or not isinstance(key, tuple):
        return None
    halves = []
    for raw in (
        "RGB;16B",
        "RGB;16L",
    ):  # PIL keeps one byte of each number: the high one, or read as RGB;16L the low one
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as half:
            assert isinstance(half, ImageFile.ImageFile)
            half.tile = [tile._replace(args=raw) for tile in half.tile]
            halves.append(np.asarray(half.convert("RGB")).astype(np.uint16))
    opaque = (halves[0] * 256 + halves[1] != np.array(key, dtype=np.uint16)).any(-1)
    del image.info["transparency"]
    return Image.fromarray(np.uint8(255) * opaque)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its pixels, as PIL's decoder names it."""
    return str(image.tile[0][3]) if image.tile else ""


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent grey value of a PNG of 1, 2 or 4 bits to the 8 bits that PIL decodes to.

    Must be called before the pixels are decoded.
    """
    raw, key = _raw_mode(image), image.info.get("transparency")
    if image.format != "PNG" or not isinstance(key, int | tuple):
        return
    if raw == "1":
        image.info["transparency"] = 255 if key else 0
    elif isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(raw, 1)


def decoding_reason(error: BaseException) -> str:
    """Summarise a decoding error in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown or damaged image format"
    return reason_of(error, limit=1000)  # long, because the message may begin with a path


def flatten(image: Image.Image, channels: int, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Convert any PIL mode (palette, alpha, CMYK, 1, 8 or 16 bits) to "RGB" (`channels=3`) or "L" (`channels=1`).

    Transparent images are composited over `background`.

    Raises:
        ValueError: floating-point or 32-bit pixels, whose range is unknown.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode.startswith("I;16") or image.mode == "I":
        # PIL would clip instead of scale. 65535 / 257 is exactly 255; 128 rounds.
        values = np.asarray(image).astype(np.int64)
        key = image.info.get("transparency")
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values outside 16 bits ({values.min()} to {values.max()})")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if isinstance(key, int):
            image = Image.merge("LA", (image, Image.fromarray(np.uint8(255) * (values != key))))
    elif image.mode == "1" and isinstance(key := image.info.get("transparency"), int):  # PIL composites only "L"
        grey = image.convert("L")
        image = Image.merge("LA", (grey, grey.point(lambda value: 0 if value == key else 255)))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # PIL converts premultiplied alpha ("RGBa", "La") only to the same mode with straight alpha.
        straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
        rgba = (image.convert(straight) if straight else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square, resized to `size` x `size` pixels, as ADM does (Dhariwal and Nichol 2021).

    The image is halved by a box filter while its short side is at least 2 * `size`, its short side is resized to `size`
    (bicubic), and the offsets of the crop are rounded down.
    """
    image = _short_side(image, size)
    return _crop(image, (image.width - size) // 2, (image.height - size) // 2, size)


def fit_square(image: Image.Image, size: int, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return the whole image, "RGB" or "L", at the centre of a square of `size` x `size` pixels.

    The long side is resized to `size` as `center_crop` resizes the short one. The rest has the colour `background`; the
    offsets of the image are rounded down.
    """
    while max(image.size) >= 2 * size:
        image = image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.BOX)
    if max(image.size) != size:
        scale = size / max(image.size)
        image = _resize(image, max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    if image.size == (size, size):
        return image
    square = Image.new("RGB", (size, size), background).convert(image.mode)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def ten_crop(image: Image.Image, size: int) -> list[Image.Image]:
    """Return ten `size` x `size` crops: the corners row by row, the centre, and those five of the mirror image.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    right, bottom = image.width - size, image.height - size
    if right < 0 or bottom < 0:
        raise ValueError(f"ten-crop of {size} from an image of {image.width}x{image.height}")
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2)))
    return [_crop(view, left, top, size) for view in (image, ImageOps.mirror(image)) for left, top in corners]


def tencrop_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Return the 20 views of Semanticist's token cache: ten-crops of centre crops that are 5 % and 10 % larger."""
    return [view for scale in VIEW_SCALES for view in ten_crop(center_crop(image, int(size * scale)), size)]


def centercrop_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Return the centre crop and its mirror image."""
    return _both_directions(center_crop(image, size))


def _both_directions(image: Image.Image) -> list[Image.Image]:
    return [image, ImageOps.mirror(image)]


def random_crop(image: Image.Image, size: int, across: float, down: float) -> Image.Image:
    """Resize the short side to `size` (bicubic, antialiased) and crop a square.

    `across` and `down` in [0, 1) give its position, from the left and the top end of the image.
    """
    short, width, height = min(image.size), image.width, image.height
    if short != size:
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        image = _resize(image, width, height)
    return _crop(image, int(across * (width - size + 1)), int(down * (height - size + 1)), size)


def random_scale_crop(image: Image.Image, size: int, across: float, down: float, scale: float) -> Image.Image:
    """Resize the short side, as `center_crop` does, to a random length, and crop a square of `size` pixels.

    `scale` in [0, 1) selects the length in size..ceil(size / 0.8), uniformly; `across` and `down` as in `random_crop`.
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
    if width * height > MAX_PIXELS:  # the enlarged long side of a very thin image
        raise ValueError(f"a shape of {image.width}x{image.height} is too long: crop it first")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` pixels, see `center_crop`."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        image = _resize(image, round(image.width * scale), round(image.height * scale))
    return image


@dataclass(frozen=True)
class Transform:
    """The conversion of a PIL image to a square tensor.

    Args:
        size: side of the result in pixels, including the border.
        channels: 1 (grey) or 3 (RGB).
        crop: "center" (see `center_crop`), "random" (`random_crop`), "random_scale" (`random_scale_crop`), "fit"
            (`fit_square`), or one of several views of each image: "center+flip" (`centercrop_views`), "fit+flip" (the
            same of "fit") and "tencrop" (`tencrop_views`).
        flip: mirror horizontally with probability 1/2; crops of several views contain both directions instead.
        pad: width in pixels of a black border on each side.
        background: colour behind transparent images and in the padding of "fit", see `colour.rgb_of`.

    Raises:
        ConfigError: a value out of range.
    """

    size: int
    channels: int = 3
    crop: Crop = "center"
    flip: bool = False
    pad: int = 0
    background: str = DEFAULT_BACKGROUND

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"image size: expected a positive number of pixels, got {self.size}")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.crop not in NUM_VIEWS:
            raise ConfigError(f"crop: expected {', '.join(NUM_VIEWS)}, got {self.crop!r}")
        if self.flip and self.num_views > 1:
            raise ConfigError(f"flip: expected false, since crop={self.crop} has views of both directions")
        if not 0 <= 2 * self.pad < self.size:
            raise ConfigError(f"pad: expected less than half of the image size {self.size}, got {self.pad}")
        rgb_of(self.background)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue of the background, in 0..255."""
        return rgb_of(self.background)

    @property
    def is_random(self) -> bool:
        """Whether the result depends on random numbers."""
        return self.flip or self.crop in RANDOM

    @property
    def num_views(self) -> int:
        """Number V of views of each image."""
        return NUM_VIEWS[self.crop]

    @property
    def inner(self) -> int:
        """Side in pixels of the image inside the border."""
        return self.size - 2 * self.pad

    def border(self, pixels: Tensor) -> Tensor:
        """Add the black border: (..., inner, inner) to (..., size, size)."""
        return F.pad(pixels, (self.pad,) * 4) if self.pad else pixels

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """Return uint8 (C, size, size), or (V, C, size, size) of V > 1 views.

        Raises:
            ValueError: the transform is random and `rng` is None.
        """
        if rng is None and self.is_random:
            raise ValueError("rng: a transform with random crops or flips needs a generator, got None")
        return self.apply(image, rng.random(NUM_RANDOMS) if rng is not None else (0.0, 0.0, 1.0, 0.0))

    def apply(self, image: Image.Image, randoms: Sequence[float] | np.ndarray) -> Tensor:
        """Return uint8 (C, size, size), or (V, C, size, size) of V > 1 views.

        Args:
            randoms: `NUM_RANDOMS` numbers in [0, 1): horizontal and vertical position of the crop, flip (below 0.5),
                and scale. Crops of several views use none of them.
        """
        image = flatten(image, self.channels, self.rgb)
        if self.crop in FIT:
            image = fit_square(image, self.inner, self.rgb)
        if self.num_views > 1:
            if self.crop == "fit+flip":
                views = _both_directions(image)
            else:
                views = (tencrop_views if self.crop == "tencrop" else centercrop_views)(image, self.inner)
            return self.border(torch.stack([_to_uint8(view) for view in views]))
        if self.crop == "center":
            image = center_crop(image, self.inner)
        elif self.crop == "random":
            image = random_crop(image, self.inner, randoms[0], randoms[1])
        elif self.crop == "random_scale":
            image = random_scale_crop(image, self.inner, randoms[0], randoms[1], randoms[3])
        return self.border(_to_uint8(ImageOps.mirror(image) if self.flip and randoms[2] < 0.5 else image))

    def fingerprint(self) -> str:
        """Return a string that identifies the transform, stable across runs and machines."""
        kinds = {
            "center": "adm-center",
            "random": "short-side-random",
            "random_scale": "adm-random-scale",
            "fit": "adm-fit",
            "center+flip": "adm-center+flip",
            "fit+flip": "adm-fit+flip",
            "tencrop": "adm-ten",
        }
        kind = kinds[self.crop]
        border = f"/pad{self.pad}" if self.pad else ""
        colour = "" if self.rgb == WHITE else "/background#{:02x}{:02x}{:02x}".format(*self.rgb)
        return f"{kind}-crop/{self.size}px/{self.channels}ch/{'flip' if self.flip else 'noflip'}{border}{colour}"


def without_border(images: Tensor, pad: int) -> Tensor:
    """Remove `pad` pixels on each side: (..., H, W) to (..., H - 2 pad, W - 2 pad)."""
    return images[..., pad : images.shape[-2] - pad, pad : images.shape[-1] - pad]

"""Uploaded pictures: which files are read, and their decoding."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from tok1d.data.transforms import decode_image, decoding_reason
from tok1d.errors import DataError, InputError

MOST_BYTES = 20_000_000
MOST_PIXELS = 50_000_000
MOST_RATIO = 100  # of the sides: a longer picture would be huge once its short side has a model's size
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
KEY = "tok1d"  # of the text chunk with the settings in a saved PNG


def read_picture(path: str | Path) -> Image.Image:
    """The picture in an uploaded file, upright, in mode "RGB", over white where it is transparent.

    Of an animated file it is the first frame.

    Raises:
        DataError: the file is too large, of another format, damaged, or has too many pixels.
    """
    data = _bytes_of(path)
    _checked(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, on odd but readable files
            return decode_image(data)
    except DataError as error:
        raise DataError(str(error).replace("image bytes: ", "the picture: ")) from None
    except MemoryError:
        raise DataError("the picture: too large for the memory of this machine") from None


def frames_of(path: str | Path) -> int:
    """The number of frames of a file that `read_picture` has read; 1 if the file does not say it."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


def read_settings(path: str | Path) -> str:
    """The settings, as JSON, of a PNG that the tab Generate has saved.

    Raises:
        InputError: no such PNG.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(_bytes_of(path)), formats=["PNG"]) as image:
                found = image.info.get(KEY)
    except DataError as error:
        raise InputError(str(error)) from None
    except Exception:
        found = None
    if not isinstance(found, str):
        raise InputError("settings: expected a PNG that was saved here, this file has no settings of tok1d")
    return found


def _bytes_of(path: str | Path) -> bytes:
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise DataError(f"the picture: more than {MOST_BYTES // 1_000_000} MB, make it smaller")
        return Path(path).read_bytes()
    except OSError:
        raise DataError("the picture: its file is no longer there, upload it again") from None


def _checked(data: bytes) -> None:
    """Check format and size from the header, before any pixel is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise DataError(f"the picture: more than {MOST_PIXELS:,} pixels, make it smaller") from None
    except Image.UnidentifiedImageError:
        raise DataError(
            f"the picture: expected a file of {', '.join(FORMATS)}, got another one or a damaged one"
        ) from None
    except Exception as error:
        raise DataError(f"the picture: not readable ({decoding_reason(error)})") from None
    if width * height > MOST_PIXELS:
        raise DataError(f"the picture: {width} x {height} pixels, more than {MOST_PIXELS:,}; make it smaller")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise DataError(f"the picture: {width} x {height} pixels are too long, crop it")

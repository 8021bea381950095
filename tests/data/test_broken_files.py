"""Truncated and unusual image files: what is missing is found, and every kind of pixel decodes to planted values."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tok1d.data.broken_files import broken_reason
from tok1d.data.transforms import decode_image


def picture(kind: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    if kind == "flat":
        pixels[:] = 200
    if kind == "half flat":
        pixels[48:] = 255
    image = Image.fromarray(pixels)
    image = image.resize((8, 6)).resize((128, 96)) if kind == "smooth" else image
    return image.convert("L") if kind == "grey" else image


def jpeg(image: Image.Image, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", ["noise", "flat", "half flat", "smooth", "grey"])
def test_a_jpeg_cut_anywhere_is_broken_with_and_without_an_end_marker(
    tmp_path: Path, kind: str, progressive: bool
) -> None:
    whole, path = jpeg(picture(kind), progressive=progressive), tmp_path / "x.jpg"
    for good in (whole, whole + bytes(99), whole + b"notes of a camera \xff\xd9"):
        path.write_bytes(good)
        assert broken_reason(path) is None
    start = whole.index(b"\xff\xda") + 14
    for share in (0.05, 0.3, 0.5, 0.7, 0.9):
        cut = whole[: start + int((len(whole) - start) * share)].rstrip(b"\xff")
        for end in (b"", b"\xff\xd9"):
            path.write_bytes(cut + end)
            assert broken_reason(path), (share, end)


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_half_a_file_of_another_format_is_broken(tmp_path: Path, format: str) -> None:
    picture("noise").save(tmp_path / "whole", format)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    assert broken_reason(tmp_path / "whole") is None and broken_reason(tmp_path / "half")


def png(width: int, bits: int, kind: int, row: bytes, transparent: bytes = b"") -> bytes:
    """A PNG of one row; `kind` is its colour type, `transparent` its chunk tRNS."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6
BACK = (9, 8, 7)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        # the first pixel is transparent, the second is not
        (png(2, 16, GREY, struct.pack(">2H", 1000, 0x8080), struct.pack(">H", 1000)), [BACK, (128,) * 3]),
        (png(2, 16, GREY, struct.pack(">2H", 1001, 0x8080), struct.pack(">H", 1000)), [(4,) * 3, (128,) * 3]),
        (
            png(2, 16, RGB, struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0x8000), b"\x12\x34\x56\x78\x9a\xbc"),
            [BACK, (255, 0, 128)],
        ),
        (  # colours that differ in the lower 8 bits of one channel are opaque
            png(
                2,
                16,
                RGB,
                struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5679, 0x9ABC),
                b"\x12\x34\x56\x78\x9a\xbc",
            ),
            [BACK, (0x12, 0x56, 0x9A)],
        ),
        (png(2, 16, GREY_ALPHA, struct.pack(">4H", 0x1000, 0, 0x8080, 0xFFFF)), [BACK, (128,) * 3]),
        (png(2, 16, RGB_ALPHA, struct.pack(">8H", 0, 0, 0, 0, 0xFFFF, 0, 0x8000, 0xFFFF)), [BACK, (255, 0, 128)]),
        (png(2, 1, GREY, b"\x40", b"\0\0"), [BACK, (255,) * 3]),
        (png(2, 1, GREY, b"\x80", b"\0\1"), [BACK, (0,) * 3]),
        (png(2, 2, GREY, b"\x60", b"\0\1"), [BACK, (170,) * 3]),
        (png(2, 4, GREY, b"\x3c", b"\0\3"), [BACK, (204,) * 3]),
    ],
)
def test_transparency_of_any_depth_is_composited(content: bytes, pixels: list[tuple[int, int, int]]) -> None:
    assert np.asarray(decode_image(content, 3, BACK)).tolist() == [[list(pixel) for pixel in pixels]]


@pytest.mark.parametrize("format", ["TIFF", "PNG", "JPEG", "WEBP"])
def test_the_orientation_is_applied_once(format: str) -> None:
    image = Image.fromarray(np.repeat(np.uint8([[0], [200]]), 2, axis=1).repeat(16, 0).repeat(16, 1))
    exif, buffer = image.getexif(), io.BytesIO()
    exif[0x0112] = 6  # turned to the right: the upper half becomes the right half
    image.save(buffer, format, exif=exif)
    upright = np.asarray(decode_image(buffer.getvalue(), 1))
    assert upright[:, :14].min() > 190 and upright[:, 18:].max() < 10


def test_cmyk_keeps_its_colours_and_floats_are_named(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 20))
    assert np.abs(np.asarray(decode_image(jpeg(red.convert("CMYK")))).astype(int) - (250, 10, 20)).max() < 6
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    assert "floating-point pixels" in str(broken_reason(tmp_path / "x.tif"))

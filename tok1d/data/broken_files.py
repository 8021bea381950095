"""Whether an image file is whole: every file is decoded, a large JPEG at an eighth of its size."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tok1d.data.transforms import MAX_PIXELS, decoding_reason, flatten

_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)  # start of a progressive frame
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SCAN, _END = 0xDA, 0xD9
_SMALL = 3 * 64 * 64  # numbers; a smaller decoded image is compared in full size
_EXTRA = bytes(range(1, 251)) * 2  # entropy-coded data that belong to no image


def broken_reason(path: str | Path) -> str | None:
    """Return why an image file is broken, or None."""
    return scan_file(path)[0]


def scan_file(path: str | Path) -> tuple[str | None, bool]:
    """As `broken_reason`, and whether the result is permanent.

    An error of the operating system, such as a missing permission or an unmounted disk, is not permanent.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are read", True
            if image.format in ("JPEG", "MPO"):
                return _jpeg_reason(Path(path).read_bytes()), True
            image.verify()
        with Image.open(path) as image:
            image.load()
            if image.mode == "F" or image.mode.startswith("I"):
                flatten(image, 1)  # values out of range
    except MemoryError:
        raise
    except Exception as error:  # of many types, see `decode_image`
        return decoding_reason(error), getattr(error, "errno", None) is None
    return None, True


def _jpeg_reason(content: bytes) -> str | None:
    """Why a JPEG is incomplete, or None; decoders fill what is missing with grey and report nothing.

    Raises:
        OSError: it cannot be decoded, or ends in the middle of its data.
    """
    segments = _segments(content)
    frame = next(((marker, payload) for marker, _, payload in segments if marker in _FRAMES), (0, b""))
    progressive = frame[0] in _PROGRESSIVE
    eighth = not progressive
    whole = _pixels(content, eighth=eighth)
    if eighth and whole.size < _SMALL:  # an eighth does not show the details of the last blocks
        eighth, whole = False, _pixels(content, eighth=False)
    if not segments or segments[-1][0] != _END:
        return "image file is truncated (no end marker)"
    if progressive and (left := _missing_coefficients(frame[1], segments)):
        return f"image file is truncated ({left} coefficients of a block are missing)"
    # Data that end too early repeat the last block. Decoders then read what stands before the end marker.
    tail = whole.reshape(-1, *whole.shape[2:])[-2:]
    if not eighth or len(tail) < 2 or (tail[0] == tail[1]).all():
        end = segments[-1][1]
        longer = content[:end] + _EXTRA + content[end:]
        if not np.array_equal(whole, _pixels(longer, eighth=eighth)):
            return "image file is truncated (an end marker after incomplete data)"
    return None


def _pixels(content: bytes, *, eighth: bool) -> np.ndarray:
    """The image, at an eighth of its size on request, (H, W) or (H, W, C), uint8."""
    with Image.open(io.BytesIO(content)) as image:
        if eighth:
            image.draft(image.mode, (1, 1))
        return np.asarray(image)


def _segments(content: bytes) -> list[tuple[int, int, bytes]]:
    """The segments of the first image of a JPEG file: (marker, position, payload) up to its end marker."""
    found: list[tuple[int, int, bytes]] = []
    at = 2
    while at + 2 <= len(content):
        at = content.find(b"\xff", at)
        if at < 0 or at + 1 >= len(content):
            break
        marker = content[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # data, fill bytes, restarts
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _END:
            return [*found, (marker, at, b"")]
        if at + 4 > len(content):
            break
        (length,) = struct.unpack(">H", content[at + 2 : at + 4])
        found.append((marker, at, content[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


def _missing_coefficients(frame: bytes, segments: list[tuple[int, int, bytes]]) -> int:
    """Number of coefficients of the components' blocks that the scans of a progressive JPEG do not complete."""
    lacking = {component: [True] * 64 for component in frame[6 : 6 + 3 * frame[5] : 3]}
    for marker, _, payload in segments:
        if marker != _SCAN or len(payload) < 4:
            continue
        count = payload[0]
        first, last, bits = payload[1 + 2 * count : 4 + 2 * count]
        for component in payload[1 : 1 + 2 * count : 2]:
            if component in lacking and bits & 15 == 0:  # down to the lowest bit
                lacking[component][first : last + 1] = [False] * (last + 1 - first)
    return sum(map(sum, lacking.values()))

"""The emoji data set: one colour image of each emoji of Unicode's list, drawn from the font Noto Color Emoji, on white.

Test images are those of about a tenth of the bases, with all variants of each in skin tone, hair, gender and age, so
that no variant of a test image is trained on; see `emoji_table`. Captions are Unicode's names.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tok1d.data import emoji_font
from tok1d.data.emoji_table import Emoji, bases, is_test, table
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.scan_cache import cache_writable
from tok1d.errors import DataError
from tok1d.files import replacing

Classes = Literal["groups", "subgroups"]
NAMES = "names"  # the value of `data.captions`
BOX, WHITE = 136, (255, 255, 255)  # pixels: side of the square that a bitmap of 136 x 128 is centred in; background
_MISSING = chr(0x10FFFD)  # a character that no font has


def drawable(emoji: tuple[Emoji, ...], font: ImageFont.FreeTypeFont) -> list[bool]:
    """For each emoji, whether the font draws it as one glyph.

    The font's glyphs have one width. A sequence that the font cannot combine has the width of several, and a character
    that it lacks is drawn as the glyph of missing characters.
    """
    width, missing = font.getlength("\U0001f600"), _pixels(font, _MISSING).tobytes()
    return [
        abs(font.getlength(each.text) - width) < 1 and _pixels(font, each.text).tobytes() != missing for each in emoji
    ]


def _pixels(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    """An emoji in its bitmap's size, centred in a white square of `BOX` pixels."""
    image = Image.new("RGB", (BOX, BOX), WHITE)
    left, top, right, bottom = font.getbbox(text)
    at = (BOX - (right - left)) / 2 - left, (BOX - (bottom - top)) / 2 - top
    ImageDraw.Draw(image).text(at, text, font=font, fill=(0, 0, 0), embedded_color=True)
    return image


def draw(font: Path, size: int) -> tuple[np.ndarray, list[int]]:
    """Draw all emoji that the font has.

    Args:
        size: side of the images in pixels; they are reduced by an antialiasing filter (Lanczos), or enlarged.

    Returns:
        Images (N, size, size, 3) uint8, and their N places in `emoji_table.table`.
    """
    opened, emoji = emoji_font.load(font), table()
    places = [i for i, found in enumerate(drawable(emoji, opened)) if found]
    images = [_pixels(opened, emoji[i].text).resize((size, size), Image.Resampling.LANCZOS) for i in places]
    return np.stack([np.asarray(image) for image in images]), places


def load(
    split: str, size: int, *, root: str | None = None, classes: Classes = "groups"
) -> tuple[np.ndarray, np.ndarray, list[str], list[str], list[str]]:
    """Return images (N, size, size, 3) uint8, labels (N,), class names, captions, and notes on what was left out.

    Args:
        split: "train", "test", or "all".
        root: see `emoji_font.find`.

    Raises:
        DataError: there is no font.
    """
    font, emoji = emoji_font.find(root), table()
    images, places = _drawn(font, size)
    names = list(dict.fromkeys(getattr(each, classes[:-1]) for each in emoji))
    base, found = bases(emoji), [emoji[i] for i in places]
    test = np.array([is_test(base[i]) for i in places])
    chosen = np.ones(len(places), dtype=bool) if split == "all" else test == (split == "test")
    labels = np.array([names.index(getattr(each, classes[:-1])) for each in found])
    captions = [each.name for each, yes in zip(found, chosen) if yes]
    absent = [each.name for i, each in enumerate(emoji) if i not in set(places)]
    note = f"emoji: {len(absent)} of {len(emoji)} that {font} cannot draw are left out: {_some(absent)}"
    return images[chosen], labels[chosen], names, captions, [note] if absent else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _drawn(font: Path, size: int) -> tuple[np.ndarray, list[int]]:
    """As `draw`, from the cache where it has these images."""
    key = hashlib.sha256(font.read_bytes() + repr(table()).encode() + f"{size} {BOX} {WHITE}".encode()).hexdigest()
    path = cache_home() / "emoji" / f"drawn-{key[:16]}-{size}.npz"
    try:
        with np.load(path) as stored:
            return stored["images"], stored["places"].tolist()
    except (OSError, ValueError, KeyError):  # absent or damaged
        pass
    images, places = draw(font, size)
    if not places:
        raise DataError(f"{font}: draws no emoji; expected {emoji_font.NAME}")
    if cache_writable():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, places=np.array(places))
    return images, places


def _main() -> int:
    try:
        font = emoji_font.find(sys.argv[1] if len(sys.argv) > 1 else None)
        absent = [each.name for each, found in zip(table(), drawable(table(), emoji_font.load(font))) if not found]
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"the font of the emoji is {font}; it draws {len(table()) - len(absent)} of {len(table())}")
    for name in absent:
        print(f"not drawn: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())

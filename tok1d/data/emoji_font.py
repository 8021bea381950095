"""Finding the font of the emoji data set, Noto Color Emoji with colour bitmaps, on this machine or by a download."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import ImageFont, features

from tok1d.data import debian
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.scan_cache import cache_writable
from tok1d.errors import DataError, reason_of

NAME = "NotoColorEmoji.ttf"
STRIKE = 109  # pixels per em of the font's only bitmaps, which are 136 x 128 pixels
PACKAGE = "fonts-noto-color-emoji"
# The same package, of Debian 12, from Debian's archive of all packages.
URL = f"https://snapshot.debian.org/archive/debian/20240601T000000Z/pool/main/f/{PACKAGE}/{PACKAGE}_2.042-0+deb12u1_all.deb"
SHA256 = "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751"
_FOLDERS = ("~/.local/share/fonts", "~/.fonts", "/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts")
_ERRORS = (OSError, subprocess.SubprocessError, DataError)


def find(root: str | Path | None = None) -> Path:
    """Return the path of the font, downloading it to the cache if necessary.

    Args:
        root: the font, or a folder that holds it. If it is given, no other place is tried. Default: the system's font
            folders, the cache, Debian's package, and a fixed download.

    Raises:
        DataError: there is no usable font in `root`, or every source failed; the message lists all of them.
    """
    if not features.check("raqm"):
        raise DataError("emoji: Pillow has no Raqm here, which joins characters to one emoji; install Pillow from PyPI")
    if root is not None:
        return _given(Path(root))
    home = cache_home() / "emoji"
    tried = []
    for path in (home / NAME, *_installed()):
        reason = unusable(path) if path.is_file() else "missing"
        if not reason:
            return path
        if path.is_file():
            tried.append(f"{path}: {reason}")
    if cache_writable():
        for name, fetch in ((f"Debian package {PACKAGE}", _from_debian), ("snapshot.debian.org", _from_archive)):
            print(f"emoji: downloading the font, {name} ...", file=sys.stderr, flush=True)
            try:
                return _fill(home, fetch)
            except _ERRORS as error:
                tried.append(f"{name}: {debian.process_reason(error)}")
                print(f"emoji: {tried[-1]}", file=sys.stderr, flush=True)
    else:
        tried.append(f"{home}: cannot write to this cache folder, set TOK1D_CACHE to a writable one")
    raise DataError(
        f"emoji: no {NAME} with colour bitmaps found: give its path as data.root, install it in the system's fonts "
        f"(Debian and Ubuntu: apt install {PACKAGE}), or allow a download ({'; '.join(tried)})"
    )


def here() -> Path | None:
    """The font in the cache or in the system's font folders, without a download; None if it is not there."""
    places = (cache_home() / "emoji" / NAME, *_installed())
    return next((path for path in places if path.is_file() and not unusable(path)), None)


def unusable(path: Path) -> str:
    """Why a file is not a font with colour bitmaps of `STRIKE` pixels; "" if it is one."""
    try:
        font = load(path)
        return "" if font.getlength("\U0001f600") > STRIKE else "has no emoji"
    except OSError as error:  # of Pillow, for outlines or bitmaps of another size, too
        return f"not a font with colour bitmaps of {STRIKE} pixels ({reason_of(error)})"


def load(path: Path) -> ImageFont.FreeTypeFont:
    """Open the font, by its content, so that paths in any encoding work."""
    return ImageFont.truetype(io.BytesIO(path.read_bytes()), STRIKE, layout_engine=ImageFont.Layout.RAQM)


def _given(root: Path) -> Path:
    path = root
    if root.is_dir():
        path = next(iter(sorted(root.rglob(NAME))), root / NAME)
    if not path.is_file():
        raise DataError(f"{root}: no such font; expected {NAME} or a folder that holds it")
    reason = unusable(path)
    if reason:
        raise DataError(f"{path}: {reason}; expected Noto Color Emoji with bitmaps, {NAME}")
    return path


def _installed() -> Iterator[Path]:
    """Files of the font's name in the system's font folders."""
    for folder in _FOLDERS:
        yield from sorted(Path(os.path.expanduser(folder)).rglob(NAME))


def _fill(home: Path, fetch: Callable[[Path], Path]) -> Path:
    """Download to a temporary folder in the cache, check the font, and move it to its place at once."""
    home.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".font-", dir=home))
    try:
        found = fetch(work)
        reason = unusable(found)
        if reason:
            raise DataError(reason)
        os.replace(found, home / NAME)
        return home / NAME
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_debian(work: Path) -> Path:
    debian.fetch_package(PACKAGE, work, "emoji")
    return _in(work)


def _from_archive(work: Path) -> Path:
    with urllib.request.urlopen(URL, timeout=30) as answer:
        content = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(f"{URL}: expected the SHA-256 {SHA256}, got {found}")
    unpack(content, work)
    return _in(work)


def unpack(package: bytes, folder: Path) -> None:
    """Unpack a Debian package without its tools: an ar archive that holds the files as data.tar.*.

    Raises:
        DataError: it is no such archive.
    """
    at = 8
    while package.startswith(b"!<arch>\n") and at + 60 <= len(package):
        name, size = package[at : at + 16].decode().strip().rstrip("/"), int(package[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at + 60 : at + 60 + size])) as files:
                files.extractall(folder, filter="data")
            return
        at += 60 + size + size % 2
    raise DataError("not a Debian package: no data.tar in an ar archive")


def _in(work: Path) -> Path:
    found = sorted(work.rglob(NAME))
    if not found:
        raise DataError(f"no {NAME} in the package")
    return found[0]

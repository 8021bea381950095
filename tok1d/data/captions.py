"""Captions of images in a folder: from one JSON Lines file, or from a text file next to each image."""

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path

from tok1d.errors import DataError, reason_of

# Values of `data.captions` that are no path.
TEXT_FILES = "files"  # a text file next to each image
CLASS_SENTENCES = "labels"  # sentences made from the class names (Fashion-MNIST)


def read_captions(path: Path) -> dict[str, str]:
    """Read a JSON Lines file with one object per line: `{"file": "a/1.png", "caption": "..."}`.

    Paths are relative to the data folder, with forward slashes. Other keys and empty lines are ignored.

    Returns:
        The caption by (normalised) path.

    Raises:
        DataError: the file cannot be read, a line is malformed, or an image has two captions; names file and line.
    """
    captions: dict[str, str] = {}
    number = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                file, caption = _entry(line, f"{path}, line {number}")
                if file in captions:
                    raise DataError(f"{path}, line {number}: a second caption of {file}: keep one")
                captions[file] = caption
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the captions, {reason_of(error)}: expected a JSON Lines file, its path relative to "
            "the data folder"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}, after line {number}: not UTF-8 text: save it as UTF-8") from None
    return captions


def _entry(line: str, place: str) -> tuple[str, str]:
    expected = 'expected {"file": "relative/path.png", "caption": "..."}'
    try:
        entry: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({reason_of(error)}): {expected}") from None
    file, caption = (entry.get(key) if isinstance(entry, dict) else None for key in ("file", "caption"))
    if not isinstance(file, str) or not isinstance(caption, str):
        got = line.strip()
        raise DataError(f"{place}: {expected}, got {got if len(got) <= 80 else got[:77] + '...'}")
    return posixpath.normpath(file), caption


def captions_of(root: Path, prefix: str, files: Sequence[str], captions: str) -> dict[str, str]:
    """Return the captions of those `files` that have one.

    Args:
        root: the data folder.
        prefix: folder of the files relative to `root`: "" or such as "train/".
        files: paths relative to `root`/`prefix`.
        captions: "files" for a text file NAME.txt next to NAME.png, whose surrounding white space is removed, or the
            path of a JSON Lines file (see `read_captions`), absolute or relative to `root`.

    Raises:
        DataError: a file cannot be read, or the JSON Lines file describes other images.
    """
    if captions == TEXT_FILES:
        return {file: text for file in files if (text := _read_text_file(root / f"{prefix}{file}"))}
    known = read_captions(root / captions)
    found = {file: known[f"{prefix}{file}"] for file in files if f"{prefix}{file}" in known}
    if known and not found:
        # The captions may all belong to the other split, but paths of missing files are a mistake.
        missing = next((file for file in known if not (root / file).is_file()), None)
        if missing is not None:
            raise DataError(f"{root / captions}: no image {missing} in {root}: write paths relative to that folder")
    return found


def _read_text_file(image: Path) -> str:
    path = image.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"{path}: cannot read the caption, {why}") from None


def without_captions(
    left_out: Sequence[tuple[str, str]], images: Sequence[str], captions: str
) -> list[tuple[str, str]]:
    """Return the files that are left out, without those that hold the captions of `images`; see `captions_of`."""
    if captions == TEXT_FILES:
        texts = {posixpath.splitext(file)[0] + ".txt" for file in images}
        return [each for each in left_out if each[0] not in texts]
    return [each for each in left_out if each[0] != posixpath.normpath(captions)]

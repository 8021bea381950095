"""Captions of images in a folder: a file of JSON lines, or a text file beside each image."""

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tok1d.errors import DataError

BESIDE = "files"  # what `data.captions` says for text files beside the images
LABELS = "labels"  # and for captions made from class names


def read_captions(path: Path) -> dict[str, str]:
    r"""Captions by image, as a file of JSON lines holds them: `{"file": "a/1.png", "caption": "..."}` one a line.

    Files are paths relative to the data's folder, with forward slashes; further keys and empty lines are passed over.
    Raises DataError naming file and line of the first line that is not so, or of a second caption of an image.
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
        why = f"cannot read the captions, {error.strerror}"
        raise DataError(f"{path}: {why}: expected a file of JSON lines, its path relative to the data's root") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}, after line {number}: not UTF-8 text: save it as that") from None
    return captions


def _entry(line: str, place: str) -> tuple[str, str]:
    expected = 'expected {"file": "relative/path.png", "caption": "..."}'
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({str(error).splitlines()[0]}): {expected}") from None
    file, caption = (entry.get(key) if isinstance(entry, dict) else None for key in ("file", "caption"))
    if not isinstance(file, str) or not isinstance(caption, str):
        got = line.strip()
        raise DataError(f"{place}: {expected}, got {got if len(got) <= 80 else got[:77] + '...'}")
    return posixpath.normpath(file), caption


def captions_of(root: Path, prefix: str, files: Sequence[str], captions: str) -> dict[str, str]:
    """The captions of images by file; images without one are left out.

    Args:
        root: the data's folder.
        prefix: what stands before the files' names to make them relative to it: "" or "train/".
        captions: "files" for NAME.txt beside NAME.png (a caption each, white space around it dropped), or the path of
            a file of JSON lines, absolute or relative to `root`.

    Raises DataError naming a file that cannot be read, or a file of captions of other images.
    """
    if captions == BESIDE:
        return {file: text for file in files if (text := _beside(root / f"{prefix}{file}"))}
    known = read_captions(root / captions)
    found = {file: known[f"{prefix}{file}"] for file in files if f"{prefix}{file}" in known}
    if known and not found:
        # Another split may have them all; paths that lead nowhere are a mistake.
        missing = next((file for file in known if not (root / file).is_file()), None)
        if missing is not None:
            raise DataError(f"{root / captions}: no image {missing} in {root}: write paths relative to that folder")
    return found


def _beside(image: Path) -> str:
    path = image.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"{path}: cannot read the caption, {why}") from None

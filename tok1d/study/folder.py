"""A study folder: study.json, images/*.png, and the answers in results.sqlite once it is served."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from tok1d.config.fields import build
from tok1d.config.sampling import Decoding
from tok1d.errors import ConfigError, DataError, reason_of
from tok1d.files import write_text

FORMAT = "tok1d study 1"
FILE, IMAGES, RESULTS = "study.json", "images", "results.sqlite"
IMAGE_NAME = re.compile(r"[a-z0-9_]+\.png")


@dataclass(frozen=True)
class Item:
    """An original with its distractor and its reconstructions; names of files in the folder `images`.

    Args:
        index: position of the original in the data.
        label: name of its class.
        reconstructions: one for each number of tokens of the study; none for a catch trial.
        caption: by which the distractor was redrawn; "" for other distractors.
    """

    index: int
    label: str
    original: str
    distractor: str
    reconstructions: tuple[str, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Study:
    """The content of study.json.

    Args:
        model, weights: name and fingerprint of the tokenizer.
        data, fingerprint: name and fingerprint of the images; `count` is their number.
        label: the tokenizer's condition, see `Conditioning`.
        decoding: settings of a diffusion decoder; None for a deterministic one.
        keep, reveal_ms: the conditions of the main trials are all pairs of them.
        catch_ms: time for which the original of practice and catch trials is shown.
    """

    format: str
    model: str
    weights: str
    num_tokens: int
    data: str
    fingerprint: str
    count: int
    label: str | None
    decoding: Decoding | None
    distractor: str
    keep: tuple[int, ...]
    reveal_ms: tuple[int, ...]
    mask_ms: int
    catch_ms: int
    seed: int
    consent: str
    items: tuple[Item, ...]
    practice: tuple[Item, ...]
    catch: tuple[Item, ...]
    mask: str
    versions: dict[str, str]

    @cached_property
    def identity(self) -> str:
        """16 hex digits that identify the study; its results name it."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:16]

    def to_text(self) -> str:
        """The text of study.json."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def files(self) -> Iterator[str]:
        """The names of all its images."""
        yield self.mask
        for item in (*self.items, *self.practice, *self.catch):
            yield from (item.original, item.distractor, *item.reconstructions)


def read_study(folder: Path) -> Study:
    """The study of a folder.

    Raises:
        DataError: it holds no study, or one that is damaged or names files outside of its folder `images`.
    """
    path = Path(folder) / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no {FILE}; expected a folder that tok1d study build wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); build the study again") from None
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise DataError(f"{path}: expected the format {FORMAT!r}; build the study again")
    try:
        study = build(Study, content)
    except ConfigError as error:
        raise DataError(f"{path}: {error}; build the study again") from None
    _check(study, path)
    return study


def _check(study: Study, path: Path) -> None:
    if not (study.items and study.keep and study.reveal_ms):
        raise DataError(f"{path}: expected items, keep and reveal_ms, got an empty list; build the study again")
    for item in (*study.items, *study.practice):
        if len(item.reconstructions) != len(study.keep):
            raise DataError(f"{path}: expected {len(study.keep)} reconstructions of {item.original}; build it again")
    for name in study.files():
        file = path.parent / IMAGES / name
        if not IMAGE_NAME.fullmatch(name) or file.is_symlink() or not file.is_file():
            raise DataError(f"{path}: {name!r} is no file in {IMAGES}; build the study again")


def check_replaceable(folder: Path) -> None:
    """Raise ConfigError if a folder holds answers, or anything but a study; they are never deleted."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if RESULTS in names:
        raise ConfigError(f"{folder}: holds answers ({RESULTS}), which are not deleted; choose another --out")
    if names and not (FILE in names and names <= {FILE, IMAGES}):
        raise ConfigError(f"{folder}: expected a study or an empty folder, got other files; choose another --out")


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends without an error, and replaces a study there.

    Raises:
        ConfigError: see `check_replaceable`.
        DataError: it cannot be written.
    """
    folder = Path(folder).resolve()
    check_replaceable(folder)
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / IMAGES).mkdir(parents=True)
        yield temporary
        check_replaceable(folder)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {reason_of(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_study(study: Study, folder: Path) -> None:
    """Write study.json."""
    write_text(folder / FILE, study.to_text())

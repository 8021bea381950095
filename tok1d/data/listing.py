"""The files of a folder: which are images, and why each of the others is left out."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tok1d.data.filetypes import file_reason, folder_reason, suffix_of
from tok1d.errors import DataError, reason_of


@dataclass
class Listing:
    """All files and folders below a folder, as relative paths with forward slashes, sorted by their parts.

    Every file is either in `files` or in `left_out`.

    Args:
        files: the images. Whether they are intact is not known yet.
        left_out: (path, reason) of every other file: other types, hidden files, the content of programs' folders,
            broken links, and entries that are no regular files, which are not opened.
        folders: all folders but those that are left out with their content.
        notes: folders that could not be listed, and links that were not followed.
    """

    files: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def below(self, folder: str) -> list[str]:
        """Return the images in a folder, relative to it."""
        return [file[len(folder) + 1 :] for file in self.files if file.startswith(f"{folder}/")]

    def children(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder; "" is the listed folder itself."""
        start = f"{folder}/" if folder else ""
        inside = (each[len(start) :] for each in self.folders if each.startswith(start))
        return [name for name in inside if "/" not in name]


def by_parts(path: str) -> list[str]:
    """Return the key by which paths are sorted: their parts."""
    return path.split("/")


def list_folder(root: str | Path) -> Listing:
    """List a folder with all that it holds; symbolic links are followed, except to a folder that contains them.

    Raises:
        DataError: `root` is not a folder, or cannot be listed.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}: expected a folder of images")
    found = Listing()
    # Absolute path, relative path, reason to leave out the content, and the real paths of the folders that contain it.
    todo: list[tuple[str, str, str | None, frozenset[str]]] = [(str(root), "", None, frozenset())]
    while todo:
        place, inside, why, outer = todo.pop()
        real = os.path.realpath(place)
        if real in outer:
            found.notes.append(f"{inside}/ is a link to a folder that contains it, and is not followed")
            continue
        if inside and why is None:
            found.folders.append(inside)
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            if not inside:
                raise DataError(f"{root}: cannot be listed: {reason_of(error)}") from None
            found.notes.append(f"{inside}/ cannot be listed ({reason_of(error)}): its files are missing")
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if _is_folder(entry):
                todo.append((entry.path, name, why or folder_reason(entry.name), outer | {real}))
            elif (reason := why or _reason(entry)) is None:
                found.files.append(name)
            else:
                found.left_out.append((name, reason))
    found.files.sort(key=by_parts)
    found.folders.sort(key=by_parts)
    found.left_out.sort(key=lambda each: by_parts(each[0]))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or no permission
        return False


def _reason(entry: os.DirEntry[str]) -> str | None:
    if entry.name.startswith("."):
        return "hidden"
    try:
        if not entry.is_file():
            mode = entry.stat().st_mode
            return "a device, pipe or socket" if not stat.S_ISREG(mode) else None
    except FileNotFoundError:
        return "a broken link"
    except OSError as error:
        return reason_of(error)
    return file_reason(entry.path)


def identity(path: str | Path) -> tuple[int, int] | str:
    """Return what is equal for two names of one file, by symbolic or hard links."""
    try:
        found = os.stat(path)
    except OSError:  # removed since it was listed
        return os.path.realpath(path)
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def first_image(root: str | Path) -> Path | None:
    """Return some image below a folder, by its suffix, or None; symbolic links to folders are not followed."""
    for path in _files(root):
        if file_reason(str(path)) is None:
            return path
    return None


def _files(root: str | Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if folder_reason(name) is None]
        yield from (path for name in names if (path := Path(place, name)).is_file())


def kinds_of(left_out: Sequence[tuple[str, str]]) -> str:
    """Return how many files of each kind are left out, such as "2 .heic, 1 hidden"; the four most frequent kinds."""
    kinds = Counter(_kind_of(name, why) for name, why in left_out)
    shown = [f"{count:,} {kind}" for kind, count in kinds.most_common(4)]
    return ", ".join([*shown, "..."] if len(kinds) > 4 else shown)


def _kind_of(name: str, why: str) -> str:
    return suffix_of(name.split("/")[-1]) or "no suffix" if why.endswith(("not an image", "is not read")) else why

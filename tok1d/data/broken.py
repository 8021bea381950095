"""Reports on an opened image set: what it holds, what is left out, and images that could not be decoded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tok1d.data.base import ImageSet
from tok1d.data.images import ArrayImages
from tok1d.data.lazy import LazyImages
from tok1d.data.listing import kinds_of
from tok1d.data.subset import Subset, underlying


def replaced_images(images: ImageSet) -> list[tuple[str, str]]:
    """Return (name, reason) of the broken images of the underlying set that were replaced by others so far."""
    whole = underlying(images)
    return whole.replaced if isinstance(whole, LazyImages) else []


def replaced_indices(images: ImageSet, indices: Iterable[int]) -> list[int]:
    """Return those of `indices`, whose images have been read, at which another image replaced a broken one."""
    names = {name for name, _ in replaced_images(images)}
    return [i for i in indices if images.name(i) in names] if names and isinstance(images, LazyImages | Subset) else []


def replaced_text(num: int, noun: str = "image") -> str:
    """Return a phrase that states the number of replaced images, "" for none."""
    many = f"{num} unreadable {noun}s replaced by others" if num > 1 else f"1 unreadable {noun} replaced by another"
    return many if num else ""


def describe(images: LazyImages) -> str:
    """Return one line: images, classes, split, broken images, and files that are not read."""
    parts = [f"{images.place}: {len(images):,} image{'s' if len(images) != 1 else ''}"]
    if images.num_classes > 1:
        parts[0] += f" in {images.num_classes:,} classes ({_some(images.class_names, 4)})"
    parts += [images.how] if images.how else []
    parts += [f"{len(images.broken):,} broken"] if images.broken else []
    if images.left_out:
        what = f"{len(images.left_out):,} file{'s' if len(images.left_out) > 1 else ''} not read"
        parts.append(f"{what} ({kinds_of(images.left_out)}): {_some([name for name, _ in images.left_out], 3)}")
    return "; ".join(parts)


def _some(names: Sequence[str], count: int) -> str:
    return ", ".join([*names[:count], "..."] if len(names) > count else names)


def report_broken(images: object) -> None:
    """Print what a set holds and what is left out, once, and the broken images that were skipped, each once.

    The line of `describe` is printed to stdout; further facts, broken images and their number to stderr.
    """
    images = underlying(images)
    if isinstance(images, ArrayImages):
        while images.notes:
            print(printable(images.notes.pop(0)), file=sys.stderr)
    if not isinstance(images, LazyImages):
        return
    if not images.described:
        images.described = True
        print(printable(describe(images)))
        for note in images.notes:
            print(printable(f"{images.place}: {note}"), file=sys.stderr)
    new = [(name, reason) for name, reason in images.broken if name not in images.reported]
    for name, reason in new:
        print(printable(f"skipped {name}: {reason}"), file=sys.stderr)
        images.reported.add(name)
    if new:
        # Those that are not replaced were left out of the set when it was opened.
        total = len(images) + len(images.reported) - len(images.replaced)
        print(f"skipped {len(images.reported)} broken images of {total}", file=sys.stderr)


def printable(text: str) -> str:
    """Return a text with names of files as one line: control characters and bytes that are no UTF-8 are escaped."""
    shown = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)

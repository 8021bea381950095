"""Reports on images that could not be decoded."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tok1d.data.base import ImageSet
from tok1d.data.lazy import LazyImages
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


def report_broken(images: object) -> None:
    """Print the broken images of a set that were skipped to stderr, each once, and their total number."""
    images = underlying(images)
    if not isinstance(images, LazyImages):
        return
    new = [(name, reason) for name, reason in images.broken if name not in images.reported]
    for name, reason in new:
        print(f"skipped {name}: {reason}", file=sys.stderr)
        images.reported.add(name)
    if new:
        # Those that are not replaced were left out of the set when it was opened.
        total = len(images) + len(images.reported) - len(images.replaced)
        print(f"skipped {len(images.reported)} broken images of {total}", file=sys.stderr)

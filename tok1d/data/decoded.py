"""Images decoded as they are asked for, by threads, and what becomes of those that cannot be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tok1d.data.order import uniforms
from tok1d.data.transforms import NUM_DRAWS, Transform, decode_image, reason
from tok1d.errors import DataError

OnBroken = Literal["stop", "skip"]
IN_A_ROW = 100  # broken images after which it is the disk, not the images


@lru_cache(maxsize=4)
def threads(workers: int | None = None) -> ThreadPoolExecutor:
    """The pool of so many threads; None is one a core, at most 16."""
    # PIL decodes and resizes outside the interpreter lock, so threads are enough.
    return ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1), thread_name_prefix="tok1d-decode")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: the child makes its own
    os.register_at_fork(after_in_child=threads.cache_clear)


class DecodedImages:
    """A set of images whose bytes a subclass finds (`name`, `read`), with labels (N,) and captions, one an image.

    An image that cannot be decoded is replaced by the next good one, label and caption too, and listed in `broken`;
    with `on_broken="stop"` it raises DataError naming it.
    """

    def __init__(
        self,
        transform: Transform,
        on_broken: OnBroken,
        class_names: Sequence[str],
        labels: np.ndarray,
        captions: Sequence[str],
        workers: int | None = None,
    ) -> None:
        self.transform, self.on_broken, self.workers = transform, on_broken, workers
        self.class_names, self.labels, self.captions = list(class_names), labels, list(captions)
        self._broken: dict[str, str] = {}
        self._replaced: dict[str, str] = {}

    def name(self, index: int) -> str:
        """What an image is called in messages."""
        raise NotImplementedError

    def read(self, index: int) -> Path | bytes:
        """The file of an image, or its bytes."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The broken images met so far, as (name, reason)."""
        return list(self._broken.items())

    @property
    def replaced(self) -> list[tuple[str, str]]:
        """Those of them that stay in the set, another image in their place."""
        return list(self._replaced.items())

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) in [0, 1] and labels (B,) int64; the same arguments give the same pixels.

        A transform of V views gives V rows an image, one after the other.
        """
        return self.captioned_batch(indices, seed=seed, epoch=epoch)[:2]

    def captioned_batch(
        self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, with the caption of every row."""
        draws = uniforms(NUM_DRAWS, seed=seed, epoch=epoch, indices=indices)
        loaded = list(threads(self.workers).map(self._load, [int(i) for i in indices], draws))
        images = torch.stack([image for image, _ in loaded]).flatten(0, -4).float().div_(255)
        rows = np.repeat([used for _, used in loaded], self.transform.num_views)
        return images, torch.from_numpy(self.labels[rows]), [self.captions[row] for row in rows]

    def fingerprint(self) -> str:
        """Return 16 hex digits of what the images are and of the transform."""
        raise NotImplementedError

    def _report(self, name: str, why: str) -> None:
        if self.on_broken == "stop":
            raise DataError(
                f"{name}: broken image: {why}: mend or remove it, or choose data.on_broken=skip "
                "(tok1d train) or --on-broken skip (other commands)"
            )
        self._broken.setdefault(name, why)

    def _load(self, index: int, draws: np.ndarray) -> tuple[Tensor, int]:
        """Return an image (or its views) and the index it came from: another than asked for if that fails to decode."""
        name = why = ""
        for used in islice(chain(range(index, len(self)), range(index)), IN_A_ROW):
            name = self.name(used)
            try:
                return self.transform.apply(decode_image(self.read(used), self.transform.channels), draws), used
            except (DataError, ValueError, OSError) as error:
                why = reason(error).removeprefix(f"{name}: ").removeprefix("image bytes: ")
                self._report(name, why)
                self._replaced.setdefault(name, why)
        if len(self) <= IN_A_ROW:
            raise DataError(f"{name}: {why}; no other image of the set can be decoded either")
        raise DataError(f"{name}: {why}; nor can the {IN_A_ROW - 1} images before it be read: is the disk there?")


def replaced_among(images: Any, indices: Iterable[int]) -> list[int]:
    """Those of a set's images, read before, that were broken, so that another one stood in for them."""
    names = {name for name, _ in getattr(whole_set(images), "replaced", [])}
    return [i for i in indices if images.name(i) in names] if names else []


def replaced_text(num: int, what: str = "image") -> str:
    """So many replaced images in words, "" for none."""
    many = f"{num} unreadable {what}s replaced by others" if num > 1 else f"1 unreadable {what} replaced by another"
    return many if num else ""


def whole_set(images: Any) -> Any:
    """The set that `images` are some of, or themselves."""
    while not hasattr(images, "transform") and hasattr(images, "images"):
        images = images.images
    return images


def report_broken(images: Any) -> None:
    """Name on stderr the images of a set that could not be read and were skipped, each once, and count all of them."""
    images = whole_set(images)
    told = getattr(images, "__dict__", {}).setdefault("_told", set())
    new = [(path, why) for path, why in getattr(images, "broken", []) if path not in told]
    for path, why in new:
        print(f"skipped {path}: {why}", file=sys.stderr)
        told.add(path)
    if new:
        kept = len(images) + len(told) - len(getattr(images, "replaced", []))
        print(f"skipped {len(told)} broken images of {kept}", file=sys.stderr)

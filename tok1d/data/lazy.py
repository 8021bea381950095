"""Images that are read and decoded on request, by a pool of threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tok1d.data import prints
from tok1d.data.base import ImageSet, Indices
from tok1d.data.order import uniforms
from tok1d.data.transforms import NUM_RANDOMS, Transform, decode_image, decoding_reason
from tok1d.errors import DataError

OnBroken = Literal["stop", "skip"]
# This many consecutive unreadable images are treated as a failure of the disk, and end the search for a readable one.
MAX_UNREADABLE = 100


@lru_cache(maxsize=4)
def decoding_pool(workers: int | None = None) -> ThreadPoolExecutor:
    """Return the shared pool of `workers` threads; None is one per core, at most 16."""
    # PIL releases the interpreter lock while it decodes and resizes, so threads are enough.
    return ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1), thread_name_prefix="tok1d-decode")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, so the child process creates its own pool
    os.register_at_fork(after_in_child=decoding_pool.cache_clear)


class LazyImages:
    """Base class of image sets whose files are decoded on request; subclasses implement `name` and `read`.

    An image that cannot be decoded is recorded in `broken`. With `on_broken="skip"` the next readable image of the set
    takes its place, with its own label and caption; with "stop" DataError names it.

    Args:
        labels: int64 (N,), indices into `class_names`.
        captions: N texts, "" where an image has none.
        workers: number of decoding threads, see `decoding_pool`.
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
        self.reported: set[str] = set()  # names that `broken.report_broken` has printed
        self.described = False  # whether it has printed what the set holds
        self.place = ""  # the folder or file pattern of the data
        self.how = ""  # how the split was found, for people
        self.left_out: list[tuple[str, str]] = []  # (name, reason) of files that are not read
        self.notes: list[str] = []  # further facts for people
        self._broken: dict[str, str] = {}
        self._replaced: dict[str, str] = {}
        self._contents: dict[prints.Kind, str] = {}  # hashes of names and contents

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""
        raise NotImplementedError

    def read(self, index: int) -> Path | bytes:
        """Return the file of an image, or its content."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The broken images found so far, as (name, reason)."""
        return list(self._broken.items())

    @property
    def replaced(self) -> list[tuple[str, str]]:
        """The broken images that keep their index but are replaced by another image, as (name, reason).

        Those in `broken` but not here were left out when the set was opened.
        """
        return list(self._replaced.items())

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) in [0, 1] and labels (B,), see `ImageSet.batch`."""
        return self.captioned_batch(indices, seed=seed, epoch=epoch)[:2]

    def captioned_batch(self, indices: Indices, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, followed by the caption of every row."""
        randoms = uniforms(NUM_RANDOMS, seed=seed, epoch=epoch, indices=indices)
        loaded = list(decoding_pool(self.workers).map(self._load, [int(i) for i in indices], randoms))
        images = torch.stack([image for image, _ in loaded]).flatten(0, -4).float().div_(255)
        rows = np.repeat([used for _, used in loaded], self.transform.num_views)
        return images, torch.from_numpy(self.labels[rows]), [self.captions[row] for row in rows]

    def fingerprint(self) -> str:
        """Return a text that identifies names, labels, class names, contents and transform, see `prints.asked_kind`."""
        return self.fingerprint_as(prints.asked_kind())

    def fingerprint_as(self, kind: prints.Kind) -> str:
        """Return the fingerprint that sees what `kind` states; "names" is that of older versions."""
        if kind == "names":
            return self._older_fingerprint()
        if kind not in self._contents:
            digest = hashlib.sha256(
                repr(self.class_names if len(self.class_names) > 1 else "").encode(errors="surrogateescape")
            )
            for name, label in zip(self._keys(), self.labels, strict=True):
                digest.update(f"\n{label} {name}".encode(errors="surrogateescape"))
            names = digest.hexdigest()
            contents = prints.cached_digest(kind, self._sources(), names, len(self), lambda: self._digest(kind))
            self._contents[kind] = f"{names} {contents}"
        text = f"{self.transform.fingerprint()} {self._contents[kind]}"
        return prints.tagged(hashlib.sha256(text.encode()).hexdigest(), kind)

    def _digest(self, kind: prints.Kind) -> str:
        digest = hashlib.sha256()
        for each in self._hashes(kind):
            digest.update(each)
        return digest.hexdigest()

    def _older_fingerprint(self) -> str:
        """Return the fingerprint of versions that did not read the contents."""
        raise NotImplementedError

    @property
    def keys(self) -> list[str]:
        """The name of each image, which does not depend on where the data set is, such as its path in a folder."""
        return list(self._keys())

    def _keys(self) -> Sequence[str]:
        """Return the name of each image, which does not depend on where the data set is."""
        raise NotImplementedError

    def _sources(self) -> Sequence[str | Path]:
        """Return the files that hold the images."""
        raise NotImplementedError

    def _hashes(self, kind: prints.Kind) -> Iterable[bytes]:
        """Return a hash of each image's file, see `prints.hash_file`."""
        raise NotImplementedError

    def _record_broken(self, name: str, reason: str) -> None:
        if self.on_broken == "stop":
            raise DataError(
                f"{name}: broken image: {reason}: repair or remove it, or choose data.on_broken=skip "
                "(tok1d train) or --on-broken skip (other commands)"
            )
        self._broken.setdefault(name, reason)

    def _load(self, index: int, randoms: np.ndarray) -> tuple[Tensor, int]:
        """Return an image (or its views), and its index: a later one (cyclically) if `index` cannot be decoded."""
        name = reason = ""
        for used in islice(chain(range(index, len(self)), range(index)), MAX_UNREADABLE):
            name = self.name(used)
            try:
                decoded = decode_image(self.read(used), self.transform.channels, self.transform.rgb)
                return self.transform.apply(decoded, randoms), used
            except (DataError, ValueError, OSError) as error:
                reason = decoding_reason(error).removeprefix(f"{name}: ").removeprefix("image bytes: ")
                self._record_broken(name, reason)
                self._replaced.setdefault(name, reason)
        if len(self) <= MAX_UNREADABLE:
            raise DataError(f"{name}: {reason}; no other image of the set can be decoded either")
        raise DataError(f"{name}: {reason}; nor can the {MAX_UNREADABLE - 1} images before it be read: check the disk")


def fingerprint_like(images: ImageSet, other: str) -> str:
    """Return the fingerprint of images that sees what the fingerprint `other` sees."""
    return (
        images.fingerprint_as(prints.kind_of_print(other)) if isinstance(images, LazyImages) else images.fingerprint()
    )

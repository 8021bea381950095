"""An evaluation as a job: blocks of images, shared by processes, each finished block kept until all are finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tok1d.errors import ConfigError, DataError, InputError, reason_of
from tok1d.files import remove_left, replacing
from tok1d.zoo.record import Record

LEAST_BLOCK = 64  # images in a block, so that small batches do not make too many files

Columns = dict[str, Tensor]  # what is measured of a range of images, one row for each
Measure = Callable[[range], Columns]
Rows = tuple[range, Columns]


@dataclass
class Job:
    """How the images of an evaluation are divided, and where its finished blocks are kept.

    Batches are ranges of image numbers and are put together in order, so that the result is the same for any number of
    processes and after any interruption.

    Args:
        folder: of the finished blocks; processes on several machines can share it. None: nothing is kept.
        part: (i, n), this process measures every n-th block from the i-th on.
        quiet: no progress bar, no lines.
        label: of the progress bar.
        finish: called with the records before the blocks are removed, to write them.
    """

    folder: Path | None = None
    part: tuple[int, int] = (0, 1)
    quiet: bool = True
    label: str = "evaluate"
    finish: Callable[[list[Record]], None] | None = None
    name: str = field(default="", init=False)
    waiting: bool = field(default=False, init=False)  # for blocks of other processes, after `run`

    def __post_init__(self) -> None:
        number, parts = self.part
        if not 0 <= number < parts:
            raise ConfigError(f"part: expected I of N with I in 0..N-1, got {number} of {parts}")
        if self.folder is None and parts > 1:
            raise InputError(f"{parts} processes share an evaluation through a folder; name one with --out FILE")

    def __str__(self) -> str:
        return f"part {self.part[0]} of {self.part[1]}"

    @contextmanager
    def run(
        self,
        protocol: Mapping[str, object],
        num: int,
        batch_size: int,
        measure: Measure,
        begin: Callable[[str], None] | None = None,
    ) -> Iterator[Iterator[Rows] | None]:
        """Measure this process's blocks; yields all images in batches, in order, or None where blocks are missing.

        The blocks are removed when the body ends without an error, so write the records in it. If several processes
        finish at the same time, one of them gets the images.

        Args:
            protocol: all that the result depends on; blocks of another protocol are not touched.
            measure: image numbers of a batch -> columns with a row for each; a pure function.
            begin: called with the job's name, a hash of all that the result depends on, before anything is measured.

        Raises:
            DataError: the folder cannot be written, or a block in it cannot be read.
        """
        batches = [range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)]
        self.name = fingerprint({**protocol, "num": num, "batch_size": batch_size})
        if begin is not None:
            begin(self.name)
        if self.folder is None:
            yield ((rows, measure(rows)) for rows in self._shown(batches, 0))
            return
        size = -(-LEAST_BLOCK // batch_size)
        blocks = [batches[i : i + size] for i in range(0, len(batches), size)]
        paths = [self.folder / f"{self.name}-{i:06d}.pt" for i in range(len(blocks))]
        self._begin()
        self._measure(blocks, paths, measure)
        with self._alone() as alone:
            self.waiting = not alone or not all(path.exists() for path in paths)
            if self.waiting:
                yield None
            else:
                yield _read(blocks, paths)
                for path in paths:
                    path.unlink(missing_ok=True)
        if not any(path.exists() for path in paths):
            self._end()

    def _begin(self) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write finished blocks there: {reason_of(error)}") from None
        others = {path.name[:16] for path in self.folder.glob("*-??????.pt")} - {self.name}
        if others and not self.quiet:
            print(f"{self.folder}: keeping blocks of {len(others)} other evaluations (other settings or code)")

    def _measure(self, blocks: list[list[range]], paths: list[Path], measure: Measure) -> None:
        number, parts = self.part
        own = [i for i in range(len(blocks)) if i % parts == number]
        todo = [i for i in own if not paths[i].exists()]
        done = sum(len(rows) for i in own if i not in todo for rows in blocks[i])
        ahead = self._shown([rows for i in todo for rows in blocks[i]], done)
        for i in todo:
            columns = [measure(next(ahead)) for _ in blocks[i]]
            _write(paths[i], columns)
        next(ahead, None)  # ends the bar

    def _shown(self, batches: list[range], done: int) -> Iterator[range]:
        """The batches, with a progress bar over them."""
        from tqdm import tqdm

        total = done + sum(map(len, batches))
        name = self.label if self.part[1] == 1 else f"{self.label} {self.part[0]}/{self.part[1]}"
        with tqdm(total=total, initial=done, disable=True if self.quiet else None, unit="image", desc=name) as bar:
            for rows in batches:
                yield rows
                bar.update(len(rows))

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Only one process at a time (the lock of a killed one is released); False where another one has finished."""
        assert self.folder is not None
        try:
            file = (self.folder / f"{self.name}.lock").open("w")
        except FileNotFoundError:
            yield False
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield True

    def _end(self) -> None:
        assert self.folder is not None
        left = [self.folder / f"{self.name}.lock", *self.folder.glob(f".{self.name}-*.tmp")]
        for path in left:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # blocks of another evaluation are in there
            self.folder.rmdir()


def fingerprint(protocol: Mapping[str, object]) -> str:
    """16 hex digits of everything that an evaluation depends on."""
    text = json.dumps(protocol, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def drop_torn(*paths: Path) -> None:
    """Remove temporary files that killed processes left beside these files.

    Only for the process that writes them: while it holds the lock of its job, all temporary files are of killed ones.
    """
    for path in paths:
        remove_left(path)


def _write(path: Path, columns: list[Columns]) -> None:
    try:
        with replacing(path) as temporary:
            torch.save(
                {"batches": [{key: value.cpu() for key, value in batch.items()} for batch in columns]}, temporary
            )
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        raise DataError(
            f"{path}: cannot write a finished block: {reason_of(error)}; free space, then run again"
        ) from None


def _read(blocks: list[list[range]], paths: list[Path]) -> Iterator[Rows]:
    for batches, path in zip(blocks, paths):
        try:
            columns = torch.load(path, map_location="cpu", weights_only=True)["batches"]
        except Exception as error:  # whatever torch makes of a damaged file
            raise DataError(
                f"{path}: damaged block of an evaluation ({reason_of(error)}); delete it and run again"
            ) from None
        yield from zip(batches, columns, strict=True)

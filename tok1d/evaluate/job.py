"""An evaluation as a job: blocks of images that several processes share and that an interruption does not lose."""

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
from tok1d.locks import hold_part
from tok1d.progress import Bar
from tok1d.zoo.record import Record

MIN_BLOCK = 64  # least number of images in a block, so that small batches do not make too many files

Columns = dict[str, Tensor]  # measurements of a range of images by name, one row for each image
Measure = Callable[[range], Columns]
Rows = tuple[range, Columns]


@dataclass
class Job:
    """How the images of an evaluation are divided into blocks, and where finished blocks are stored.

    Batches are ranges of image numbers and are combined in order, so the result does not depend on the number of
    processes or on interruptions.

    Args:
        folder: for finished blocks; processes on several machines can share it. None: blocks are not stored.
        part: (i, n): this process measures blocks i, i + n, i + 2n, ...
        quiet: no progress bar and no messages.
        label: text before the progress bar.
        finish: called with the records before the blocks are removed, for example to write them.
        target: file that `finish` writes; it is not replaced unless it belongs to this evaluation.
        overwrite: replace `target` in any case.

    Attributes:
        name: hash of everything that the result depends on, set by `run`.
        waiting: whether blocks of other processes are missing, set by `run`.

    Raises:
        ConfigError: a part outside 0..n-1, or a file at `target` without unfinished blocks.
        InputError: several parts without a folder.
    """

    folder: Path | None = None
    part: tuple[int, int] = (0, 1)
    quiet: bool = True
    label: str = "evaluate"
    finish: Callable[[list[Record]], None] | None = None
    target: Path | None = None
    overwrite: bool = False
    name: str = field(default="", init=False)
    waiting: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        number, parts = self.part
        if not 0 <= number < parts:
            raise ConfigError(f"part: expected I of N with I in 0..N-1, got {number} of {parts}")
        if self.folder is None and parts > 1:
            raise InputError(f"an evaluation with {parts} processes needs a shared folder: pass --out FILE")
        if self.folder is not None and not self.folder.is_dir():
            self._check_target()

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
        """Measure this process's blocks, then yield the batches of all blocks in order; None if blocks are missing.

        The blocks are removed when the body of the `with` statement ends without an error, so it must write the
        records. If several processes finish at the same time, only one of them gets the batches.

        Args:
            protocol: everything that the result depends on; blocks of other protocols stay as they are.
            measure: a pure function from the image numbers of a batch to its columns.
            begin: called with the job's name before anything is measured.

        Raises:
            ConfigError: another evaluation, or another process with the same part, writes there, or `target` is a
                file of something else.
            DataError: the folder cannot be written, or a block in it cannot be read.
        """
        batches = [range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)]
        self.name = fingerprint({**protocol, "num": num, "batch_size": batch_size})
        if begin is not None:
            begin(self.name)
        if self.folder is None:
            yield ((rows, measure(rows)) for rows in self._shown(batches, 0))
            return
        size = -(-MIN_BLOCK // batch_size)
        blocks = [batches[i : i + size] for i in range(0, len(batches), size)]
        paths = [self.folder / f"{self.name}-{i:06d}.pt" for i in range(len(blocks))]
        lock = self.folder.with_name(f".{self.folder.name}.lock")
        with hold_part(lock, str(self.target or self.folder), self.part, self.name):
            if not any(self.folder.glob(f"{self.name}*")):
                self._check_target()
            self._begin()
            self._measure(blocks, paths, measure)
            with self._locked() as locked:
                self.waiting = not locked or not all(path.exists() for path in paths)
                if self.waiting:
                    yield None
                else:
                    yield _read(blocks, paths)
                    for path in paths:
                        path.unlink(missing_ok=True)
            if not any(path.exists() for path in paths):
                self._end()

    def _check_target(self) -> None:
        """Refuse a file at `target` that this evaluation has not written: it has no blocks or lock in the folder."""
        if self.target is not None and self.target.exists() and not self.overwrite:
            raise ConfigError(f"{self.target}: exists; pass --overwrite to replace it, or choose another --out")

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
        next(ahead, None)  # closes the progress bar

    def _shown(self, batches: list[range], done: int) -> Iterator[range]:
        """The batches, with a progress bar over them."""
        total = done + sum(map(len, batches))
        name = self.label if self.part[1] == 1 else f"{self.label} {self.part[0]}/{self.part[1]}"
        with Bar(total, done=done, unit="image", name=name, quiet=self.quiet) as bar:
            for rows in batches:
                yield rows
                bar.update(len(rows))

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the job's lock, which a killed process releases; False if another process has finished the job."""
        assert self.folder is not None
        try:
            file = (self.folder / f"{self.name}.lock").open("w", encoding="utf-8")
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
        with suppress(OSError):  # not empty: blocks of another evaluation
            self.folder.rmdir()


def fingerprint(protocol: Mapping[str, object]) -> str:
    """16 hex digits: a hash of a protocol."""
    text = json.dumps(protocol, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remove_temporary(*paths: Path) -> None:
    """Remove the temporary files that killed processes left when they wrote these files.

    Call it only while holding the lock of the job that writes them: no other process then writes a temporary file.
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
        except Exception as error:  # torch raises many types on a damaged file
            raise DataError(
                f"{path}: damaged block of an evaluation ({reason_of(error)}); delete it and run again"
            ) from None
        yield from zip(batches, columns, strict=True)

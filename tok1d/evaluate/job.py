"""An evaluation as a job: images in blocks, shared by processes, each finished block kept until all are there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.errors import ConfigError, DataError, InputError

LEAST_BLOCK = 64  # images in a block, so that small batches do not become a crowd of files

Columns = dict[str, Tensor]  # what is measured of a range of images, one row an image
Measure = Callable[[range], Columns]
Rows = tuple[range, Columns]


@dataclass
class Job:
    """How the images of an evaluation are shared out and where its finished blocks are kept.

    The batches are cut by the images' numbers, whoever measures them, and put together in order, so that the outcome
    is the same for any number of processes and after any interruption.

    Args:
        folder: of the finished blocks; several processes and machines may share it. None: nothing is kept.
        part: (i, n), this process measures every n-th block from the i-th on.
        quiet: no progress bar, no lines.
        label: what the progress bar says.
        finish: called with the records before the blocks are removed: writes them.
    """

    folder: Path | None = None
    part: tuple[int, int] = (0, 1)
    quiet: bool = True
    label: str = "evaluate"
    finish: Callable[[list[Any]], None] | None = None
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
        protocol: Mapping[str, Any],
        num: int,
        batch_size: int,
        measure: Measure,
        begin: Callable[[str], None] | None = None,
    ) -> Iterator[Iterator[Rows] | None]:
        """Measure this process's blocks; gives all images in batches, in order, or None where blocks are missing.

        The blocks are removed once the body has ended well, so write the records in there. Where several processes
        come to the end together, one of them gets the images.

        Args:
            protocol: all that the outcome depends on; blocks of another one are left alone.
            measure: a batch's numbers -> columns with a row for each; a pure function.
            begin: called with the job's name, a hash of all that the outcome depends on, before anything is measured.

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
            raise DataError(
                f"{self.folder}: cannot keep the finished blocks there: {error.strerror or error}"
            ) from None
        others = {path.name[:16] for path in self.folder.glob("*-??????.pt")} - {self.name}
        if others and not self.quiet:
            print(f"{self.folder}: leaving alone blocks of {len(others)} other evaluations (other settings or code)")

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
        """Only one process at a time (the lock of a killed one is released); False where another has cleared up."""
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


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """16 hex digits of all that an evaluation depends on."""
    text = json.dumps(protocol, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def drop_torn(*paths: Path) -> None:
    """Remove what processes that were killed while they wrote these files left beside them.

    Only for the one process that writes them: while it holds its job's lock, any temporary file is of a killed one.
    """
    for path in paths:
        for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
            left.unlink(missing_ok=True)


def _write(path: Path, columns: list[Columns]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({"batches": [{key: value.cpu() for key, value in batch.items()} for batch in columns]}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot keep a finished block: {reason}; free space, then run again") from None
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()


def _read(blocks: list[list[range]], paths: list[Path]) -> Iterator[Rows]:
    for batches, path in zip(blocks, paths):
        try:
            columns = torch.load(path, map_location="cpu", weights_only=True)["batches"]
        except Exception as error:  # whatever torch makes of a damaged file
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{path}: damaged block of an evaluation ({reason}); delete it and run again") from None
        yield from zip(batches, columns, strict=True)

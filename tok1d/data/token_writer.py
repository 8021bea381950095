"""Writing token caches, by any number of processes, each of which may be killed and run again."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tok1d.data.tokens import FORMAT, INDEX, Layout, Shard, shard_name
from tok1d.errors import DataError, reason_of
from tok1d.files import replacing, write_text

_SHARDS = re.compile(r"shard-\d{5,}\.safetensors")


class TokenWriter:
    """Write a token cache of `rows` rows, or one part of it.

    After an interruption the same call continues with the shards that are missing. Part (i, n) is the i-th of n
    contiguous ranges of whole shards. The processes that write the parts share only the folder: the one that finds all
    shards complete writes the index. n may change between runs.

    Args:
        meta: JSON values that determine the rows, see `tokens.Meta`.
        about: JSON values for the index that do not determine the rows, see `tokens.About`. Those of the process that
            writes the index are stored.
        part: (i, n), see above.
        overwrite: replace the shards of this part, and the index.

    Raises:
        DataError: the folder contains other files, a finished cache (or, for one of several parts, a finished cache
            with other settings), or an unfinished cache with other settings; it cannot be written, or the disk has too
            little free space.
    """

    def __init__(
        self,
        folder: str | Path,
        layout: Layout,
        rows: int,
        *,
        meta: Mapping[str, object],
        about: Mapping[str, object] | None = None,
        part: tuple[int, int] = (0, 1),
        overwrite: bool = False,
    ) -> None:
        self.folder, self.layout, self.rows, self._about = Path(folder), layout, rows, dict(about or {})
        if rows < 1:
            raise DataError(f"{self.folder}: a token cache needs at least one row, got 0: choose data with images")
        self._identity = json.dumps({"format": FORMAT, **asdict(layout), "meta": dict(meta)}, sort_keys=True)
        self._tokens: list[Tensor] = []  # rows of the next shard
        self._labels: list[Tensor] = []
        self._lengths: list[Tensor] = []
        number, parts = part
        count = layout.num_shards(rows)
        self._own = range(number * count // parts, (number + 1) * count // parts)
        try:
            self._missing = self._begin(overwrite, alone=parts == 1)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written: {reason_of(error)}: choose another folder") from error

    @property
    def num_rows(self) -> int:
        """Rows of this part."""
        return sum(self._shard_rows(number) for number in self._own)

    @property
    def rows_done(self) -> int:
        """Rows of this part in finished shards."""
        return self.num_rows - sum(self._shard_rows(number) for number in self._missing)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The (first row, last row + 1) of every missing shard of this part, in the order that `write` expects."""
        starts = ((number, number * self.layout.rows_per_shard) for number in self._missing)
        return [(start, start + self._shard_rows(number)) for number, start in starts]

    def write(self, tokens: Tensor | np.ndarray, labels: Tensor | np.ndarray, lengths: Tensor | None = None) -> None:
        """Append the next rows of `ranges`; a shard is written to disk as soon as its rows are complete.

        Args:
            tokens: (B, K, D) float, or ids (B, K).
            labels: (B,).
            lengths: numbers of tokens (B,); for all rows of the cache, or for none.

        Raises:
            DataError: tokens that are not finite in the type of the cache, or a shard cannot be written.
            ValueError: another shape or type, or more rows than are missing.
        """
        layout, values = self.layout, torch.as_tensor(tokens).detach().cpu()
        targets = torch.as_tensor(labels).cpu().to(torch.int64)
        if values.shape[1:] != layout.row or len(values) != len(targets):
            raise ValueError(
                f"expected tokens (B, {layout.row}) and labels (B,), got {tuple(values.shape)} and {len(targets)}"
            )
        if values.is_floating_point() == (layout.dtype == "int64"):
            raise ValueError(f"a cache of {layout.dtype} cannot take {values.dtype}")
        values = values.to(getattr(torch, layout.dtype), copy=True)  # the caller may reuse its buffer
        if not torch.isfinite(values).all():
            raise DataError(
                f"{self.folder}: tokens are not finite in {layout.dtype}: check the tokenizer or use float32"
            )
        numbers = torch.empty(len(values), 0) if lengths is None else lengths.detach().cpu().to(torch.int64)
        while len(values):
            if not self._missing:
                raise ValueError(f"got {len(values)} rows more than this part lacks")
            lacking = self._shard_rows(self._missing[0]) - sum(map(len, self._tokens))
            self._tokens.append(values[:lacking])
            self._labels.append(targets[:lacking])
            self._lengths.append(numbers[:lacking])
            if len(values) >= lacking:
                self._flush()
            values, targets, numbers = values[lacking:], targets[lacking:], numbers[lacking:]

    def close(self) -> bool:
        """Write the index if all shards of the cache are complete.

        Returns:
            Whether the cache is finished.

        Raises:
            DataError: the index cannot be written.
            ValueError: rows of this part are missing.
        """
        if self._missing:
            raise ValueError(f"rows {self.ranges} are missing")
        names = [shard_name(number) for number in range(self.layout.num_shards(self.rows))]
        try:
            if not set(names) <= set(os.listdir(self.folder)):
                return False
            if set(range(len(names))) != self._finished_shards(strict=False):
                return False
            index = {**json.loads(self._identity), "about": self._about, "rows": self.rows, "shards": names}
            write_text(self.folder / INDEX, json.dumps(index, indent=1) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.folder / INDEX}: cannot be written: {reason_of(error)}: free disk space and run again"
            ) from error
        # Temporary files of killed processes. Earlier, a process that was still writing might have owned them.
        for path in self.folder.glob(".shard-*.tmp"):
            path.unlink(missing_ok=True)
        return True

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _shard_rows(self, number: int) -> int:
        return self.layout.shard_rows(number, self.rows)

    def _begin(self, overwrite: bool, alone: bool) -> list[int]:
        """Check the folder and its free space; return the numbers of the shards to write.

        Existing shards with another number of rows are written again.
        """
        index = self.folder / INDEX
        others = (
            []
            if (overwrite and index.exists()) or not self.folder.is_dir()
            else [path.name for path in self.folder.iterdir()]
        )
        if foreign := next(
            (name for name in sorted(others) if name != INDEX and not _SHARDS.fullmatch(name) and name[0] != "."), None
        ):
            raise DataError(
                f"{self.folder}: contains files that are not of a token cache ({foreign}): choose another folder"
            )
        if index.exists() and not overwrite and (alone or not self._is_ours(index)):
            raise DataError(
                f"{self.folder}: already holds a finished token cache: choose another folder or pass --overwrite"
            )
        kept = self._finished_shards(strict=not overwrite) - (set(self._own) if overwrite else set())
        files = {path: path.stat().st_size for path in self._shards()}
        outdated = [path for path in files if _number(path) not in kept]
        self._check_free_space(kept, freed=sum(files[path] for path in outdated))
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            index.unlink(missing_ok=True)
            count = self.layout.num_shards(self.rows)
            for path in outdated:
                if _number(path) in self._own or _number(path) >= count:  # the others belong to other parts
                    path.unlink(missing_ok=True)
        return [number for number in self._own if number not in kept]

    def _is_ours(self, index: Path) -> bool:
        """Whether a finished cache is equal to the one that this call would write."""
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
        except ValueError:
            return False
        wanted = {**json.loads(self._identity), "rows": self.rows}
        return {key: found.get(key) for key in wanted} == wanted

    def _finished_shards(self, *, strict: bool) -> set[int]:
        """Return the numbers of complete shards with these settings; raises DataError on others if `strict`."""
        finished = set()
        for path in self._shards():
            try:
                shard = Shard(path)
            except DataError:
                continue
            number = _number(path)
            if shard.identity != self._identity:
                if strict:
                    raise DataError(
                        f"{self.folder}: holds an unfinished token cache of other settings: "
                        "choose another folder or pass --overwrite"
                    )
            elif shard.rows == self._shard_rows(number):
                finished.add(number)
        return finished

    def _shards(self) -> list[Path]:
        return [path for path in self.folder.glob("shard-*") if _SHARDS.fullmatch(path.name)]

    def _check_free_space(self, kept: set[int], freed: int) -> None:
        needed = self.layout.num_bytes(self.rows - sum(map(self._shard_rows, kept))) - freed
        free = free_bytes(self.folder)
        if needed > free:
            raise DataError(
                f"{self.folder}: needs {show_bytes(needed)}, has {show_bytes(free)} free: choose another folder, "
                "fewer tokens or views, or --dtype bfloat16"
            )

    def _flush(self) -> None:
        number = self._missing[0]
        name = shard_name(number)
        try:
            with replacing(self.folder / name) as temporary:
                parts = {"tokens": torch.cat(self._tokens), "labels": torch.cat(self._labels)}
                if (lengths := torch.cat(self._lengths)).ndim == 1:
                    parts["lengths"] = lengths
                save_file(parts, temporary, metadata={"identity": self._identity})
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.folder / name}: cannot be written: {reason_of(error)}: free disk space and run again"
            ) from error
        self._missing = self._missing[1:]
        self._tokens, self._labels, self._lengths = [], [], []


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is, or would be created."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(place).free


def show_bytes(count: int) -> str:
    """Format a size such as "26.2 GB"; 1 GB is 1e9 bytes."""
    unit, size = ("GB", 1e9) if count >= 1e8 else ("MB", 1e6) if count >= 1e5 else ("kB", 1e3)
    return f"{count / size:.1f} {unit}"

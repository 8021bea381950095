"""The token cache, reading: memory-mapped safetensors shards and an index.json that is written last.

A folder without index.json is unfinished. Shard files hold "tokens", (R, K, D) or (R, K) for ids, and "labels",
(R,) int64; all shards but the last have `rows_per_shard` rows. `token_writer.py` writes them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tok1d.errors import DataError

INDEX = "index.json"
FORMAT = "tok1d-tokens-1"
DType = Literal["float32", "float16", "bfloat16", "int64"]
# How the numbers lie in memory; numpy has no bfloat16.
_STORED: dict[DType, str] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16", "int64": "int64"}
_SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "BF16": "uint16", "I64": "int64"}


@dataclass(frozen=True)
class Layout:
    """What a row of a cache looks like: K tokens of D numbers, or K ids (`dtype="int64"`, `dim=0`)."""

    num_tokens: int
    dim: int
    dtype: DType
    rows_per_shard: int

    def __post_init__(self) -> None:
        if self.dtype not in _STORED or (self.dtype == "int64") != (self.dim == 0):
            raise ValueError(f"tokens are float32, float16 or bfloat16 with dim > 0, or int64 ids: found {self}")
        if self.num_tokens < 1 or self.dim < 0 or self.rows_per_shard < 1:
            raise ValueError(f"a token cache needs positive sizes: found {self}")

    @property
    def row(self) -> tuple[int, ...]:
        return (self.num_tokens, self.dim) if self.dim else (self.num_tokens,)

    @property
    def stored(self) -> np.dtype:
        """The numpy type that holds the numbers."""
        return np.dtype(_STORED[self.dtype])

    def num_bytes(self, rows: int) -> int:
        """Bytes of so many rows with their labels."""
        return rows * (self.num_tokens * max(self.dim, 1) * self.stored.itemsize + 8)

    def num_shards(self, rows: int) -> int:
        return -(-rows // self.rows_per_shard)

    def shard_rows(self, number: int, rows: int) -> int:
        """Rows of one shard of a cache of `rows`."""
        return min(self.rows_per_shard, rows - number * self.rows_per_shard)


class TokenCache:
    """Read a finished token cache; raises DataError naming a missing, truncated or foreign file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text())
            if index.get("format") != FORMAT:
                raise DataError(f"{path}: expected format {FORMAT}, got {index.get('format')}: run tok1d encode again")
            self.layout = Layout(*(index[key] for key in ("num_tokens", "dim", "dtype", "rows_per_shard")))
            self.meta: dict[str, Any] = index["meta"]
            self.about: dict[str, Any] = dict(index.get("about", {}))
            self._settings: dict[str, Any] = dict(self.about.get("tokenizer_settings", {}))
            self._rows, names = int(index["rows"]), list(index["shards"])
            _check_index(self.layout, self._rows, names, self.meta)
        except FileNotFoundError as error:
            raise DataError(f"{path}: missing: not a token cache, or unfinished: run tok1d encode (again)") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a readable index ({error}): run tok1d encode again") from error
        self._shards = [Shard(self.folder / name) for name in names]
        for number, shard in enumerate(self._shards):
            expected = (self.layout.shard_rows(number, self._rows), self.layout.row, self.layout.stored)
            if (shard.rows, shard.tokens.shape[1:], shard.tokens.dtype) != expected:
                raise DataError(f"{shard.path}: {shard.tokens.shape} does not fit the index: run tok1d encode again")

    def __len__(self) -> int:
        return self._rows

    @property
    def num_tokens(self) -> int:
        return self.layout.num_tokens

    @property
    def dim(self) -> int:
        """Numbers a token, or 0 for ids."""
        return self.layout.dim

    @property
    def views(self) -> int:
        """Rows an image: row i * views + v is view v of image i."""
        return int(self.meta.get("views", 1))

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return tokens, float32 (B, K, D) or int64 (B, K), and labels, int64 (B,)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self._rows:
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a cache of {self._rows}")
        tokens = np.empty((len(indices), *self.layout.row), self.layout.stored)
        labels = np.empty(len(indices), np.int64)
        numbers, rows = np.divmod(indices, self.layout.rows_per_shard)
        order = np.argsort(numbers, kind="stable")  # each shard's rows become one slice
        touched, starts = np.unique(numbers[order], return_index=True)
        for number, places in zip(touched, np.split(order, starts[1:]), strict=True):
            shard = self._shards[number]
            tokens[places] = shard.tokens[rows[places]]
            labels[places] = shard.labels[rows[places]]
        values = torch.from_numpy(tokens)
        if self.layout.dtype == "bfloat16":
            values = values.view(torch.bfloat16)
        return values.float() if self.layout.dim else values, torch.from_numpy(labels)

    def check(
        self,
        *,
        tokenizer_fingerprint: str | None = None,
        tokenizer_settings: Mapping[str, Any] | None = None,
        data_fingerprint: str | None = None,
    ) -> None:
        """Raise DataError where the cache was made by another tokenizer or from other data than those given.

        Args:
            tokenizer_settings: dotted key -> value, what a fingerprint of weights does not show (heads, say); a key
                that only one side has says nothing.
        """
        expected = {"tokenizer": tokenizer_fingerprint, "data": data_fingerprint}
        for kind, wanted in expected.items():
            found = self.meta.get(f"{kind}_fingerprint", "unknown")
            if wanted is not None and wanted != found:
                made = "made by tokenizer" if kind == "tokenizer" else "made from data"
                raise DataError(
                    f"{self.folder}: the cache was {made} {found}, this is {wanted}: run tok1d encode again"
                )
        made_with, settings = self._settings, tokenizer_settings or {}
        for key in sorted(made_with.keys() & settings.keys()):
            if made_with[key] != settings[key]:
                raise DataError(
                    f"{self.folder}: the cache was made by a tokenizer of {key}={made_with[key]}, this is of "
                    f"{settings[key]}: run tok1d encode again"
                )


class Shard:
    """One safetensors file mapped into memory at the offsets that its header states."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= size - 8:
                    raise ValueError(f"{size} bytes, cut off in its header")
                header = json.loads(file.read(length))
            self.identity: str | None = header.get("__metadata__", {}).get("identity")
            self.tokens, self.labels = (self._map(header[name], 8 + length, size) for name in ("tokens", "labels"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{path}: missing or damaged token shard ({why}): run tok1d encode again") from error
        self.rows = len(self.labels)
        if len(self.tokens) != self.rows:
            raise DataError(f"{path}: {len(self.tokens)} rows of tokens and {self.rows} labels: run tok1d encode again")

    def _map(self, entry: dict[str, Any], start: int, size: int) -> np.memmap:
        dtype = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if end - begin != dtype.itemsize * int(np.prod(shape)) or start + end > size:
            raise ValueError(f"{size} bytes where its header asks for {start + end}")
        return np.memmap(self.path, dtype, mode="r", offset=start + begin, shape=shape)


def _check_index(layout: Layout, rows: int, names: list[Any], meta: Any) -> None:
    """Raise ValueError or TypeError on numbers and names that do not go together."""
    if not isinstance(meta, dict) or not all(isinstance(name, str) for name in names):
        raise TypeError("meta is a mapping and shards are names")
    if rows < 1 or len(names) != layout.num_shards(rows):
        raise ValueError(f"{len(names)} shards of {layout.rows_per_shard} rows for {rows} rows")
    for key in ("views", "num_classes"):
        if type(meta.get(key, 1)) is not int or meta.get(key, 1) < (key == "views"):
            raise ValueError(f"{key} is a count, got {meta[key]!r}")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"

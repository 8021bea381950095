"""Reading token caches: folders of memory-mapped safetensors shards and an index.json.

The index is written last, so a folder without it is unfinished. Shard files hold "tokens", (R, K, D) or ids (R, K),
"labels", int64 (R,), and in a cache with budgets "lengths", int64 (R,), numbers of tokens. All shards but the last have
`rows_per_shard` rows. `token_writer.py` writes them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from tok1d.data.base import Indices
from tok1d.data.prints import SEES, kind_of_print
from tok1d.errors import DataError, reason_of

INDEX = "index.json"
FORMAT = "tok1d-tokens-1"
DType = Literal["float32", "float16", "bfloat16", "int64"]
# The numpy type in which values are stored; numpy has no bfloat16.
_STORED: dict[DType, str] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16", "int64": "int64"}
_SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "BF16": "uint16", "I64": "int64"}


class Meta(TypedDict, total=False):
    """What determines the rows of a cache. Older caches lack some of the keys."""

    tokenizer_fingerprint: str  # of the weights
    data_fingerprint: str  # of the image set
    transform: str  # its fingerprint
    views: int  # rows per image
    keep: int  # number of leading tokens stored
    num_classes: int
    moments: bool  # whether rows hold mean and standard deviation of each token, (K, 2 D)
    label: str  # conditioning of the encoder: "true" or "null"
    captions: str  # fingerprint of the captions that condition the encoder
    seed: int  # of random crops
    quality: float  # in dB, for which the numbers of tokens were chosen
    quality_metric: str
    quality_by: str  # search or head


class About(TypedDict, total=False):
    """Information about a cache that does not determine its rows."""

    tokenizer_settings: dict[str, object]  # see `TokenCache.check`
    classes: list[str]  # names of the images' classes, in the order of the labels
    files: list[str]  # names of the images, in their order; paths in the data folder


class _Entry(TypedDict):
    """An array in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Shape and type of the rows of a cache.

    Args:
        num_tokens: number K of tokens in a row.
        dim: D numbers per token; 0 for ids.
        dtype: "int64" for ids.
        rows_per_shard: rows of each shard but the last.

    Raises:
        ValueError: sizes out of range, or a type that does not match `dim`.
    """

    num_tokens: int
    dim: int
    dtype: DType
    rows_per_shard: int

    def __post_init__(self) -> None:
        if self.dtype not in _STORED or (self.dtype == "int64") != (self.dim == 0):
            raise ValueError(
                f"expected float32, float16 or bfloat16 with dim > 0, or int64 with dim 0 (ids), got {self}"
            )
        if self.num_tokens < 1 or self.dim < 0 or self.rows_per_shard < 1:
            raise ValueError(f"expected num_tokens and rows_per_shard >= 1 and dim >= 0, got {self}")

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of a row: (K, D), or (K,) of ids."""
        return (self.num_tokens, self.dim) if self.dim else (self.num_tokens,)

    @property
    def stored(self) -> np.dtype:
        """The numpy type in which values are stored."""
        return np.dtype(_STORED[self.dtype])

    def num_bytes(self, rows: int) -> int:
        """Return the size in bytes of `rows` rows and their labels, without headers."""
        return rows * (self.num_tokens * max(self.dim, 1) * self.stored.itemsize + 8)

    def num_shards(self, rows: int) -> int:
        """Return the number of shards of a cache of `rows` rows."""
        return -(-rows // self.rows_per_shard)

    def shard_rows(self, number: int, rows: int) -> int:
        """Return the number of rows in one shard of a cache of `rows` rows."""
        return min(self.rows_per_shard, rows - number * self.rows_per_shard)


class TokenCache:
    """A finished token cache.

    Raises:
        DataError: a file is missing, damaged or belongs to another cache; names it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index.get("format") != FORMAT:
                raise DataError(f"{path}: expected format {FORMAT}, got {index.get('format')}: run tok1d encode again")
            self.layout = Layout(*(index[key] for key in ("num_tokens", "dim", "dtype", "rows_per_shard")))
            self.meta: Meta = index["meta"]
            self.about: About = {**index.get("about", {})}
            self._settings: dict[str, object] = dict(self.about.get("tokenizer_settings", {}))
            self._rows, names = int(index["rows"]), list(index["shards"])
            _check_index(self.layout, self._rows, names, index["meta"])
        except FileNotFoundError as error:
            raise DataError(f"{path}: missing: not a token cache, or unfinished: run tok1d encode (again)") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a readable index ({reason_of(error)}): run tok1d encode again") from error
        self._shards = [Shard(self.folder / name) for name in names]
        for number, shard in enumerate(self._shards):
            if self.has_lengths and shard.lengths is None:
                raise DataError(f"{shard.path}: has no numbers of tokens as the index states: run tok1d encode again")
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
        """Numbers per token, or 0 for ids."""
        return self.layout.dim

    @property
    def views(self) -> int:
        """Rows per image: row i * views + v is view v of image i."""
        return int(self.meta.get("views", 1))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the labels; empty for an older cache."""
        return list(self.about.get("classes", []))

    @property
    def files(self) -> list[str]:
        """Names of the images: rows i * views to (i + 1) * views - 1 are of files[i]; empty if they have none."""
        return list(self.about.get("files", []))

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return tokens, float32 (B, K, D) or int64 (B, K), and labels, int64 (B,); IndexError for other rows."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self._rows:
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a cache of {self._rows}")
        tokens = np.empty((len(indices), *self.layout.row), self.layout.stored)
        labels = np.empty(len(indices), np.int64)
        numbers, rows = np.divmod(indices, self.layout.rows_per_shard)
        order = np.argsort(numbers, kind="stable")  # so that each shard is read once
        shards, starts = np.unique(numbers[order], return_index=True)
        for number, places in zip(shards, np.split(order, starts[1:]), strict=True):
            shard = self._shards[number]
            tokens[places] = shard.tokens[rows[places]]
            labels[places] = shard.labels[rows[places]]
        values = torch.from_numpy(tokens)
        if self.layout.dtype == "bfloat16":
            values = values.view(torch.bfloat16)
        return values.float() if self.layout.dim else values, torch.from_numpy(labels)

    @property
    def has_lengths(self) -> bool:
        """Whether a number of tokens is stored for each row."""
        return "quality" in self.meta

    def lengths(self, indices: Indices) -> Tensor:
        """The numbers of tokens (B,) int64 that rows need for the quality of the cache."""
        numbers, rows = np.divmod(np.asarray(indices, dtype=np.int64), self.layout.rows_per_shard)
        found = np.empty(len(rows), np.int64)
        for number in np.unique(numbers):
            lengths = self._shards[number].lengths
            assert lengths is not None, "checked when the cache was opened"
            found[numbers == number] = lengths[rows[numbers == number]]
        return torch.from_numpy(found)

    def check(
        self,
        *,
        tokenizer_fingerprint: str | None = None,
        tokenizer_settings: Mapping[str, object] | None = None,
        data_fingerprint: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Check that the cache was made by the given tokenizer from the given data.

        Args:
            tokenizer_fingerprint: hash of the weights; None is not checked.
            tokenizer_settings: values by dotted key of the configuration that the weights do not determine (such as
                the number of heads). Only keys that the cache states too are compared.
            data_fingerprint: of the image set; None is not checked.
            classes: names of the image set's classes; not checked if None, or if an older cache does not state them.

        Raises:
            DataError: it was made by another tokenizer, from other data or with other classes.
        """
        data = self.meta.get("data_fingerprint", "unknown")
        for origin, found, wanted, seen in (
            ("made by tokenizer", self.meta.get("tokenizer_fingerprint", "unknown"), tokenizer_fingerprint, ""),
            ("made from data", data, data_fingerprint, f" (compared: {SEES[kind_of_print(data)]})"),
        ):
            if wanted is not None and wanted != found:
                raise DataError(
                    f"{self.folder}: the cache was {origin} {found}, this is {wanted}{seen}: run tok1d encode again"
                )
        names = self.class_names
        if classes is not None and names and names != list(classes):
            differs = next((i for i, pair in enumerate(zip(names, classes)) if pair[0] != pair[1]), None)
            where = f"{len(names)} and {len(classes)}" if differs is None else f"{names[differs]!r} at {differs}"
            raise DataError(
                f"{self.folder}: the cache has classes of another order or other names ({where}): run tok1d encode "
                "again, or set data.class_order as it was"
            )
        made_with, settings = self._settings, tokenizer_settings or {}
        for key in sorted(made_with.keys() & settings.keys()):
            if made_with[key] != settings[key]:
                raise DataError(
                    f"{self.folder}: the cache was made by a tokenizer with {key}={made_with[key]}, this one has "
                    f"{settings[key]}: run tok1d encode again"
                )


class Shard:
    """A safetensors file of a cache, mapped into memory.

    Its arrays `tokens`, `labels` and `lengths` (None without them) are read from the file when they are indexed.

    Raises:
        DataError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Format: the length of the header (8 bytes, little endian), the header as JSON, the arrays.
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= size - 8:
                    raise ValueError(f"header cut off, the file has {size} bytes")
                header = json.loads(file.read(length))
            self.identity: str | None = header.get("__metadata__", {}).get("identity")
            self.tokens, self.labels = (self._map(header[name], 8 + length, size) for name in ("tokens", "labels"))
            self.lengths = self._map(header["lengths"], 8 + length, size) if "lengths" in header else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: missing or damaged token shard ({reason_of(error)}): run tok1d encode again"
            ) from error
        self.rows = len(self.labels)
        if len(self.tokens) != self.rows or (self.lengths is not None and len(self.lengths) != self.rows):
            raise DataError(f"{path}: {len(self.tokens)} rows of tokens and {self.rows} labels: run tok1d encode again")

    def _map(self, entry: _Entry, start: int, size: int) -> np.memmap:
        dtype = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if end - begin != dtype.itemsize * int(np.prod(shape)) or start + end > size:
            raise ValueError(f"expected at least {start + end} bytes according to the header, got {size}")
        return np.memmap(self.path, dtype, mode="r", offset=start + begin, shape=shape)


def _check_index(layout: Layout, rows: int, names: list[object], meta: object) -> None:
    """Raise ValueError or TypeError if the values of an index do not go together."""
    if not isinstance(meta, dict) or not all(isinstance(name, str) for name in names):
        raise TypeError("expected meta to be a mapping and shards to be names")
    if rows < 1 or len(names) != layout.num_shards(rows):
        raise ValueError(f"{rows} rows do not match {len(names)} shards of {layout.rows_per_shard} rows")
    for key, least in (("views", 1), ("num_classes", 0)):
        value = meta.get(key, 1)
        if type(value) is not int or value < least:
            raise ValueError(f"{key}: expected a number of at least {least}, got {value!r}")


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"

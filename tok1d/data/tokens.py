"""The token cache: memory-mapped safetensors shards and an index.json that is written last.

A folder without index.json is unfinished. Shard files hold "tokens", (R, K, D) or (R, K) for ids, and "labels",
(R,) int64; all shards but the last have `rows_per_shard` rows.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from tok1d.errors import DataError

INDEX = "index.json"
FORMAT = "tok1d-tokens-1"
DType = Literal["float32", "float16", "int64"]
_SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "I64": "int64"}


@dataclass(frozen=True)
class Layout:
    """What a row of a cache looks like: K tokens of D numbers, or K ids (`dtype="int64"`, `dim=0`)."""

    num_tokens: int
    dim: int
    dtype: DType
    rows_per_shard: int

    def __post_init__(self) -> None:
        if self.dtype not in _SAFETENSORS_TYPES.values() or (self.dtype == "int64") != (self.dim == 0):
            raise ValueError(f"tokens are float32 or float16 with dim > 0, or int64 ids with dim 0: found {self}")
        if self.num_tokens < 1 or self.dim < 0 or self.rows_per_shard < 1:
            raise ValueError(f"a token cache needs positive sizes: found {self}")

    @property
    def row(self) -> tuple[int, ...]:
        return (self.num_tokens, self.dim) if self.dim else (self.num_tokens,)


class TokenWriter:
    """Write a token cache row by row; interrupted, the same call finds the finished shards and `rows_done`.

    `meta` (JSON) says what the rows are: `tokenizer_fingerprint`, `data_fingerprint`, `transform`, `keep`, `views`
    (rows per image, default 1; row i * views + v is view v of image i). Raises DataError where the folder holds a
    finished cache, or an unfinished one of other settings, unless `overwrite`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        num_tokens: int,
        dim: int = 0,
        dtype: DType = "float32",
        rows_per_shard: int = 65536,
        meta: dict[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.folder, self.layout = Path(folder), Layout(num_tokens, dim, dtype, rows_per_shard)
        self.meta: dict[str, Any] = json.loads(json.dumps(meta))  # as it will be read back: tuples become lists
        self._identity = json.dumps({"format": FORMAT, **asdict(self.layout), "meta": self.meta}, sort_keys=True)
        self._shards: list[str] = []
        self._rows_done = 0
        self._tokens: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resume(overwrite)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written: {error.strerror}: choose another folder") from error

    @property
    def rows_done(self) -> int:
        """Rows in finished shards: where a resumed run has to begin."""
        return self._rows_done

    def write(self, tokens: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """Append rows: tokens (B, K, D) float or (B, K) ids, labels (B,). Raises DataError where not finite."""
        layout = self.layout
        values = _numpy(tokens)
        if values.shape[1:] != layout.row or len(values) != len(labels):
            raise ValueError(
                f"expected tokens (B, {layout.row}) and labels (B,), found {values.shape} and {len(labels)}"
            )
        if (values.dtype.kind in "iu") != (layout.dtype == "int64"):
            raise ValueError(f"a cache of {layout.dtype} cannot take {values.dtype}")
        with np.errstate(over="ignore"):  # told below, in our words
            values = values.astype(layout.dtype)  # astype copies: the caller may reuse its buffer
        if not np.isfinite(values).all():
            raise DataError(
                f"{self.folder}: tokens are not finite in {layout.dtype}: check the tokenizer or use float32"
            )
        if not len(values):
            return
        self._tokens.append(values)
        self._labels.append(_numpy(labels).astype(np.int64))
        while sum(map(len, self._tokens)) >= layout.rows_per_shard:
            self._flush(layout.rows_per_shard)

    def close(self) -> None:
        """Write the last shard and the index: the cache is finished."""
        if not self._rows_done and not self._tokens:
            raise DataError(f"{self.folder}: no tokens were written: a cache needs at least one row")
        if self._tokens:
            self._flush(self.layout.rows_per_shard)
        index = {**json.loads(self._identity), "rows": self._rows_done, "shards": self._shards}
        temporary = self.folder / f".{INDEX}.tmp"
        try:
            temporary.write_text(json.dumps(index, indent=1) + "\n")
            os.replace(temporary, self.folder / INDEX)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(f"{self.folder / INDEX}: cannot be written: {error.strerror}: make room") from error

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _resume(self, overwrite: bool) -> None:
        """Keep the leading full shards of equal settings; a short or later one was cut off and is written anew."""
        found = sorted(self.folder.glob("shard-*.safetensors"))
        if (self.folder / INDEX).exists() and not overwrite:
            raise DataError(
                f"{self.folder}: already holds a finished token cache: choose another folder or --overwrite"
            )
        (self.folder / INDEX).unlink(missing_ok=True)
        for path in found if not overwrite else []:
            try:
                shard = _Shard(path)
            except DataError:
                break
            if shard.identity != self._identity:
                raise DataError(
                    f"{self.folder}: holds an unfinished token cache of other settings: choose another or --overwrite"
                )
            if path.name != _shard_name(len(self._shards)) or shard.rows != self.layout.rows_per_shard:
                break
            self._shards.append(path.name)
            self._rows_done += shard.rows
        for path in (*found[len(self._shards) :], *self.folder.glob(".shard-*.tmp")):
            path.unlink()

    def _flush(self, rows: int) -> None:
        tokens, labels = np.concatenate(self._tokens), np.concatenate(self._labels)
        name = _shard_name(len(self._shards))
        temporary = self.folder / f".{name}.tmp"
        try:
            # Contiguous copies: safetensors writes the memory as it lies.
            parts = {"tokens": np.ascontiguousarray(tokens[:rows]), "labels": np.ascontiguousarray(labels[:rows])}
            save_file(parts, temporary, metadata={"identity": self._identity})
            os.replace(temporary, self.folder / name)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise DataError(f"{self.folder / name}: cannot be written: {error}: make room and run again") from error
        self._shards.append(name)
        self._rows_done += len(tokens[:rows])
        self._tokens = [tokens[rows:]] if len(tokens) > rows else []
        self._labels = [labels[rows:]] if len(tokens) > rows else []


class TokenCache:
    """Read a finished token cache; raises DataError naming a missing, truncated or foreign file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text())
            if index.get("format") != FORMAT:
                raise DataError(
                    f"{path}: expected format {FORMAT}, found {index.get('format')}: run tok1d encode again"
                )
            self.layout = Layout(*(index[key] for key in ("num_tokens", "dim", "dtype", "rows_per_shard")))
            self.meta: dict[str, Any] = index["meta"]
            self._rows, names = int(index["rows"]), index["shards"]
        except FileNotFoundError as error:
            raise DataError(f"{path}: missing: not a token cache, or unfinished: run tok1d encode (again)") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a readable index ({error}): run tok1d encode again") from error
        self._shards = [_Shard(self.folder / name) for name in names]
        for number, shard in enumerate(self._shards):
            rows = min(self.layout.rows_per_shard, self._rows - number * self.layout.rows_per_shard)
            if (shard.rows, shard.tokens.shape[1:], shard.tokens.dtype) != (rows, self.layout.row, self.layout.dtype):
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
        tokens = np.empty((len(indices), *self.layout.row), self.layout.dtype)
        labels = np.empty(len(indices), np.int64)
        numbers, rows = np.divmod(indices, self.layout.rows_per_shard)
        order = np.argsort(numbers, kind="stable")  # each shard's rows become one slice
        touched, starts = np.unique(numbers[order], return_index=True)
        for number, places in zip(touched, np.split(order, starts[1:]), strict=True):
            shard = self._shards[number]
            tokens[places] = shard.tokens[rows[places]]
            labels[places] = shard.labels[rows[places]]
        values = torch.from_numpy(tokens)
        return values.float() if self.layout.dim else values, torch.from_numpy(labels)

    def check(self, *, tokenizer_fingerprint: str | None = None, data_fingerprint: str | None = None) -> None:
        """Raise DataError where the cache was made by another tokenizer or from other data than those given."""
        expected = {"tokenizer": tokenizer_fingerprint, "data": data_fingerprint}
        for kind, wanted in expected.items():
            found = self.meta.get(f"{kind}_fingerprint", "unknown")
            if wanted is not None and wanted != found:
                made = "made by tokenizer" if kind == "tokenizer" else "made from data"
                raise DataError(
                    f"{self.folder}: the cache was {made} {found}, this is {wanted}: run tok1d encode again"
                )


class _Shard:
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


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)

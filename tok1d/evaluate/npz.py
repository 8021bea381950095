"""Reading of .npz files from any source: damaged files and files of another kind raise a DataError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tok1d.errors import DataError, reason_of


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn every error in the body into a DataError: "PATH: expected ..., got: ..."."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types on a damaged file
        raise DataError(f"{path}: expected {expected}, got: {reason_of(error)}") from None


@contextmanager
def open_npz(path: Path, expected: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an .npz file; an array is read when the body accesses it. Errors become a DataError, see `reading`."""
    with reading(path, expected):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected {expected}, got a single array; write it with numpy.savez")
        with content:
            yield content

"""Opening .npz files that anyone may have made: one that is damaged, or is another kind of file, ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tok1d.errors import DataError, reason_of


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Raise DataError ("PATH: expected ..., got: ...") whatever the body fails with."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged bytes: zipfile, zlib and numpy's parser of headers each have their own
        raise DataError(f"{path}: expected {expected}, got: {reason_of(error)}") from None


@contextmanager
def open_npz(path: Path, expected: str) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz file, read one by one in the body; raises DataError as `reading` does."""
    with reading(path, expected):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected {expected}, got a single array; write it with numpy.savez")
        with content:
            yield content

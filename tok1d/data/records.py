"""What was found out about data and is kept in the cache folder, so that it is found out once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_writing = True


def writing() -> bool:
    """Whether anything may be written into the cache folder now."""
    return _writing


@contextmanager
def nothing_written() -> Iterator[None]:
    """Within it no record is kept, no data set is fetched and no large folder looked through; for one thread."""
    global _writing
    before, _writing = _writing, False
    try:
        yield
    finally:
        _writing = before


def recall(record: Path) -> Any:
    """What was kept; None where there is nothing, or nothing readable."""
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        return None


def keep(record: Path, found: Any) -> None:
    """Keep what was found, whole or not at all. A place to remember it is a comfort, no need: no error is raised."""
    if not _writing:
        return
    temporary = record.with_name(f".{record.name}.{os.getpid()}.tmp")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(found))
        os.replace(temporary, record)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)

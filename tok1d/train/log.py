"""The log of a run: one JSON object per line."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from tok1d import files
from tok1d.errors import DataError

LogEntry = dict[str, int | float | str | list[str]]  # "step", and the values logged at this step


class JsonLog:
    """Appends to log.jsonl. On resume, lines after `step` are dropped: those steps are computed again.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    break  # cut off by a crash: this line and later ones belong to steps that are computed again
                if entry.get("step", 0) <= step:
                    lines.append(line)
        try:
            files.write_text(path, "".join(line + "\n" for line in lines))
        except OSError as error:
            raise self._cannot_write(error) from None
        files.remove_left(path)

    def write(self, entry: LogEntry) -> None:
        """Append one line; if the disk is full, a partly written line is removed."""
        try:
            size = self.path.stat().st_size
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)
                raise
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(
            f"cannot write {self.path}: {error.strerror or error}; free space or fix the permissions, then run the "
            "same command to resume"
        )


def read_log(path: Path) -> list[LogEntry]:
    """All entries of a log.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

"""The log of a run: one JSON object a line, cut back to the resumed step."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tok1d.errors import DataError


class JsonLog:
    """Appends to log.jsonl; on resume drops lines past `step` (they will be written again).

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    break  # a line cut off by a crash: what follows was never acknowledged
                if entry.get("step", 0) <= step:
                    lines.append(line)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text("".join(line + "\n" for line in lines))
            temporary.replace(path)
        except OSError as error:
            raise self._cannot_write(error) from None
        finally:
            with suppress(OSError):  # already renamed, or never made
                temporary.unlink()

    def write(self, entry: dict[str, Any]) -> None:
        try:
            size = self.path.stat().st_size
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)  # half a line found room
                raise
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(f"cannot write {self.path}: {error.strerror or error}; the same command goes on when it can")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All entries of a log.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]

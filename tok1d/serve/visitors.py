"""What the server keeps for each visitor: the results of the tabs, of a bounded number of visitors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from tok1d.errors import InputError

T = TypeVar("T")
MOST_VISITORS = 32


class Visitors:
    """Results by visitor and name; beyond `most` visitors those of the one who has been away longest are removed."""

    def __init__(self, most: int = MOST_VISITORS) -> None:
        self.most = most
        self._kept: OrderedDict[str, dict[str, object]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, visitor: str, name: str, value: object) -> None:
        """Keep a result in place of the former one of that name."""
        with self._lock:
            self._kept.setdefault(visitor, {})[name] = value
            self._kept.move_to_end(visitor)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)

    def find(self, visitor: str, name: str, kind: type[T]) -> T | None:
        """A result; None if there is none."""
        with self._lock:
            if visitor not in self._kept:
                return None
            self._kept.move_to_end(visitor)
            value = self._kept[visitor].get(name)
        return value if isinstance(value, kind) else None

    @contextmanager
    def replacing(self, visitor: str, name: str) -> Iterator[None]:
        """In the body of the `with` statement a result is made anew; if that fails, the former one is removed."""
        try:
            yield
        except Exception:
            self.drop(visitor, name)
            raise

    def get(self, visitor: str, name: str, kind: type[T], missing: str) -> T:
        """A result.

        Raises:
            InputError: there is none; `missing` is the message.
        """
        found = self.find(visitor, name, kind)
        if found is None:
            raise InputError(missing)
        return found

    def drop(self, visitor: str, name: str) -> None:
        """Remove a result, if there is one."""
        with self._lock:
            self._kept.get(visitor, {}).pop(name, None)

    def forget(self, visitor: str) -> None:
        """Remove all results of a visitor."""
        with self._lock:
            self._kept.pop(visitor, None)

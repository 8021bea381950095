"""Names close to a mistyped one, for error messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tok1d.config.text import show
from tok1d.config.written import is_null
from tok1d.errors import ConfigError


def known_name(name: object, known: Iterable[str], key: str) -> str:
    """`name` if it is one of `known`; raises ConfigError naming the nearest otherwise."""
    known = sorted(known)
    if isinstance(name, str) and name in known:
        return name
    near = nearest(str(name), known)
    advice = f"; did you mean {' or '.join(near)}?" if near else ""
    got = "nothing" if is_null(name) else show(name)
    raise ConfigError(f"{key}: expected {' or '.join(known) or 'no name at all'}, got {got}{advice}")


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """The names with the smallest edit distance to `word`, all of them on a tie, none if all are too far.

    An edit inserts, deletes or replaces a character, or swaps two neighbours. One edit is allowed, or a third of the
    word's length if that is more. Upper and lower case may count as equal.
    """
    names = list(dict.fromkeys(names))
    most = max(1, len(word) // 3)
    names = [name for name in names if abs(len(name) - len(word)) <= most]  # the others are farther than `most`
    edits = [min(_edits(word, name), _edits(word.lower(), name.lower())) for name in names]
    fewest = min(edits, default=math.inf)
    return [name for name, n in zip(names, edits) if n == fewest <= most]


def _edits(a: str, b: str) -> int:
    """Optimal string alignment distance."""
    before: Sequence[int] = []
    row = list(range(len(b) + 1))
    for i in range(1, len(a) + 1):
        last, before, row = before, row, [i]
        for j in range(1, len(b) + 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]

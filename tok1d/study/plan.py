"""The trials of a participant: a pure function of the study and the participant's number.

Every participant sees every original once. The conditions (pairs of a number of tokens and a reveal time) rotate over
the originals with the number of the participant, and the sides alternate. So among 2 C participants in a row, for C
conditions, every original is seen in every condition with its reconstruction once on the left and once on the right.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import Literal

from tok1d.study.folder import Item, Study

Kind = Literal["practice", "main", "catch"]
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        position: from 0, in the order of the participant.
        item: number of the item among those of its kind.
        keep: number of tokens of the reconstruction; None in a catch trial, where the original takes its place.
        target: side of the reconstruction; in a catch trial, of the original.
        original, left, right: names of image files.
    """

    position: int
    kind: Kind
    item: int
    keep: int | None
    reveal_ms: int
    target: Side
    original: str
    left: str
    right: str


def conditions(study: Study) -> list[tuple[int, int]]:
    """All pairs of a number of tokens and a reveal time."""
    return list(product(study.keep, study.reveal_ms))


def trials(study: Study, participant: int) -> list[Trial]:
    """The trials of a participant (from 0) in order: practice, then main and catch trials mixed."""
    found = [
        _trial(study, "practice", i, (study.keep[i % len(study.keep)], study.catch_ms), i + participant)
        for i in range(len(study.practice))
    ]
    rest = _main(study, participant)
    rest += [_trial(study, "catch", i, (None, study.catch_ms), i + participant) for i in range(len(study.catch))]
    rest.sort(key=lambda trial: _order(study.seed, participant, trial.kind, trial.item))
    return [_placed(trial, position) for position, trial in enumerate(found + rest)]


def _main(study: Study, participant: int) -> list[Trial]:
    pairs = conditions(study)
    order = sorted(range(len(study.items)), key=lambda item: _order(study.seed, "items", item))
    found = []
    for place, item in enumerate(order):
        number = (place + participant) % len(pairs)
        side = place // len(pairs) + number + participant // len(pairs)
        found.append(_trial(study, "main", item, pairs[number], side))
    return found


def _trial(study: Study, kind: Kind, number: int, condition: tuple[int | None, int], side: int) -> Trial:
    """A trial whose position is not yet known; an even `side` is left."""
    items: tuple[Item, ...] = {"practice": study.practice, "main": study.items, "catch": study.catch}[kind]
    item, (keep, reveal_ms) = items[number], condition
    shown = item.original if keep is None else item.reconstructions[study.keep.index(keep)]
    target = SIDES[side % 2]
    left, right = (shown, item.distractor) if target == "left" else (item.distractor, shown)
    return Trial(-1, kind, number, keep, reveal_ms, target, item.original, left, right)


def _placed(trial: Trial, position: int) -> Trial:
    return Trial(**{**trial.__dict__, "position": position})


def _order(*key: int | str) -> bytes:
    """A pseudorandom sort key, equal on all machines and versions."""
    return hashlib.sha256(" ".join(map(str, key)).encode()).digest()

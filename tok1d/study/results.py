"""The answers of a study in an SQLite file: one transaction for each answer, on disk before it is confirmed.

It holds no personal data: a participant is a number with a random code.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

from tok1d.errors import DataError, InputError, reason_of

Choice = Literal["left", "right", "tie"]
LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that look alike
CODE = rf"[{LETTERS}]{{4}}-[{LETTERS}]{{4}}"
MAX_PARTICIPANTS = 10_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participants (number INTEGER PRIMARY KEY, code TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS reveals (participant INTEGER, position INTEGER, times INTEGER NOT NULL,
    PRIMARY KEY (participant, position));
CREATE TABLE IF NOT EXISTS answers (participant INTEGER, position INTEGER, choice TEXT NOT NULL,
    shown_ms REAL NOT NULL, frame_ms REAL NOT NULL, frames INTEGER NOT NULL, response_ms REAL NOT NULL,
    hidden INTEGER NOT NULL, answered TEXT NOT NULL, PRIMARY KEY (participant, position));
"""


@dataclass(frozen=True)
class Answer:
    """An answer, with the reveal as the page measured it.

    Args:
        shown_ms: how long the original was shown, between the frames that drew and removed it.
        frame_ms: the display's time per frame.
        frames: frames for which it was shown.
        response_ms: from the choice's appearance to the answer.
        hidden: whether the page was in the background during the reveal.
    """

    choice: Choice
    shown_ms: float
    frame_ms: float
    frames: int
    response_ms: float
    hidden: bool


@dataclass(frozen=True)
class StoredAnswer:
    """An answer of a participant; `reveals` counts how often the original of this trial was shown."""

    participant: int
    position: int
    answer: Answer
    reveals: int


class NotCurrentError(Exception):
    """A trial that the participant has not reached, or has answered."""


class Results:
    """The results file of a study; safe for several threads and processes.

    Args:
        identity: of the study; a file with answers to another one is refused.

    Raises:
        DataError: the file cannot be opened, is no results file, or belongs to another study.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = Path(path)
        try:
            with self._connected() as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(SCHEMA)
            with self._transaction() as connection:
                if (row := connection.execute("SELECT identity FROM study").fetchone()) is None:
                    connection.execute("INSERT INTO study VALUES (?)", (identity,))
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot be opened as results ({reason_of(error)})") from None
        if row is not None and row[0] != identity:
            raise DataError(f"{self.path}: expected answers to this study, got those to another; move the file away")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def join(self) -> str:
        """Add a participant; returns the code.

        Raises:
            InputError: there are `MAX_PARTICIPANTS`.
        """
        code = "".join(secrets.choice(LETTERS) for _ in range(8))
        code = f"{code[:4]}-{code[4:]}"
        with self._transaction() as connection:
            (number,) = connection.execute("SELECT COUNT(*) FROM participants").fetchone()
            if number >= MAX_PARTICIPANTS:
                raise InputError(f"expected at most {MAX_PARTICIPANTS} participants")
            connection.execute("INSERT INTO participants VALUES (?, ?)", (number, code))
        return code

    def participant(self, code: str) -> int | None:
        """The number of a participant, from 0; None for an unknown code."""
        with self._connected() as connection:
            row = connection.execute("SELECT number FROM participants WHERE code = ?", (code,)).fetchone()
        return None if row is None else int(row[0])

    def position(self, participant: int) -> int:
        """The number of answers of a participant, which is the position of the current trial."""
        with self._connected() as connection:
            return _position(connection, participant)

    def reveal(self, participant: int, position: int) -> None:
        """Count that the original of the current trial is shown; raises NotCurrentError for another trial."""
        with self._transaction() as connection:
            if position != _position(connection, participant):
                raise NotCurrentError
            connection.execute(
                "INSERT INTO reveals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
                (participant, position),
            )

    def answer(self, participant: int, position: int, answer: Answer) -> None:
        """Store an answer. One to an answered trial is ignored: a page repeats a request whose reply was lost.

        Raises:
            NotCurrentError: a trial that comes later, or whose original was not shown.
        """
        with self._transaction() as connection:
            current = _position(connection, participant)
            if position < current:
                return
            shown = "SELECT 1 FROM reveals WHERE participant = ? AND position = ?"
            if position > current or connection.execute(shown, (participant, position)).fetchone() is None:
                raise NotCurrentError
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (participant, position, *astuple(answer), now)
            )

    def counts(self) -> tuple[int, int]:
        """The number of participants, and of answers."""
        with self._connected() as connection:
            return connection.execute(
                "SELECT (SELECT COUNT(*) FROM participants), (SELECT COUNT(*) FROM answers)"
            ).fetchone()

    def answers(self) -> list[StoredAnswer]:
        """All answers, by participant and position."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT a.participant, a.position, choice, shown_ms, frame_ms, frames, response_ms, hidden, times "
                "FROM answers a JOIN reveals r ON r.participant = a.participant AND r.position = a.position "
                "ORDER BY a.participant, a.position"
            ).fetchall()
        return [
            StoredAnswer(row[0], row[1], Answer(row[2], row[3], row[4], row[5], row[6], bool(row[7])), row[8])
            for row in rows
        ]


def _position(connection: sqlite3.Connection, participant: int) -> int:
    return int(connection.execute("SELECT COUNT(*) FROM answers WHERE participant = ?", (participant,)).fetchone()[0])

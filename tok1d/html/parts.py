"""Pictures as HTML, with one style sheet: for the report of `tok1d demo` and the page of `tok1d serve`.

All pictures are data URIs. All text is escaped. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Strip:
    """A row of images with its name; `picture` is a data URI."""

    label: str
    picture: str


def style() -> str:
    """The style sheet. The body of a whole page has the class "report"."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def strips(rows: Sequence[Strip], heads: Sequence[str] = ()) -> str:
    """Rows of images with their names on the left, and with names of their columns above."""
    found = [
        f'<div class="strip"><span>{escape(row.label)}</span><img alt="{escape(row.label)}" src="{row.picture}"></div>'
        for row in rows
    ]
    if heads:
        cells = "".join(f"<b>{escape(head)}</b>" for head in heads)
        found.insert(0, f'<div class="strip"><span></span><div class="heads">{cells}</div></div>')
    return "\n".join(found)


def card(title: str, note: str, body: str) -> str:
    """A box with a title, a note ("" for none) and HTML."""
    note = f'\n<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="card">\n<h3>{escape(title)}</h3>{note}\n{body}\n</div>'


def pair(cards: Sequence[str]) -> str:
    """Boxes below each other."""
    return '<div class="pair">\n' + "\n".join(cards) + "\n</div>"


def views(pictures: Sequence[tuple[str, str]]) -> str:
    """Pictures (data URI, caption) beside each other, as many as fit."""
    found = [
        f'<figure><img alt="{escape(caption)}" src="{picture}"><figcaption>{escape(caption)}</figcaption></figure>'
        for picture, caption in pictures
    ]
    return '<div class="views">\n' + "\n".join(found) + "\n</div>"


def saves(files: Sequence[tuple[str, str, str]]) -> str:
    """Links that save files: (text, name of the file, data URI)."""
    found = [
        f'<a download="{escape(name)}" href="{content}" aria-label="Save {escape(text)}">{escape(text)}</a>'
        for text, name, content in files
    ]
    return '<div class="saves">\n' + "\n".join(found) + "\n</div>"


def note(text: str) -> str:
    """A line of small text."""
    return f'<p class="note">{escape(text)}</p>'

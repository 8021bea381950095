"""Unicode's list of emoji: code points, names, groups and subgroups; and which emoji are variants of one another.

The list is `unicode/emoji-15.0.txt`, a short form of Unicode's emoji-test.txt, which this module makes:

    python -m tok1d.data.emoji_table emoji-test.txt > emoji-15.0.txt
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tok1d.errors import DataError

TABLE = Path(__file__).parent / "unicode" / "emoji-15.0.txt"
TEST_SHARE = 0.1  # of the bases

_TONES, _HAIR = range(0x1F3FB, 0x1F400), range(0x1F9B0, 0x1F9B4)
_SIGNS = {0x2640, 0x2642, 0x200D, 0xFE0F}  # gender signs, joiner, emoji presentation
_PERSON, _CHILD = 0x1F9D1, 0x1F9D2
_PEOPLE = {0x1F468: _PERSON, 0x1F469: _PERSON, 0x1F466: _CHILD, 0x1F467: _CHILD, 0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3}
_GENDERED = re.compile(
    r"\b(wo)?m[ae]n(\u2019s)?\b|\b(person|people|boy|girl|child|older|old|baby)\b|\b(prince)(ss)?\b"
    r"|\b(mrs\.|mx|santa)(?= claus)",
    re.IGNORECASE,
)
# Names, before a colon, of one meaning: a family of any members, and so on.
_ONE_MEANING = re.compile("(family|kiss|couple with heart|handshake|mer)(person|maid|man)?|.*(holding hands|feeding).*")
# Flags that are alike.
_ALIKE = (
    ("Norway", "Svalbard & Jan Mayen", "Bouvet Island"),
    ("France", "St. Martin", "Clipperton Island"),
    ("United States", "U.S. Outlying Islands"),
    ("Australia", "Heard & McDonald Islands"),
    ("Diego Garcia", "British Indian Ocean Territory"),
    ("Romania", "Chad"),
    ("Spain", "Ceuta & Melilla"),
)
_FLAGS = {f"flag: {name}": f"flag: {names[0]}" for names in _ALIKE for name in names}


@dataclass(frozen=True)
class Emoji:
    """An emoji: its characters, its name in lower case as in Unicode's list, its group and its subgroup."""

    text: str
    name: str
    group: str
    subgroup: str


@cache
def table(path: Path = TABLE) -> tuple[Emoji, ...]:
    """All fully-qualified emoji, in Unicode's order.

    Raises:
        DataError: the file is missing or damaged.
    """
    found: list[Emoji] = []
    group = subgroup = ""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the table of emoji ({error}); install the package again") from None
    for line in lines:
        mark, _, rest = line.partition(" ")
        if mark == "group":
            group = rest
        elif mark == "subgroup":
            subgroup = rest
        elif mark not in ("", "#"):
            found.append(Emoji("".join(chr(int(code, 16)) for code in mark.split("-")), rest, group, subgroup))
    return tuple(found)


def bases(emoji: Sequence[Emoji]) -> list[str]:
    """For each emoji the name of the first one that it is a variant of (or its own).

    Variants differ in skin tone, hair, gender or age, or are drawn alike. Two emoji are variants if their code points
    or their names are equal without those.
    """
    parent = list(range(len(emoji)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[object, int] = {}
    for i, each in enumerate(emoji):
        for key in (_code_key(each.text), _name_key(each.name)):
            one, other = root(first.setdefault(key, i)), root(i)
            parent[max(one, other)] = min(one, other)
    return [emoji[root(i)].name for i in range(len(emoji))]


def _code_key(text: str) -> tuple[int, ...]:
    """The code points without tones, hair, gender signs and joiners; men and women as persons."""
    codes = [ord(char) for char in text]
    return tuple(_PEOPLE.get(c, c) for c in codes if c not in _TONES and c not in _HAIR and c not in _SIGNS)


def _name_key(name: str) -> str:
    """The name without tone, hair, gender and age."""
    if name.startswith(("flag:", "keycap:")):
        return _FLAGS.get(name, name)
    whole = name.partition(":")[0]
    one = _ONE_MEANING.fullmatch(whole)
    if one:
        return str(one[1] or one[3])
    plain = _GENDERED.sub(lambda found: found[4] or "", whole)
    return " ".join(plain.lower().split()) or "person"


def is_test(base: str) -> bool:
    """Whether the emoji of a base are test images: a hash of the base's name chooses about a tenth of the bases."""
    digest = hashlib.sha256(f"emoji {base}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


def compact(lines: Iterable[str]) -> Iterator[str]:
    """The lines of the table, from those of emoji-test.txt."""
    yield "# Fully-qualified emoji of emoji-test.txt: code points and name, below group and subgroup. See LICENSE."
    for line in lines:
        head = re.match(r"# (group|subgroup): (.+)", line)
        if head:
            yield f"{head[1]} {head[2].strip()}"
        found = re.match(r"([0-9A-F ]+?) *; fully-qualified *# \S+ E[0-9.]+ (.+)", line)
        if found:
            yield f"{'-'.join(found[1].split())} {found[2].strip()}"


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as source:
        for row in compact(source):
            print(row)

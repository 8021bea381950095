"""Captions as words: their vocabulary, and their ids in it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tok1d.config.condition import ConditionConfig
from tok1d.config.nearest import nearest
from tok1d.errors import InputError

_SHOWN = 5  # words that a message names


def words_of(caption: str) -> list[str]:
    """The words of a caption, in lower case: what is between spaces and hyphens, without punctuation at its ends.

    What has nothing but punctuation is a word if it is a sign on its own: "keycap: #" has the words keycap and #.
    """
    text = unicodedata.normalize("NFKC", caption).casefold().replace("\u2019", "'")
    parts = re.split(r"[\s\-\u2010-\u2015]+", text)
    stripped = (re.sub(r"^\W+|\W+$", "", part) or part for part in parts)
    return [word for word in stripped if word]


def vocabulary_of(captions: Iterable[str], most: int) -> list[str]:
    """The `most` most frequent words of captions, in alphabetical order; of equally frequent ones the first."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    return sorted(sorted(counts, key=lambda word: (-counts[word], word))[:most])


class CaptionIds:
    """Captions to the ids (B, T) of their words in a vocabulary, 1 for its first word; 0 is padding.

    Words that are not in the vocabulary are left out; see `said` and `check`.

    Args:
        condition: the vocabulary and T.
        captions: those that `said` reports on.
    """

    def __init__(self, condition: ConditionConfig, captions: Sequence[str]) -> None:
        self.length, self.captions = condition.length, captions
        self.ids = {word: i for i, word in enumerate(condition.vocabulary, 1)}

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """(B, T) int64 on the device."""
        rows = torch.zeros(len(captions), self.length, dtype=torch.int64)
        for row, caption in zip(rows, captions):
            found = self._known(caption)[: self.length]
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        return rows.to(device)

    def _known(self, caption: str) -> list[int]:
        return [self.ids[word] for word in words_of(caption) if word in self.ids]

    @property
    def said(self) -> str:
        """One line on the words of the captions that are left out; "" if there are none."""
        unknown: Counter[str] = Counter()
        without = affected = long = 0
        for caption in self.captions:
            words = words_of(caption)
            new = [word for word in words if word not in self.ids]
            unknown.update(new)
            affected += bool(new)
            without += bool(words) and len(new) == len(words)
            long += len(words) - len(new) > self.length
        total, parts = len(self.captions), []
        if unknown:
            names = ", ".join(word for word, _ in unknown.most_common(_SHOWN)) + ", ..." * (len(unknown) > _SHOWN)
            parts.append(f"{affected} of {total} have words that the model does not know, which are left out: {names}")
        if without:
            parts.append(f"{without} have no other words and are as no caption")
        if long:
            parts.append(f"{long} of {total} have more than {self.length} words and are cut")
        return "captions: " + "; ".join(parts) if parts else ""

    def check(self, option: str) -> None:
        """Raise InputError if the model knows no word of one of the captions; `option` is named in the message."""
        for caption in self.captions:
            words = words_of(caption)
            if words and not self._known(caption):
                near = list(dict.fromkeys(name for word in words for name in nearest(word, list(self.ids))[:2]))[:4]
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise InputError(
                    f"{option}: expected a caption with some of the {len(self.ids)} words of the model's training "
                    f"captions, got {caption!r}{hint}"
                )

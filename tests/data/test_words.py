"""Captions as words: splitting, vocabulary, ids, and what is said of unknown words."""

import pytest
import torch

from tok1d.config.condition import ConditionConfig
from tok1d.data.words import CaptionIds, vocabulary_of, words_of
from tok1d.errors import InputError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("man cook: dark skin tone", ["man", "cook", "dark", "skin", "tone"]),
        ("woman\u2019s BOOT (old)", ["woman's", "boot", "old"]),
        ("smiling face with heart-eyes, ON! arrow", ["smiling", "face", "with", "heart", "eyes", "on", "arrow"]),
        ("keycap: #", ["keycap", "#"]),
        ("flag: C\u00f4te d\u2019Ivoire & \u201cx\u201d", ["flag", "c\u00f4te", "d'ivoire", "&", "x"]),
        ("  ", []),
    ],
)
def test_words_of_a_caption(caption: str, words: list[str]) -> None:
    assert words_of(caption) == words


def test_the_vocabulary_is_the_most_frequent_words_in_order() -> None:
    captions = ["red apple", "green apple", "red red kite", "blue kite"]
    assert vocabulary_of(captions, 100) == ["apple", "blue", "green", "kite", "red"]
    assert vocabulary_of(captions, 3) == ["apple", "kite", "red"]
    assert vocabulary_of(captions, 4) == ["apple", "blue", "kite", "red"], "of equally frequent words the first"
    assert vocabulary_of(reversed(captions), 4) == vocabulary_of(captions, 4)


def ids(*captions: str, length: int = 3) -> CaptionIds:
    return CaptionIds(ConditionConfig("words", length=length, vocabulary=["apple", "kite", "red"]), captions)


def test_ids_count_from_one_in_the_order_of_the_caption() -> None:
    found = ids()(["Red Apple!", "", "a red zebra kite", "red red kite red"])
    assert found.dtype == torch.int64
    assert found.tolist() == [[3, 1, 0], [0, 0, 0], [3, 2, 0], [3, 3, 2]]


def test_what_is_left_out_is_said() -> None:
    assert ids("red apple", "kite", "").said == ""
    said = ids("red zebra", "zebra gnu", "", "red red kite red").said
    assert said == (
        "captions: 2 of 4 have words that the model does not know, which are left out: zebra, gnu; 1 have no other "
        "words and are as no caption; 1 of 4 have more than 3 words and are cut"
    )


def test_a_caption_without_a_known_word_is_refused() -> None:
    ids("red zebra", " ").check("--captions")
    with pytest.raises(InputError, match=r"^--captions: expected .* the 3 words .* got 'appel'; did you mean apple\?"):
        ids("red", "appel").check("--captions")

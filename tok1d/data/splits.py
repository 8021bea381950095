"""The split of a data set into training and test images. The rule, for folders, shards and saved data sets:

1. Names state the split. A name is that of a split if one of its words (of letters, in any case; `TrainImages` has two)
   is in `WORDS`, and its other words are in `NEUTRAL` (train, Train, train2017, test_images, Training-Set, testdata),
   or occur in the same way in the name of another split (seg_train and seg_test). The test split is the one named test,
   testing, ... (`WORDS["test"]`); where there is none, the one named val, validation, dev, ... (`WORDS["val"]`). Other
   validation splits, and those of `WORDS["neither"]` (pred, unlabeled), belong to neither, which is said.
2. Two training splits, a split beside folders that are none (train/ val/ car/), and names that only resemble those of
   splits (trian and tets, my_train and test, tr and te) are refused. Without a test split, train/ alone is the whole
   set, and train/ beside other folders is a class, which is said, unless it holds folders of its own.
3. Without names, a hash of each image's name puts 5 % into the test split (`hash_split`), which does not change when
   other images are added or removed. Where that leaves one side empty, the image with the smallest hash is the test
   image, or the one with the largest the training image.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from tok1d.errors import DataError

T = TypeVar("T")
Split = Literal["train", "test", "all"]
TEST_PERCENT = 5
Kind = Literal["train", "test", "val", "neither"]
_WORDS: dict[Kind, str] = {
    "train": "train training trn trainset trainval",
    "test": "test testing tst testset tests holdout heldout unseen",
    "val": "val validation valid validate valset dev devel devset development eval evaluation",
    "neither": "pred predict prediction predictions unlabeled unlabelled unused unsupervised extra",
}
WORDS: dict[Kind, frozenset[str]] = {kind: frozenset(words.split()) for kind, words in _WORDS.items()}
_NEUTRAL = "set sets split splits data dataset image images img imgs photo photos picture pictures pic pics folder dir "
NEUTRAL = frozenset(f"{_NEUTRAL} final raw jpg jpeg png".split())
SPLITS = frozenset[Kind](("train", "test", "val"))
_KNOWN, _JOINED = "|".join(frozenset[str]().union(*WORDS.values())), "|".join(NEUTRAL)
_TWO_WORDS = re.compile(f"({_KNOWN})({_JOINED})|({_JOINED})({_KNOWN})")  # traindata


def is_test(name: str) -> bool:
    """Whether an image belongs to the 5 % for testing of a set without splits of its own, by a hash of its name."""
    return int.from_bytes(_hash(name)[:8], "big") % 100 < TEST_PERCENT


def _hash(name: str) -> bytes:
    # Some file systems change the Unicode form of names; a copy is split in the same way.
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogateescape")).digest()


def hash_split(names: Sequence[str]) -> list[bool]:
    """Return for each image whether it is a test image, by a hash of its name, see rule 3.

    Both sides have at least one image.

    Raises:
        DataError: all names are equal, as of a single image.
    """
    chosen = [is_test(name) for name in names]
    if not names:
        return []
    if len(set(names)) == 1:
        raise DataError(f"one image, {names[0]}: expected two or more, for a training and a test split")
    if not any(chosen):
        least = min(names, key=_hash)
        return [name == least for name in names]
    if all(chosen):
        most = max(names, key=_hash)
        return [name != most for name in names]
    return chosen


class Role(NamedTuple):
    """What a name says of its split: the kind, and its words that are neither of a split nor neutral."""

    kind: Kind
    rest: tuple[str, ...]


def words_of(name: str) -> list[str]:
    """Return the words of letters in a name, in lower case; a capital after a small letter begins a word."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    text = re.sub(r"(?i)\b(hold|held)[ _-]out\b", r"\1out", text.replace("_", " "))
    words = [word for word in re.split(r"[^a-z]+", text.lower()) if word]
    return [part for word in words for part in _parts(word)]


def _parts(word: str) -> list[str]:
    """The word, or its two words if one is that of a split and the other neutral."""
    found = None if any(word in known for known in WORDS.values()) else _TWO_WORDS.fullmatch(word)
    return [part for part in found.groups() if part] if found else [word]


def role_of(name: str) -> Role | None:
    """Return what a name says of its split; None if it has no word of a split, or words of several."""
    words = words_of(name)
    kinds: list[Kind] = [kind for kind, known in WORDS.items() if known & set(words)]
    if "train" in kinds and "neither" in kinds:
        kinds.remove("train")  # train_unlabeled
    if len(kinds) != 1:
        return None
    return Role(kinds[0], tuple(word for word in words if word not in WORDS[kinds[0]] | NEUTRAL))


class Splits(NamedTuple):
    """The names of the training and the test split, None where there is none, and those of splits that are neither."""

    train: str | None
    test: str | None
    neither: list[str]


def find_splits(names: Iterable[str], what: str = "folder") -> tuple[Splits | None, list[str]]:
    """Find the splits among the names of folders, or of a saved data set's parts; see rules 1 and 2.

    Returns:
        The splits, None if no name is one, and the names that are no splits.

    Raises:
        DataError: two training or two test splits, or a name that is nearly one of a split.
    """
    names = sorted(names)
    roles = {name: role for name in names if (role := role_of(name)) is not None}
    rests = {kind: {role.rest for role in roles.values() if role.kind == kind} for kind in WORDS}
    paired = rests["train"] & (rests["test"] | rests["val"])
    known = {name: role.kind for name, role in roles.items() if not role.rest or role.rest in paired}
    of: dict[Kind, list[str]] = {kind: [name for name in known if known[name] == kind] for kind in WORDS}
    others = [name for name in names if known.get(name) not in SPLITS]
    _refuse_doubtful(roles, [name for name in others if name not in known], what)
    if not (of["train"] or of["test"] or of["val"]):
        return None, names
    needed: tuple[Kind, ...] = ("train", "test") if of["test"] else ("train", "val")
    for kind in needed:
        if len(of[kind]) > 1:
            both = " and ".join(f"{name}{'/' if what == 'folder' else ''}" for name in of[kind][:2])
            raise DataError(f"two {kind} splits, {both}: expected one: join them, or name one of them as the data")
    test = next(iter(of["test"] or of["val"]), None)
    has_both = bool(of["train"]) and test is not None
    neither = [name for name in of["val"] if name != test] + (of["neither"] if has_both else [])
    left = [name for name in others if name not in neither]
    return Splits(next(iter(of["train"]), None), test, sorted(neither)), left


def _refuse_doubtful(roles: Mapping[str, Role], others: Sequence[str], what: str) -> None:
    """Raise DataError where the names that are no splits all look like splits, and both splits seem to be there."""
    doubtful: dict[str, Kind | None] = {name: roles[name].kind if name in roles else near_miss(name) for name in others}
    kinds = {kind for kind in doubtful.values() if kind} | {role.kind for role in roles.values()}
    if doubtful and all(doubtful.values()) and "train" in kinds and kinds & {"test", "val"}:
        name, kind = next(iter(doubtful.items()))
        raise DataError(
            f"{what} {name}: is it the {kind} split? Expected names such as train and test, or my_train and my_test: "
            "rename it, or, if it is a class, move all classes into a folder train/"
        )


def near_miss(name: str) -> Kind | None:
    """Return the kind of the split from whose name a name differs by one typing error, or None.

    A typing error is a letter too many, too few or wrong, or two letters exchanged; in short words only the last.
    Short forms (tr, te) count as such names.
    """
    words = [word for word in words_of(name) if word not in NEUTRAL]
    usual: dict[Kind, str] = {"train": "train training", "test": "test testing holdout", "val": "validation val"}
    short: dict[Kind, str] = {"train": "tr", "test": "te ts", "val": "va vl"}
    for kind, known in usual.items():
        if len(words) == 1 and (
            words[0] in short[kind].split() or any(_is_one_off(words[0], w) for w in known.split())
        ):
            return kind
    return None


def _is_one_off(word: str, right: str) -> bool:
    start = next((i for i, (a, b) in enumerate(zip(word, right)) if a != b), min(len(word), len(right)))
    a, b = word[start:], right[start:]
    exchanged = a[1::-1] == b[:2] and a[2:] == b[2:]
    return exchanged or (len(right) > 3 and (a[1:] == b[1:] or a[1:] == b or a == b[1:]))


def kinds_of_files(paths: Sequence[str]) -> list[Kind | None]:
    """Return the kind of each file: that of a word of its name, or else of its folder's name, see `WORDS`."""

    def kind(path: str) -> Kind | None:
        order: tuple[Kind, ...] = ("test", "val", "train")
        for part in reversed(path.split("/")[-2:]):
            words = set(words_of(part))
            found = next((each for each in order if words & WORDS[each]), None)
            if found is not None:
                return found
        return None

    return [kind(path) for path in paths]


def part_of(paths: Sequence[str], split: Split) -> tuple[list[str], bool]:
    """Return the files of a split, and whether their names determine the split, see `kinds_of_files`.

    If not every name states a split, or all state the training split, all files are returned, and `hash_split` has to
    decide for each sample. Of "all" the files of further validation splits are no part.
    """
    kinds = kinds_of_files(paths)
    test: Kind | None = "test" if "test" in kinds else "val" if "val" in kinds else None
    if None in kinds or test is None:
        return list(paths), False
    wanted: set[Kind] = {"train", test} if split == "all" else {test} if split == "test" else {"train"}
    return [path for path, kind in zip(paths, kinds) if kind in wanted], True


def hash_text(num_test: int, total: int) -> str:
    """Return the phrase on a split by `hash_split`."""
    return f"{num_test:,} of {total:,} images are the test split, chosen by a hash of their names"


def spread(rows: Sequence[T], limit: int | None) -> list[T]:
    """Return `limit` evenly spaced rows; all rows if `limit` is None or not smaller than their number."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]

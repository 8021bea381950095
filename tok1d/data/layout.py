"""The splits and classes of a folder of images, from the names of its folders; see `splits` for the rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from tok1d.data.classes import ClassOrder, class_name, ordered
from tok1d.data.listing import Listing, by_parts, identity, kinds_of, list_folder
from tok1d.data.splits import (
    NEUTRAL,
    SPLITS,
    Split,
    Splits,
    find_splits,
    hash_split,
    hash_text,
    role_of,
    words_of,
)
from tok1d.errors import DataError


@dataclass
class Part:
    """The images of one split of a folder.

    Args:
        place: the folder that `files` are relative to.
        prefix: path of `place` relative to the data folder, with a slash at its end; "" for the data folder.
        files: the images of the split.
        classes: names of the classes of all splits, in the order of their numbers.
        class_of: the class of each file.
        how: how the split was found, for people.
        left_out: (path relative to the data folder, reason) of the files that are in no split.
        notes: further facts for people.
    """

    place: Path
    prefix: str
    files: list[str]
    classes: list[str]
    class_of: list[str]
    how: str
    left_out: list[tuple[str, str]]
    notes: list[str]


@dataclass
class _Homes:
    """The folders, relative to the data folder, that hold the classes of each split.

    `whole` instead of splits: the folder without splits of its own; "" is the data folder.
    """

    train: str | None = None
    test: str | None = None
    whole: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return [home for home in (self.train, self.test, self.whole) if home is not None]


def default_split(root: Path) -> Split:
    """Return the split of a folder that is measured unless another is chosen: "test", or "all".

    All images are those of a folder without splits that has no class folders, or is named like a test split, or has
    one image.

    Raises:
        DataError: as `folder_part`.
    """
    listing = list_folder(root)
    whole = _homes_of(root, listing).whole
    if whole is None or whole:
        return "test"
    flat = not any("/" in file for file in listing.files)
    return "all" if flat or len(listing.files) < 2 or _is_test(root) else "test"


def _is_test(root: Path) -> bool:
    return _kind(root.resolve().name, strict=True) in ("test", "val")


def has_splits(root: Path) -> bool:
    """Whether the names of folders state the splits of a folder; raises DataError as `folder_part`."""
    return _homes_of(root, list_folder(root)).whole is None


def _homes_of(root: Path, listing: Listing) -> _Homes:
    try:
        return _homes(listing)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None


def folder_part(root: Path, split: Split, *, mixed: bool = False, order: ClassOrder = "sorted") -> Part:
    """Return the images of a split of a folder, with their classes, see `splits`.

    Classes are the names of the folders in the data folder, or in those of its splits, whatever they hold. Without
    images in them all images are of one class, named like the data folder.

    Args:
        mixed: images inside and outside of class folders may be mixed, as one class: they have captions, or the classes
            are not needed.

    Raises:
        DataError: no images in the split, folders that may be splits or classes, or images both in class folders and
            beside them.
    """
    listing = list_folder(root)
    if not listing.files:
        raise DataError(
            f"{root}: no images found{_what_else(listing, '')}: expected .png, .jpg and others, in class folders or "
            "directly"
        )
    try:
        homes = _homes(listing)
        classes, flat = _classes(root, listing, homes, mixed, order)
        sides, how = _sides(listing, homes, split)
        chosen, linked = _chosen(root, listing, sides, split)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    used = {file for each in homes.all for file in _below(listing, each)}
    left_out = [*listing.left_out, *linked, *((file, "in no split") for file in listing.files if file not in used)]
    home = {"train": homes.train, "test": homes.test}.get(split) if homes.whole is None else homes.whole
    prefix = f"{home}/" if home else ""
    homes_of = sorted((f"{each}/" if each else "" for each in homes.all), key=len, reverse=True)
    inside = (file[len(next(each for each in homes_of if file.startswith(each))) :] for file in chosen)
    class_of = [classes[0] if flat else class_name(file.split("/")[0]) for file in inside]
    notes = [*listing.notes, *homes.notes, *_doubts(root, listing, homes, split)]
    files = [file[len(prefix) :] for file in chosen]
    return Part(root / prefix, prefix, files, classes, class_of, how, left_out, notes)


def _below(listing: Listing, home: str) -> list[str]:
    """The images in a folder, relative to the data folder."""
    return [file for file in listing.files if file.startswith(f"{home}/")] if home else listing.files


def _candidates(listing: Listing, inside: str = "") -> list[str]:
    """The names of the folders in a folder that hold images, or are the names of splits."""
    holding = {file.split("/")[0] for file in (listing.below(inside) if inside else listing.files) if "/" in file}
    return [name for name in listing.children(inside) if name in holding or _kind(name, strict=True) in SPLITS]


def _kind(name: str, *, strict: bool = False) -> str:
    role = role_of(name)
    return role.kind if role is not None and not (strict and role.rest) else ""


def _homes(listing: Listing) -> _Homes:
    """Find the folders of the splits.

    A folder train/ without others is the whole set. Splits in a single folder, and in another of the same kind of split
    (seg_train/seg_train/), are found.

    Raises:
        DataError: folders that may be splits or classes.
    """
    names = _candidates(listing)
    loose = any("/" not in file for file in listing.files)
    splits, others = find_splits(names)
    base = ""
    # The only folder may hold the splits.
    inner = _wrapped(listing, names[0]) if len(names) == 1 and not loose else None
    if inner is not None and (splits is None or inner[1].train is not None):
        base, splits, others = inner
    elif splits is None or (splits.test is None and not others and not loose):
        whole = _innermost(listing, names[0], "train") if splits is not None else ""
        return _checked(listing, _Homes(whole=whole))
    train, test = splits.train, splits.test
    if test is None and train is not None and (loose or not listing.children(train)):
        return _checked(listing, _Homes(whole="", notes=(f"{train}/ is read as a class, since there is no test/",)))
    if others or (loose and (train is None or test is None)):
        beside = [f"{name}/" for name in others[:4]] + ["..."] * (len(others) > 4) or ["images"]
        raise DataError(
            f"{' and '.join(f'{name}/' for name in (train, test) if name)}: named like a split, beside "
            f"{', '.join(beside)}: expected only splits, or only classes: move the class folders into train/"
        )
    start = f"{base}/" if base else ""
    notes = tuple(
        f"{start}{name}/ ({len(listing.below(f'{start}{name}')):,} images) belongs to neither split; give it as the "
        "data to read it"
        for name in splits.neither
    )
    homes = _Homes(notes=notes)
    homes.train = None if train is None else _innermost(listing, f"{start}{train}", "train")
    homes.test = None if test is None else _innermost(listing, f"{start}{test}", _kind(test))
    return _checked(listing, homes)


def _wrapped(listing: Listing, base: str) -> tuple[str, Splits, list[str]] | None:
    """Find splits with a test split in a folder, or in the only folder of it, and so on.

    Returns:
        The folder that holds the splits, the splits, and the names of the folders beside them; None without splits.
    """
    while True:
        names = _candidates(listing, base)
        if {_kind(name) for name in names} & {"test", "val"}:
            splits, others = find_splits(names)
            if splits is not None and splits.test is not None:
                return base, splits, others
        if len(names) != 1 or any("/" not in file for file in listing.below(base)):
            return None
        base = f"{base}/{names[0]}"


def _innermost(listing: Listing, home: str, kind: str) -> str:
    """The innermost of folders that hold nothing but one folder of the same kind of split."""
    while len(names := listing.children(home)) == 1 and _kind(names[0]) == kind:
        if any("/" not in file for file in listing.below(home)):
            break
        home = f"{home}/{names[0]}"
    return home


def _checked(listing: Listing, homes: _Homes) -> _Homes:
    """Raise DataError if a folder inside of a training class, with images, is named like a test split."""
    home = homes.train if homes.whole is None else homes.whole
    if home is None:
        return homes
    start = f"{home}/" if home else ""
    for folder in listing.folders:
        inner = folder.startswith(start) and "/" in folder[len(start) :]
        if inner and _kind(folder.split("/")[-1], strict=True) in ("test", "val") and listing.below(folder):
            raise DataError(
                f"{folder}/: named like a test split, inside of a class: expected train/CLASS/ and test/CLASS/: "
                "move it there, or rename it"
            )
    as_classes = [f"{start}{name}/" for name in listing.children(home) if _kind(name, strict=True) in ("test", "val")]
    if as_classes and home:
        homes.notes += (f"{', '.join(as_classes)}: named like a split, but read as a class of {start}",)
    return homes


def _classes(root: Path, listing: Listing, homes: _Homes, mixed: bool, order: ClassOrder) -> tuple[list[str], bool]:
    """The class names, and whether all images are one class because they are in no class folders."""
    loose: dict[str, str] = {}
    nested = False
    for home in homes.all:
        start = len(home) + 1 if home else 0
        direct = [file for file in _below(listing, home) if "/" not in file[start:]]
        both = direct and len(direct) < len(_below(listing, home))
        if both and not mixed:
            raise DataError(f"both class folders and loose images ({direct[0]}, ...): move the loose ones into a class")
        if direct:
            loose[home] = direct[0]
        nested |= len(direct) < len(_below(listing, home))
    if loose and nested and not mixed:
        raise DataError(
            f"{next(iter(loose))}/ has no class folders, but the other split has: use them in both or in neither"
        )
    if loose:
        return [root.resolve().name], True
    return ordered({class_name(name) for home in homes.all for name in listing.children(home)}, order), False


def _doubts(root: Path, listing: Listing, homes: _Homes, split: Split) -> list[str]:
    """Lines about folders that may be meant otherwise."""
    inside: dict[str, list[str]] = defaultdict(list)  # the names of the folders in each folder
    for folder in listing.folders:
        place, _, name = folder.rpartition("/")
        inside[place].append(name)
    counts = [Counter(map(class_name, inside[home])) for home in homes.all]
    twice = sorted({name for each in counts for name, count in each.items() if count > 1})
    notes = [f"class {name}: two folders, whose names differ only in Unicode form, are one class" for name in twice]
    if homes.whole is None:
        return notes
    if split == "train" and not homes.whole and _is_test(root):
        notes.append(f"{root.resolve().name}/ is named like a test split, but its images are trained on")
    start = f"{homes.whole}/" if homes.whole else ""
    parts = [{part for part in inside[start + name] if not _is_neutral(part)} for name in inside[homes.whole]]
    if len(parts) > 1 and (shared := sorted(set[str].intersection(*parts))):
        shown = [", ".join([*names[:3], *["..."] * (len(names) > 3)]) for names in (inside[homes.whole], shared)]
        notes.append(
            f"the classes {shown[0]} hold folders of the same names ({shown[1]}): splits need names as train/, test/"
        )
    elif len(parts) == 1:
        only = start + inside[homes.whole][0]
        while len(inside[only]) == 1:
            only = f"{only}/{inside[only][0]}"
        if inside[only]:
            notes.append(f"{only}/ has {len(inside[only]):,} folders; give it as the data to read them as classes")
    return notes


def _is_neutral(name: str) -> bool:
    words = set(words_of(name))
    return bool(words) and words <= NEUTRAL


def _sides(listing: Listing, homes: _Homes, split: Split) -> tuple[dict[str, list[str]], str]:
    """The images of the training and the test split, and how the split was found."""
    if homes.whole is not None:
        files = _below(listing, homes.whole)
        if split == "all":
            return {"train": files, "test": []}, "all images"
        tests = hash_split([file[len(homes.whole) + bool(homes.whole) :] for file in files])
        sides = {
            "train": [file for file, is_one in zip(files, tests) if not is_one],
            "test": [file for file, is_one in zip(files, tests) if is_one],
        }
        return sides, hash_text(sum(tests), len(tests))
    sides = {}
    for key, home in (("train", homes.train), ("test", homes.test)):
        sides[key] = [] if home is None else _below(listing, home)
        if split == key and not sides[key]:
            why = (
                f"{home}/ holds no image that is read{_what_else(listing, f'{home}/')}"
                if home
                else f"{homes.all[0]}/ is its only split"
            )
            raise DataError(f"{why}: expected images in folders such as train/ and test/, for the {split} split")
    named = [f"{home}/" for home in homes.all]
    return sides, f"the {split} split {named[-1 if split == 'test' else 0]}" if split != "all" else " and ".join(named)


def _chosen(
    root: Path, listing: Listing, sides: dict[str, list[str]], split: Split
) -> tuple[list[str], list[tuple[str, str]]]:
    """The images of a split, and those of the training split that are left out as links to test images."""
    if split != "train":
        return sides["test"] if split == "test" else sorted(sides["train"] + sides["test"], key=by_parts), []
    tests = {identity(f"{root}/{file}"): file for file in sides["test"]}
    linked = {file: tests[own] for file in sides["train"] if (own := identity(f"{root}/{file}")) in tests}
    kept = [file for file in sides["train"] if file not in linked]
    if not kept:
        raise DataError(f"all training images are also test images, by links ({next(iter(linked))}): remove the links")
    return kept, [(file, f"the same file as the test image {test}") for file, test in linked.items()]


def _what_else(listing: Listing, start: str) -> str:
    """The kinds of the files in a folder that are left out, in brackets; "" if there are none."""
    found = kinds_of([each for each in listing.left_out if each[0].startswith(start)])
    return f" ({found})" if found else ""

"""Folders and shards of any names, types, nesting and links: every file is accounted for, and classes follow names."""

import io
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tok1d.data.images import ImageSource, open_images
from tok1d.data.listing import list_folder
from tok1d.errors import DataError


def encoded(kind: str) -> bytes:
    Image.fromarray(np.full((2, 2, 3), 90, np.uint8)).save(stream := io.BytesIO(), kind)
    return stream.getvalue()


PNG, JPEG = encoded("PNG"), encoded("JPEG")
CONTENTS = {
    "good": PNG,
    "jpeg": JPEG,
    "broken": b"no image",
    "empty": b"",
    "cut": PNG[:40],
}
STEMS = ["a", "B b", "c#1", "'q\"", "é", "e\u0301", "x.y", "10", "9", "ж", "...", "-f", "a" * 60, "t\u200bz"]
SUFFIXES = [".png", ".JPG", ".bmp", ".Tif", ".heic", ".txt", ".json", "", ".0", ".gif", ".webp", ".db", ".jpe"]
SPLITS = ["Train", "train", "TEST", "val", "seg_train", "seg_test", "dev", "tests", "traindata", "testdata", "tr", "te"]
CLASSES = [*STEMS[:9], *SPLITS, "@eaDir", ".git", "2"]
LINKS = ["up", "broken", "pipe", "first", "hard", "folder"]
SETTINGS = settings(
    max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
file = st.tuples(st.sampled_from(STEMS), st.sampled_from(SUFFIXES), st.sampled_from(sorted(CONTENTS)))
folder = st.lists(st.sampled_from(CLASSES), max_size=2)
trees = st.tuples(
    st.lists(st.tuples(folder, file), min_size=1, max_size=12),
    st.lists(folder, max_size=2),  # empty folders
    st.lists(st.tuples(folder, st.sampled_from(LINKS)), max_size=2),
)


def build(root: Path, tree: Any, content: str | None = None) -> None:
    """Write a tree; files whose place is taken by a folder are left out, and the reverse."""
    files, empty, links = tree
    root.mkdir()
    first: Path | None = None
    for parts, (stem, suffix, kind) in files:
        with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            place = root.joinpath(*parts)
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{stem}{suffix}"
            path.write_bytes(CONTENTS[content or kind])
            first = first or path
    for parts in empty:
        with suppress(FileExistsError, NotADirectoryError):
            root.joinpath(*parts).mkdir(parents=True, exist_ok=True)
    for number, (parts, kind) in enumerate(links):
        with suppress(FileExistsError, NotADirectoryError):
            place = root.joinpath(*parts)
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"link {number}.png"
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "hard" and first is not None:
                os.link(first, path)
            elif kind in ("first", "hard"):
                path.symlink_to(first or root / "nothing")
            else:
                path.symlink_to({"up": root, "broken": root / "nothing", "folder": root.parent / "elsewhere"}[kind])


def count_files(place: Path, outer: tuple[str, ...] = ()) -> int:
    """All entries that are no folders, through links, as `ls` would count them."""
    real = os.path.realpath(place)
    if real in outer:
        return 0
    return sum(count_files(each, (*outer, real)) if each.is_dir() else 1 for each in place.iterdir())


def opened(root: Path, split: str) -> Any:
    return open_images(ImageSource("folder", root=root, image_size=2, channels=3), split)  # type: ignore[arg-type]


def inodes(data: Any) -> set[int]:
    return {os.stat(data.name(i)).st_ino for i in range(len(data))}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(PNG)
    yield tmp_path


@SETTINGS
@given(tree=trees)
def test_every_file_is_read_or_named_and_no_test_image_is_trained_on(place: Path, tree: Any) -> None:
    root = place / "set"
    try:
        build(root, tree)
        sets = {}
        for split in ("train", "test", "all"):
            try:
                sets[split] = opened(root, split)
            except DataError as error:
                assert str(error).count("\n") == 0 and str(root) in str(error)
        total = count_files(root)
        listing = list_folder(root)
        assert len(listing.files) + len(listing.left_out) == total
        if (whole := sets.get("all")) is not None:
            assert len(whole) + len(whole.broken) + len(whole.left_out) == total
        if "train" in sets and "test" in sets:
            train, test = sets["train"], sets["test"]
            assert not inodes(train) & inodes(test) and train.class_names == test.class_names
            found = sum(len(each) + len(each.broken) for each in (train, test))
            assert found + len(train.left_out) == total
        if "train" in sets:
            words = {"test", "tests", "val", "dev", "seg_test", "testdata"}
            train = sets["train"]
            inside = [Path(train.name(i)).relative_to(root).parts[:-1] for i in range(len(train))]
            assert not any(part.lower() in words for parts in inside for part in parts[:1])
    finally:
        shutil.rmtree(root)


@SETTINGS
@given(tree=trees, contents=st.tuples(*[st.sampled_from(sorted(CONTENTS))] * 2))
def test_classes_are_a_function_of_names_alone(place: Path, tree: Any, contents: tuple[str, str]) -> None:
    """The same names with other contents; files without a known suffix are recognised by content, so have one here."""
    files = [
        (parts, (stem, suffix if suffix not in ("", ".0") else ".png", kind)) for parts, (stem, suffix, kind) in tree[0]
    ]
    names = []
    for number, content in enumerate(contents):
        root = place / str(number) / "set"
        try:
            root.parent.mkdir()
            # One intact image in a place of its own, so that not all images are broken.
            build(root, ([*files, (files[0][0], ("intact", ".png", "good"))], tree[1], []), content)
            for path in root.rglob("intact.png"):
                path.write_bytes(PNG)
            names.append(opened(root, "all").class_names)
        except DataError as error:
            names.append(str(error).replace(str(root), ""))
        finally:
            shutil.rmtree(root.parent)
    assert names[0] == names[1]
    if isinstance(names[0], list):
        assert names[0] == [unicodedata.normalize("NFC", name) for name in names[0]]


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["", "c/", "@eaDir/", "ж #/"]),
        st.sampled_from(["0", "1", "a b", "é", "x.01", "v1.5", ".h"]),
        st.sampled_from(["png", "JPG", "bmp", "heic", "txt", "json", "seg.png", ""]),
        st.sampled_from(["good", "jpeg"]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda member: (member[0], member[1], member[2].lower()),
)


@SETTINGS
@given(shards=st.dictionaries(st.sampled_from(["a", "Train-1", "test_1", "dev 2"]), MEMBERS, min_size=1, max_size=3))
def test_every_member_of_shards_is_read_or_named(place: Path, shards: dict[str, Any]) -> None:
    pytest.importorskip("webdataset")
    root = place / "shards"
    root.mkdir()
    try:
        for name, members in shards.items():
            with tarfile.open(root / f"{name}.tar", "w") as archive:
                for folder, stem, suffix, kind in members:
                    entry = tarfile.TarInfo(f"{folder}{stem}.{suffix}" if suffix else f"{folder}{stem}")
                    entry.size = len(CONTENTS[kind])
                    archive.addfile(entry, io.BytesIO(CONTENTS[kind]))
        source = ImageSource("webdataset", root=root, image_size=2, channels=3)
        sets = {}
        for split in ("train", "test", "all"):
            with suppress(DataError):
                sets[split] = open_images(source, split)  # type: ignore[arg-type]
        total = sum(map(len, shards.values()))
        if "all" in sets:
            assert len(sets["all"]) + len(sets["all"].left_out) == total
        if "train" in sets and "test" in sets:
            names = [{sets[split].name(i) for i in range(len(sets[split]))} for split in ("train", "test")]
            assert not names[0] & names[1] and len(sets["train"]) + len(sets["test"]) <= len(sets["all"])
            assert not any(Path(name.split(", sample ")[0]).name.startswith(("test", "dev")) for name in names[0])
    finally:
        shutil.rmtree(root)

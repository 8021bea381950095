"""The tables of docs/own-data.md against the code: every row is executed."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tok1d.data import filetypes
from tok1d.data.images import ImageSource, open_images
from tok1d.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"


def rows(table: str) -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    block = re.search(rf"<!-- table {table} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert block is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].splitlines()[2:]]


def words(cell: str) -> list[str]:
    return cell.strip("`").split()


@pytest.mark.parametrize("row", rows("splits"), ids=lambda row: row[0].strip("`"))
def test_splits_and_classes_are_found_as_the_page_says(row: list[str], tmp_path: Path) -> None:
    root = tmp_path / "PHOTOS"
    for number, name in enumerate(words(row[0])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir()
        elif name.endswith(".png"):
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(root / name)
        else:
            (root / name).write_bytes(b"other")
    images = {name for name in words(row[0]) if name.endswith(".png")}
    hashed = []
    for split, cell in (("train", row[1]), ("test", row[2])):
        source = ImageSource("folder", root=root, image_size=4, channels=3)
        if cell.startswith("refused: "):
            with pytest.raises(DataError, match=re.escape(cell.removeprefix("refused: "))) as caught:
                open_images(source, split)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
            continue
        data = open_images(source, split)  # type: ignore[arg-type]
        read = [Path(data.name(i)).relative_to(root).as_posix() for i in range(len(data))]  # type: ignore[union-attr]
        assert data.class_names == words(row[3])
        if cell == "by a hash":
            hashed.append(read)
        else:
            assert read == words(cell)
    if hashed:
        train, test = map(set, hashed)
        assert train and test and not train & test and train | test == images


def test_the_types_on_the_page_are_those_of_the_code(tmp_path: Path) -> None:
    found = rows("types")
    assert set(found[0][0].split()) == filetypes.READ
    named = [set(re.findall(r"(?:^|\s)(\.\w+)", row[0])) for row in found]
    assert named[2] <= filetypes.NOT_READ and named[3] <= filetypes.OTHER and len(named[2]) > 9 < len(named[3]) + 5
    assert not filetypes.READ & filetypes.NOT_READ and not (filetypes.READ | filetypes.NOT_READ) & filetypes.OTHER
    for name in re.findall(r"`([^`]+)`", found[5][0]):
        assert filetypes.folder_reason(name) and filetypes.folder_reason(name.upper())


@pytest.mark.parametrize("suffix", sorted(filetypes.READ))
def test_every_suffix_is_read_in_any_case_and_without_its_suffix(suffix: str, tmp_path: Path) -> None:
    if suffix in filetypes.unavailable():
        pytest.skip(f"this Pillow does not read {filetypes.unavailable()[suffix]}")
    kind = next(name for name, suffixes in filetypes.FORMATS.items() if suffix in suffixes)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for name in (f"a{suffix}", f"b{suffix.upper()}"):
        Image.fromarray(pixels).save(tmp_path / name, kind)
    data = open_images(ImageSource("folder", root=tmp_path, image_size=16, channels=3), "all")
    assert len(data) == 2 and not data.broken and not data.left_out  # type: ignore[union-attr]
    assert data.batch([0])[0].equal(data.batch([1])[0])
    if kind not in ("TGA", "PCX", "SGI", "ICO"):  # without a signature of their own, or a short one
        (tmp_path / f"a{suffix}").rename(tmp_path / "bare")
        assert len(open_images(ImageSource("folder", root=tmp_path, image_size=16, channels=3), "all")) == 2


@pytest.mark.parametrize(
    ("names", "classes", "note"),
    [
        (["train/é/1.png", "test/e\u0301/2.png"], ["é"], None),
        (["é/1.png", "e\u0301/2.png", "b/3.png"], ["b", "é"], "class é: two folders"),
        (["测试集/cat/1.png", "训练集/cat/2.png"], ["测试集", "训练集"], "hold folders of the same names (cat)"),
        (["fold1/a/1.png", "fold2/a/2.png"], ["fold1", "fold2"], "hold folders of the same names (a)"),
        (["cat/images/1.png", "dog/images/2.png"], ["cat", "dog"], None),
        (["set/images/a/1.png", "set/images/b/2.png"], ["set"], "set/images/ has 2 folders; give it as the data"),
        (["set/1.png", "set/2.png"], ["set"], None),
    ],
)
def test_folders_that_may_be_meant_otherwise_are_said(
    names: list[str], classes: list[str], note: str | None, tmp_path: Path
) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / name)
    data = open_images(ImageSource("folder", root=tmp_path, image_size=4, channels=3), "all")
    assert data.class_names == classes
    notes = data.notes  # type: ignore[union-attr]
    assert (notes == []) if note is None else (len(notes) == 1 and note in notes[0])

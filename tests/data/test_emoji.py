"""The emoji data set: the table, the split, the drawing, the search for the font, and trainings on it."""

import hashlib
import io
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tok1d.cli import app as cli
from tok1d.data import debian, emoji, emoji_font
from tok1d.data.emoji_table import Emoji, bases, compact, is_test, table
from tok1d.data.images import ImageSource, kind_of, open_images
from tok1d.data.scan_cache import read_only_cache
from tok1d.data.subset import subset
from tok1d.errors import DataError

TONES = re.compile("[\U0001f3fb-\U0001f3ff\U0001f9b0-\U0001f9b3\u2640\u2642\u200d\ufe0f]")


@pytest.fixture(scope="module")
def font() -> Path:
    """The real font, if it is installed or in the cache."""
    try:
        with read_only_cache():
            return emoji_font.find()
    except DataError as error:
        pytest.skip(f"{error}; python -m tok1d.data.emoji fetches the font")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Squares in a colour of the name in place of the font's emoji; the last three are not drawn."""

    def draw(font: Path, size: int) -> tuple[np.ndarray, list[int]]:
        places = list(range(len(table()) - 3))
        digests = [hashlib.sha256(table()[i].name.encode()).digest() for i in places]
        colours = np.frombuffer(b"".join(each[:3] for each in digests), np.uint8).reshape(-1, 1, 1, 3)
        return np.broadcast_to(colours, (len(places), size, size, 3)).copy(), places

    (tmp_path / "font.ttf").write_bytes(b"font")
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(emoji, "draw", draw)
    monkeypatch.setattr(emoji_font, "find", lambda root=None: tmp_path / "font.ttf")


def opened(split: str, **options: Any) -> Any:
    return open_images(ImageSource("emoji", image_size=8, channels=3, **options), split)  # type: ignore[arg-type]


def test_the_table_has_unicodes_counts() -> None:
    emoji = table()
    assert len(emoji) == len({each.text for each in emoji}) == len({each.name for each in emoji}) == 3655
    assert len({each.group for each in emoji}) == 9 and len({each.subgroup for each in emoji}) == 99
    assert emoji[0] == Emoji("\U0001f600", "grinning face", "Smileys & Emotion", "face-smiling")


def test_the_short_form_keeps_fully_qualified_emoji() -> None:
    lines = [
        *("# group: Faces", "# subgroup: warm", ""),
        "1F600                ; fully-qualified     # \U0001f600 E1.0 grinning face",
        "263A                 ; unqualified         # \u263a E0.6 smiling face",
        "1F1E6 1F1E8          ; fully-qualified     # \U0001f1e6\U0001f1e8 E2.0 flag: Ascension Island",
    ]
    assert list(compact(lines))[1:] == [
        *("group Faces", "subgroup warm", "1F600 grinning face", "1F1E6-1F1E8 flag: Ascension Island"),
    ]


def test_no_variant_of_a_test_image_is_trained_on() -> None:
    """By code points alone, by names alone, and by examples; not by the rule of the code."""
    emoji = table()
    side = {each.name: is_test(base) for each, base in zip(emoji, bases(emoji))}
    plain: dict[str, set[bool]] = {}
    for each in emoji:
        plain.setdefault(TONES.sub("", each.text), set()).add(side[each.name])
    assert all(len(sides) == 1 for sides in plain.values())
    for name in side:
        for word in ("man", "woman", "person"):
            for other in (name.replace(word, "person", 1), name.replace(f"{word} ", "", 1)):
                assert side.get(other, side[name]) == side[name], (name, other)
    for names in (
        ("cook", "man cook: dark skin tone", "woman cook"),
        ("person: red hair", "woman: blond hair", "man: beard", "old woman", "girl: light skin tone", "baby"),
        ("mermaid", "merman: dark skin tone"),
        ("prince", "princess: dark skin tone"),
        ("Santa Claus", "Mrs. Claus: light skin tone", "mx claus"),
        ("flag: France", "flag: St. Martin"),
        ("kiss", "kiss: woman, man, light skin tone, dark skin tone"),
        ("woman dancing", "man dancing"),
    ):
        assert len({side[name] for name in names}) == 1, names
    assert len(set(bases(emoji))) == 1652 and 0.08 < len({b for b in bases(emoji) if is_test(b)}) / 1652 < 0.12


def test_different_things_are_no_variants() -> None:
    found = dict(zip((each.name for each in table()), bases(table())))
    for names in (
        ("keycap: 1", "keycap: 2", "flag: Japan", "flag: Italy", "bed", "person in bed"),
        ("face blowing a kiss", "kiss", "kiss mark"),
        ("woman\u2019s boot", "man\u2019s shoe", "woman\u2019s hat", "woman running", "running shoe"),
    ):
        assert len({found[name] for name in names}) == len(names), names


def test_the_splits_are_disjoint_and_complete(drawn: None, capsys: pytest.CaptureFixture[str]) -> None:
    train, test, whole = (opened(split, captions="names") for split in ("train", "test", "all"))
    assert len(train) + len(test) == len(whole) == 3652
    assert sorted(train.captions + test.captions) == sorted(whole.captions)
    assert len(test) > 300 and len({train.fingerprint(), test.fingerprint(), whole.fingerprint()}) == 3
    assert "3 of 3655" in whole.notes[0] and "flag: Wales" in whole.notes[0]
    images, labels, captions = whole.captioned_batch([0, 3000])
    assert images.shape == (2, 3, 8, 8) and captions == [table()[0].name, table()[3000].name]
    for i in (0, 1):
        group = table()[[0, 3000][i]].group
        assert whole.class_names[int(labels[i])] == group
        assert images[i, :, 0, 0].mul(255).byte().tolist() == list(hashlib.sha256(captions[i].encode()).digest()[:3])


def test_classes_limits_and_borders(drawn: None) -> None:
    subgroups = opened("train", classes="subgroups", limit=50)
    assert subgroups.num_classes == 99 and len(subgroups) == 50
    assert len({int(label) for label in subgroups.labels}) > 20  # spread over the set
    padded = opened("test", pad=2).batch([0])[0]
    assert padded.shape[-1] == 8 and not padded[..., :2, :].any() and padded[..., 2:-2, 2:-2].max() > 0
    assert kind_of("emoji") == "emoji"


def test_images_are_drawn_once(drawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened("test").fingerprint()
    monkeypatch.setattr(emoji, "draw", lambda font, size: pytest.fail("drawn again"))
    assert opened("test").fingerprint() == first


def test_a_training_reads_it_and_its_captions(drawn: None, tmp_path: Path, tiny: Any, capsys: Any) -> None:
    keys = ["data.name=emoji", "data.channels=3", "data.image_size=28", "model.channels=3", f"out={tmp_path / 'run'}"]
    assert cli.run(["train", tiny("tokenizer"), *keys]) == 0
    shown = capsys.readouterr()
    assert "3 of 3655" in shown.err
    out = tmp_path / "pictures"
    assert cli.run(["reconstruct", str(tmp_path / "run" / "model"), "emoji", "--num", "2", "--out", str(out)]) == 0
    assert Image.open(out / "overview.png").mode == "RGB"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["data.captions=labels"], "data.captions: name=emoji takes names, got labels"),
        (["data.name=fashion_mnist", "data.classes=groups"], "data.classes: only emoji reads it, expected null"),
        (["data.classes=kinds"], "data.classes: expected groups or subgroups"),
        (["data.root=no/such"], "no/such: no such font; expected NotoColorEmoji.ttf or a folder that holds it"),
    ],
)
def test_mistakes_are_one_line(tiny: Any, tmp_path: Path, capsys: Any, keys: list[str], words: str) -> None:
    assert cli.run(["train", tiny("tokenizer"), "data.name=emoji", f"out={tmp_path / 'run'}", *keys]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error and not (tmp_path / "run").exists()


def test_a_file_that_is_no_such_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / emoji_font.NAME).write_bytes(b"no font")
    with pytest.raises(DataError, match=r"not a font with colour bitmaps of 109 pixels .* expected Noto Color Emoji"):
        emoji_font.find(tmp_path)


def test_without_any_source_the_error_lists_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(*args: object, **keys: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji_font, "_installed", lambda: iter(()))
    monkeypatch.setattr(debian, "fetch_package", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError) as error:
        emoji_font.find()
    text = str(error.value)
    assert all(part in text for part in ("data.root", "apt install", "Debian package", "snapshot.debian.org"))
    assert "\n" not in text and text.count("no network") == 2
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def debian_package(folder: Path, name: str, content: bytes) -> bytes:
    """A package as dpkg builds it: an ar archive of three members."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as files:
        member = tarfile.TarInfo(f"./usr/share/fonts/{name}")
        member.size = len(content)
        files.addfile(member, io.BytesIO(content))
    archive = b"!<arch>\n"
    for title, part in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())):
        archive += (
            f"{title:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    return archive


def test_the_archive_is_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = debian_package(tmp_path, emoji_font.NAME, b"the font")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(package))
    with pytest.raises(DataError, match="expected the SHA-256"):
        emoji_font._from_archive(tmp_path)
    monkeypatch.setattr(emoji_font, "SHA256", hashlib.sha256(package).hexdigest())
    assert emoji_font._from_archive(tmp_path).read_bytes() == b"the font"
    with pytest.raises(DataError, match="not a Debian package"):
        emoji_font.unpack(b"x" * 100, tmp_path)


def test_the_font_draws_every_emoji_as_one_glyph(font: Path) -> None:
    opened = emoji_font.load(font)
    found = emoji.drawable(table(), opened)
    assert sum(found) > 3000
    two, absent = Emoji("\U0001f600\U0001f603", "two", "", ""), Emoji(chr(0x10FFFE), "absent", "", "")
    assert emoji.drawable((two, absent, table()[0]), opened) == [False, False, True]


def test_no_test_image_of_the_font_is_a_training_image(font: Path, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path))
    train, test = (
        open_images(ImageSource("emoji", root=font, image_size=24, channels=3), s) for s in ("train", "test")
    )
    known = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in known for image in test.images)
    corners = test.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float((corners == 255).mean()) > 0.9 and test.images.std() > 50


def test_some_of_the_images_are_spread_over_the_set(drawn: None) -> None:
    """The set is sorted by group, so that the first images would be faces alone."""
    some = subset(opened("test"), 20)
    labels = some.batch(range(20))[1]
    assert len({int(label) for label in labels}) >= 6

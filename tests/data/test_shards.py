"""Tar shards and saved arrow data sets, compared with the libraries that wrote them and used in place of a folder."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.cli import app as cli
from tok1d.data import lazy
from tok1d.data.broken import report_broken
from tok1d.data.images import ImageSource, kind_of, open_images
from tok1d.data.shards import find_shards, index_shard
from tok1d.data.splits import is_test, part_of
from tok1d.errors import DataError

webdataset = pytest.importorskip("webdataset", reason="needs webdataset: pip install 'tok1d[webdataset]'")
datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'tok1d[huggingface]'")

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 12), np.uint8)
SAMPLES = [(f"{i:04d}", PIXELS[i], i % 3, f"picture {i}") for i in range(len(PIXELS))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of ten samples, as webdataset writes them; 0007 is broken."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "all-%03d.tar"), maxcount=10, verbose=0) as sink:
        for name, pixels, label, caption in SAMPLES:
            image = b"broken" if name == "0007" else png(pixels)
            sink.write({"__key__": f"c/{name}", "png": image, "cls": label, "txt": caption})
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The same samples, saved by datasets with a train and a test split."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["x", "y", "z"]),
            "text": datasets.Value("string"),
        }
    )

    def part(samples: list[Any]) -> Any:
        rows = {
            "image": [
                {"bytes": b"broken" if name == "0007" else png(pixels), "path": None} for name, pixels, *_ in samples
            ],
            "label": [label for _, _, label, _ in samples],
            "text": [caption for *_, caption in samples],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    both = datasets.DatasetDict({"train": part(SAMPLES[:30]), "test": part(SAMPLES[30:])})
    both.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def opened(root: Path, split: str = "train", **options: Any) -> Any:
    return open_images(ImageSource(kind_of(str(root)), root=root, image_size=12, channels=1, **options), split)


def same_samples(data: Any, samples: list[Any], captions: bool) -> None:
    images, labels, texts = data.captioned_batch(range(len(data)))
    for image, label, text, (name, pixels, expected, caption) in zip(images, labels, texts, samples, strict=True):
        if name != "0007":
            assert image[0].mul(255).round().byte().equal(torch.from_numpy(pixels)) and int(label) == expected
            assert text == (caption if captions else "")


@pytest.mark.parametrize("captions", [None, "txt"])
def test_shards_hold_what_webdataset_reads_from_them(shards: Path, captions: str | None) -> None:
    files = [str(path) for path in sorted(shards.glob("*.tar"))]
    read = list(webdataset.WebDataset(files, shardshuffle=False))
    ours = [row for path in files for row in index_shard(path, "png", "cls", "txt")]
    assert len(read) == len(ours) == 40
    for sample, (name, offset, size, label, text) in zip(read, ours):
        assert (sample["__key__"], int(sample["cls"]), sample["txt"].decode()) == (name, label, text)
        content = Path(sample["__url__"]).read_bytes()[offset : offset + size]
        assert content == sample["png"]
    parts = {split: opened(shards, split, captions=captions) for split in ("train", "test")}
    held_out = [sample for sample in SAMPLES if is_test(f"c/{sample[0]}")]
    assert 0 < len(held_out) < 10 and len(parts["train"]) + len(parts["test"]) == 40
    same_samples(parts["test"], held_out, captions is not None)
    same_samples(parts["train"], [each for each in SAMPLES if each not in held_out], captions is not None)
    assert parts["train"].class_names == ["0", "1", "2"]


def test_a_saved_data_set_holds_what_datasets_reads_from_it(saved: Path) -> None:
    train, test = opened(saved, captions="text"), opened(saved, "test")
    same_samples(train, SAMPLES[:30], True)
    same_samples(test, SAMPLES[30:], False)
    assert train.class_names == ["x", "y", "z"] and len(opened(saved, limit=7)) == 7
    single = saved.with_name("single")
    datasets.load_from_disk(str(saved / "train")).save_to_disk(str(single))
    assert len(opened(single)) + len(opened(single, "test")) == 30
    assert train.fingerprint() == opened(saved).fingerprint() != opened(saved, limit=7).fingerprint()


@pytest.mark.parametrize("kind", ["shards", "saved"])
def test_a_broken_sample_is_named_counted_and_replaced_by_the_next(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    root: Path = request.getfixturevalue(kind)
    data = opened(root, captions={"shards": "txt", "saved": "text"}[kind])
    at = next(i for i in range(len(data)) if data.name(i).endswith("0007" if kind == "shards" else "row 7"))
    images, labels, captions = data.captioned_batch([at, at + 1])
    assert images[0].equal(images[1]) and labels[0] == labels[1] and captions[0] == captions[1] != ""
    assert data.broken == data.replaced and len(data.broken) == 1
    capsys.readouterr()
    report_broken(data)
    report_broken(data)
    err = capsys.readouterr().err.splitlines()
    assert data.name(at) in err[0] and err[1] == f"skipped 1 broken images of {len(data)}" and len(err) == 2
    with pytest.raises(DataError, match=r"(0007|row 7): broken image: not a readable image: .*data\.on_broken=skip"):
        opened(root, on_broken="stop").batch([at])


def test_order_is_a_pure_function_of_the_samples(shards: Path) -> None:
    first = opened(shards)
    again, narrow = opened(shards), opened(shards, workers=1)  # the second time from the index on disk
    assert first.fingerprint() == again.fingerprint() and len(list(Path(shards, "../cache/shards").glob("*.json"))) == 4
    picks = [9, 0, 3, 3, 12]
    for other in (again, narrow):
        assert other.batch(picks)[0].equal(first.batch(picks)[0])
    pattern = open_images(
        ImageSource("webdataset", root=f"{shards}/all-{{000..001}}.tar", image_size=12, channels=1), "train"
    )
    assert len(pattern) == sum(not is_test(f"c/{name}") for name, *_ in SAMPLES[:20])


def test_a_changed_shard_is_indexed_anew(shards: Path) -> None:
    before = len(opened(shards)) + len(opened(shards, "test"))
    (shards / "all-000.tar").write_bytes((shards / "all-001.tar").read_bytes())
    names = [opened(shards, split).name(i) for split in ("train", "test") for i in range(len(opened(shards, split)))]
    assert len(names) == before and not any(name.endswith("c/0003") for name in names)


@pytest.mark.parametrize(
    ("names", "train", "stated"),
    [
        (["a/train/0.tar", "a/val/0.tar"], ["a/train/0.tar"], True),
        (["in1k-train-000.tar", "in1k-validation-00.tar"], ["in1k-train-000.tar"], True),
        (["x/train/test-0.tar", "x/train/1.tar"], ["x/train/1.tar"], True),
        (["train-0.tar", "train-1.tar"], ["train-0.tar", "train-1.tar"], False),
        (["trainer-0.tar", "test-1.tar"], ["trainer-0.tar", "test-1.tar"], False),
    ],
)
def test_names_of_shards_give_their_split(names: list[str], train: list[str], stated: bool) -> None:
    assert part_of(names, "train") == (train, stated)


def test_what_is_wrong_is_named(shards: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such shard, of 3"):
        find_shards(f"{shards}/all-{{003..005}}.tar")
    (shards / "all-001.tar").write_bytes((shards / "all-001.tar").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"all-001\.tar: not a complete readable shard"):
        opened(shards)
    (shards / "all-001.tar").write_bytes(b"garbage" * 300)
    with pytest.raises(DataError, match=r"all-001\.tar: not a complete readable shard"):
        opened(shards)
    (shards / "all-001.tar").unlink()
    with pytest.raises(DataError, match=r"no sample has a jp2; set data\.image_key"):
        opened(shards, image_key="jp2")
    with pytest.raises(DataError, match=r"all-000\.tar: sample c/0000 has no class"):
        opened(shards, label_key="class")
    with pytest.raises(DataError, match=r"data\.image_key: no column 'picture', expected one of image, label, text"):
        opened(saved, image_key="picture")
    with pytest.raises(DataError, match=r"expected a column of images, got text"):
        opened(saved, image_key="text")
    with pytest.raises(DataError, match=r"data\.label_key: expected integers >= 0 in column text"):
        opened(saved, label_key="text")
    next((saved / "train").glob("*.arrow")).write_bytes(b"garbage")
    with pytest.raises(DataError, match="expected a folder written by datasets' save_to_disk"):
        opened(saved)


def test_a_shard_that_is_cut_off_anywhere_is_refused(shards: Path) -> None:
    """tarfile itself treats a truncated or damaged header as the end of the archive."""
    path = shards / "all-002.tar"
    whole = path.read_bytes()
    members = index_shard(str(path), "png", "cls", None)
    end = len(whole.rstrip(b"\0")) + 1
    for cut in range(512, end, 256):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"all-002\.tar: not a complete readable shard"):
            index_shard(str(path), "png", "cls", None)
    header = members[4][1] - 512
    path.write_bytes(whole[:header] + b"x" * 512 + whole[header + 512 :])
    with pytest.raises(DataError, match=r"invalid header|cut off or damaged at byte"):
        index_shard(str(path), "png", "cls", None)
    path.write_bytes(whole)
    assert index_shard(str(path), "png", "cls", None) == members


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    """Class 3 occurs only in the training images."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    parts = {}
    for split, classes in (("train", (0, 1, 3)), ("test", (0, 1))):
        with webdataset.ShardWriter(str(tmp_path / f"{split}-%03d.tar"), verbose=0) as sink:
            for label in classes:
                sink.write({"__key__": str(label), "png": png(PIXELS[label]), "cls": label})
        rows = {"image": [{"bytes": png(PIXELS[i]), "path": None} for i in classes], "label": list(classes)}
        parts[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    for root in (f"{tmp_path}/{{train,test}}-000.tar", tmp_path / "saved"):
        for split, count in (("train", 3), ("test", 2)):
            data = opened(root, split)
            assert data.num_classes == 4 and data.labels.tolist() == [0, 1, 3][:count]
            assert data.notes[0] == "class numbers 0 to 3, 3 of them: model.num_classes must be 4"


def test_captions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(PIXELS[i]), "path": None} for i in range(30)]}
    features = {"image": datasets.Image(), "one": datasets.Value("string")}
    features |= {"many": datasets.Sequence(datasets.Value("string")), "number": datasets.Value("int64")}
    rows |= {"one": [None, *map(str, range(29))], "many": [["a dog", "two dogs"]] * 30, "number": list(range(30))}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(str(tmp_path / "saved"))
    assert opened(tmp_path / "saved", captions="one").captions[:2] == ["", "0"]
    for column in ("many", "number"):
        with pytest.raises(DataError, match=rf"data\.captions: expected one text per row in column {column}, got"):
            opened(tmp_path / "saved", captions=column)


def test_images_and_shards_in_one_folder_are_refused(shards: Path) -> None:
    assert kind_of(str(shards)) == "webdataset"
    (shards / "c").mkdir()
    (shards / "c" / "1.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(DataError, match=r"expected images or shards, got both .*1\.png and .*\.tar: move one"):
        kind_of(str(shards))
    assert kind_of(f"{shards}/all-{{000..003}}.tar") == "webdataset" and kind_of(str(shards / "c")) == "folder"


def test_a_disk_that_went_away_ends_the_search(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(shards)
    for path in shards.glob("*.tar"):
        path.unlink()
    monkeypatch.setattr(lazy, "MAX_UNREADABLE", 5)
    with pytest.raises(DataError, match=r"No such file.*nor can the 4 images before it be read"):
        data.batch([3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "huggingface"])
def test_a_tokenizer_and_a_generator_learn_from_them(
    kind: str, tiny: Callable[..., str], request: pytest.FixtureRequest, tmp_path: Path, capsys: Any
) -> None:
    root: Path = request.getfixturevalue({"webdataset": "shards", "huggingface": "saved"}[kind])
    data = [f"data.name={kind}", f"data.root={root}"]
    assert cli.run(["train", tiny("tokenizer"), *data, f"out={tmp_path / 'run'}", "train.steps=4"]) == 0
    assert "skipped 1 broken images of" in capsys.readouterr().err
    tokenizer = tmp_path / "run" / "model"
    generator = ["train", tiny("generator"), *data, f"tokenizer={tokenizer}", "model.num_classes=3", "train.steps=2"]
    assert cli.run([*generator, f"out={tmp_path / 'second'}"]) == 0
    for command in (
        ["encode", tokenizer, root, "--out", tmp_path / "c"],
        ["reconstruct", tokenizer, root, "--num", 2, "--out", tmp_path / "r"],
    ):
        assert cli.run([str(part) for part in command]) == 0
    assert (tmp_path / "c" / "index.json").is_file() and (tmp_path / "r" / "overview.png").is_file()


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path.parent


def of_shards(root: Path, split: str) -> Any:
    return open_images(ImageSource("webdataset", root=root, image_size=12, channels=1), split)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"-1", b"1e3", b"0.5", b"", b"0\0", b'{"label": 1}', b"\x80\x04K\x01.", b"9" * 400])
def test_a_class_file_that_holds_no_class_is_named(text: bytes, tmp_path: Path) -> None:
    root = write(tmp_path / "s" / "a.tar", {"0.png": png(PIXELS[0]), "0.cls": text})
    with pytest.raises(DataError, match=r"a\.tar: (label .* of 0|0\.cls): expected ") as caught:
        of_shards(root, "all")
    assert "\n" not in str(caught.value)


def test_class_names_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    members = {f"{i}.png": png(PIXELS[i]) for i in range(4)}
    classes = {f"{i}.cls": ("é", "e\u0301")[i % 2].encode() for i in range(4)}
    assert of_shards(write(tmp_path / "s" / "a.tar", members | classes), "all").class_names == ["é"]


@pytest.mark.parametrize(
    ("shard", "members", "culprit"),
    [
        ("a.tar", ["train/0.png", "test/1.png"], "sample test/1: in a folder named like a test split"),
        ("a.tar", ["0.png"], "one image, 0: expected two or more"),
        ("a.tar", ["0.txt"], "no sample has a jpg"),
        ("train.tar", ["0.png"], "train.tar is the same file as test.tar"),
        ("tr.tar", ["0.png"], "te.tar: is it the test split"),
    ],
)
def test_shards_that_would_train_on_test_images_are_refused(
    shard: str, members: list[str], culprit: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "s" / shard, {name: png(PIXELS[i]) for i, name in enumerate(members)})
    if shard != "a.tar":
        (root / shard.replace("train", "test").replace("tr.", "te.")).hardlink_to(root / shard)
    with pytest.raises(DataError, match=culprit):
        of_shards(root, "train")


def test_folders_in_shards_without_classes_are_named(tmp_path: Path) -> None:
    data = of_shards(write(tmp_path / "s" / "a.tar", {f"{name}/0.png": png(PIXELS[0]) for name in "ab"}), "all")
    assert len(data) == 2 and data.notes == ["samples lie in 2 folders, but have no cls: one class"]

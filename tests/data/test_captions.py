"""Captions: their assignment to images in any order and split, and invalid caption files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.data import fashion_mnist
from tok1d.data.captions import read_captions
from tok1d.data.folder import FolderImages
from tok1d.data.images import ArrayImages, ImageSource, at_size, open_images
from tok1d.data.transforms import Transform
from tok1d.errors import DataError

FILES = ["1.png", "a/2.png", "a/b/3.png", "c/4.png", "c/5.png"]


def save(root, files):
    """Images with constant pixels: 10 times the digit in their name."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        value = 10 * int(file.split("/")[-1].split(".")[0])
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(root / file)


def write(root, captions, name="captions.jsonl"):
    lines = [json.dumps({"file": file, "caption": text, "url": "x"}) for file, text in captions.items()]
    (root / name).write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def opened(root, captions="captions.jsonl", split="train", **options):
    return open_images(ImageSource("folder", root=root, image_size=8, channels=1, captions=captions, **options), split)


def number(image):
    return round(float(image.mean()) * 255 / 10)


@pytest.mark.parametrize("how", ["captions.jsonl", "files", "absolute"])
@pytest.mark.parametrize("split", [True, False])
def test_an_image_has_its_caption_in_every_order(tmp_path, how, split):
    prefix = "train/" if split else ""
    save(tmp_path, [f"{prefix}{file}" for file in FILES])
    if split:
        save(tmp_path, ["val/6.png", "val/x/7.png"])
    texts = {file: f"Nº {file.split('/')[-1][0]}" for file in FILES if not file.endswith("4.png")}
    for file, text in texts.items():
        (tmp_path / prefix / file).with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    write(tmp_path, {f"./{prefix}{file}": text for file, text in texts.items()})
    data = opened(tmp_path, str(tmp_path / "captions.jsonl") if how == "absolute" else how)
    whole = data.captioned_batch(range(len(data)))
    for order in (range(len(data)), range(len(data) - 1, -1, -1), [2, 0, 2], [1]):
        images, labels, captions = data.captioned_batch(list(order))
        assert captions == ["" if number(image) == 4 else f"Nº {number(image)}" for image in images]
        assert images.equal(whole[0][list(order)]) and images.equal(data.batch(list(order))[0])
    assert (data.num_classes, labels.tolist()) == (1, [0]), "images in no class folder: one class"
    if split:  # an image without a caption is no mistake, nor is a split of them
        assert opened(tmp_path, how if how != "absolute" else "captions.jsonl", "test").captions == ["", ""]


def test_captioned_images_in_class_folders_keep_their_classes(tmp_path):
    save(tmp_path, FILES[1:])
    write(tmp_path, {"c/4.png": "four"})
    data = FolderImages(tmp_path, Transform(8, 1), captions={"c/4.png": "four"})
    assert data.class_names == ["a", "c"] and data.captions == ["", "", "four", ""]
    assert data.captioned_batch([2, 0])[1].tolist() == [1, 0]
    with pytest.raises(DataError, match="both class folders and loose images"):
        save(tmp_path, FILES[:1])
        FolderImages(tmp_path, Transform(8, 1))


def test_flat_train_and_val_folders_are_one_class(tmp_path):
    save(tmp_path / "set", ["train/1.png", "train/2.png", "val/3.png"])
    for split, count in (("train", 2), ("test", 1)):
        data = open_images(ImageSource("folder", root=tmp_path / "set", image_size=8, channels=1), split)
        assert data.class_names == ["set"] and data.batch(range(count))[1].tolist() == [0] * count


def test_views_repeat_and_limits_and_replacements_follow_the_image(tmp_path):
    save(tmp_path, ["test/0.png", *(f"train/{i}.png" for i in range(1, 10))])
    write(tmp_path, {f"train/{i}.png": str(i) for i in range(1, 10)})
    few = opened(tmp_path, limit=3)
    assert few.captions == [str(number(image)) for image in few.batch(range(3))[0]] == ["1", "4", "7"]
    views = opened(tmp_path, crop="center+flip").captioned_batch([3, 1])
    assert views[2] == ["4", "4", "2", "2"] and len(views[0]) == 4
    data = opened(tmp_path, on_broken="skip")
    (tmp_path / "train" / "5.png").write_bytes(b"gone bad")
    images, _, captions = data.captioned_batch([4, 0])
    assert captions == ["6", "1"] == [str(number(image)) for image in images]
    again = opened(tmp_path, on_broken="skip")
    assert again.captions == [str(i) for i in (1, 2, 3, 4, 6, 7, 8, 9)]


def test_captions_of_fashion_mnist_name_the_class(fashion):
    def named(limit=None, **options):
        source = ImageSource("fashion_mnist", image_size=28, channels=1, captions="labels", limit=limit, **options)
        return open_images(source, "train")

    data = named()
    _, labels, captions = data.captioned_batch(range(64))
    assert all(fashion_mnist.NOUNS[label] in caption for label, caption in zip(labels, captions))
    used = {caption.replace(fashion_mnist.NOUNS[n], "{}") for n, caption in zip(labels, captions)}
    assert used == set(fashion_mnist.TEMPLATES)
    assert named(7).captions == captions[:7]
    assert named(flip=True).captioned_batch([5, 3])[2] == [captions[5], captions[3]]
    assert len(fashion_mnist.NOUNS) == len(fashion_mnist.CLASS_NAMES)
    plain = open_images(ImageSource("fashion_mnist", image_size=28, channels=1), "train")
    assert plain.captioned_batch([1, 2])[2] == ["", ""] and plain.fingerprint() == data.fingerprint()
    with pytest.raises(DataError, match="expected labels or none, got 'files'"):
        open_images(ImageSource("fashion_mnist", image_size=28, channels=1, captions="files"), "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'file': 1}", r"line 3: not JSON \(.*\): expected \{\"file\""),
        ('{"file": "a.png"}', r'line 3: expected .*, got \{"file": "a.png"\}$'),
        ('{"file": "a.png", "caption": 3}', r"line 3: expected .*, got "),
        ('["a.png", "text"]', r"line 3: expected .*, got "),
        ("[" * 100_000, r"line 3: not JSON"),
        ('{"file": "./1.png", "caption": "again"}', r"line 3: a second caption of 1\.png: keep one"),
    ],
)
def test_a_broken_captions_file_names_its_line(tmp_path, line, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"file": "1.png", "caption": "one"}}\n\n{line}\n')
    with pytest.raises(DataError, match=message) as caught:
        read_captions(path)
    error_text = str(caught.value)
    assert error_text.startswith(str(path)) and "\n" not in error_text and len(error_text) < 400


def test_captions_that_cannot_be_read_or_are_of_other_images_are_reported(tmp_path):
    save(tmp_path, ["test/0.png", *(f"train/{i}.png" for i in range(1, 4))])
    (tmp_path / "latin.jsonl").write_bytes(b'{"file": "train/1.png", "caption": "a"}\n\xe9\n')
    write(tmp_path, {"1.png": "relative to train/", "2.png": "too"}, "elsewhere.jsonl")
    for name, message in (
        ("none.jsonl", "none.jsonl: cannot read the captions, No such file"),
        ("latin.jsonl", "latin.jsonl, after line .: not UTF-8"),
        ("elsewhere.jsonl", r"elsewhere.jsonl: no image 1.png in .*: write paths relative to that folder"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            opened(tmp_path, name)
        assert "\n" not in str(caught.value)
    (tmp_path / "train" / "2.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"train/2\.txt: cannot read the caption, it is not UTF-8 text"):
        opened(tmp_path, "files")


def test_arrays_need_a_caption_each():
    images, transform = np.zeros((2, 8, 8), np.uint8), Transform(8, 1)
    with pytest.raises(DataError, match="captions: expected one for each of 2 images, got 1"):
        ArrayImages(images, np.zeros(2, np.int64), ["x"], transform, ["one"])


@pytest.mark.parametrize("pad", [0, 2])
def test_another_size_is_another_cut_of_the_same_images(tmp_path, pad):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12), np.uint8)
    options = {"crop": "random", "flip": True, "pad": pad}
    data = ArrayImages(images, np.arange(5), list("abcde"), Transform(12, 1, **options), list("vwxyz"))
    large = at_size(data, 20)
    expected = ArrayImages(images, np.arange(5), list("abcde"), Transform(20, 1, **options))
    assert torch.equal(large.batch([3, 1], seed=2, epoch=1)[0], expected.batch([3, 1], seed=2, epoch=1)[0])
    assert large.captioned_batch([4])[2] == ["z"] and data.batch([0])[0].shape[-1] == 12
    save(tmp_path, FILES[1:])
    folder = FolderImages(tmp_path, Transform(8, 1), on_broken="skip")
    (tmp_path / "a" / "2.png").write_bytes(b"gone bad")
    assert at_size(folder, 16).batch([0])[0].shape == (1, 1, 16, 16)
    assert len(folder.broken) == 1, "what is skipped at one size is known at all"

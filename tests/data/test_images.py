import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.data import folder as folder_module
from tok1d.data.broken import replaced_indices
from tok1d.data.folder import FolderImages
from tok1d.data.images import ArrayImages, ImageSource, open_images, prefetch
from tok1d.data.subset import subset
from tok1d.data.transforms import Transform
from tok1d.errors import DataError

RNG = np.random.default_rng(0)


def save(path, size=(12, 9), value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, (size[1], size[0], 3), np.uint8) if value is None else np.full((*size[::-1], 3), value)
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for name in ("b/1.PNG", "b/deep/2.jpg", "a/3.webp", "a-b/4.jpeg"):
        save(root / name)
    save(root / "b" / ".hidden.png")
    save(root / ".cache" / "5.png")
    (root / "a" / "notes.txt").write_text("not an image")
    return root


def array_set(shape=(6, 8, 8), **options):
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    return ArrayImages(
        images, np.arange(shape[0]) % 3, ["x", "y", "z"], Transform(**{"size": 8, "channels": 1, **options})
    )


def test_array_images_return_their_pixels_and_labels():
    data = array_set()
    images, labels = data.batch([5, 0, 5])
    assert images.dtype == torch.float32 and labels.tolist() == [2, 0, 2]
    np.testing.assert_allclose(images[:, 0].numpy() * 255, data.images[[5, 0, 5]], atol=1e-4)
    assert (len(data), data.num_classes) == (6, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 2])
def test_the_fast_path_equals_the_path_through_pil(shape, channels, flip, pad):
    data = array_set(shape, channels=channels, flip=flip, size=8 + 2 * pad, pad=pad)
    indices = np.arange(6)
    images, _ = data.batch(indices, seed=3, epoch=1)
    assert images.shape == (6, channels, 8 + 2 * pad, 8 + 2 * pad) and images.is_contiguous()
    assert images.equal(data._by_pil(indices, 3, 1).float() / 255)


@pytest.mark.parametrize(
    "options",
    [
        {"flip": True},
        {"size": 5, "crop": "random"},
        {"size": 11, "crop": "random", "flip": True},
        {"crop": "random_scale"},
    ],
)
def test_augmentation_is_a_pure_function_of_seed_epoch_and_index(options):
    data = array_set((64, 8, 12), **options)
    whole = data.batch(range(64), seed=1, epoch=2)[0]
    assert whole[[40, 7]].equal(data.batch([40, 7], seed=1, epoch=2)[0])
    for seed, epoch in ((0, 2), (1, 3)):
        assert not whole.equal(data.batch(range(64), seed=seed, epoch=epoch)[0])


def test_flip_leaves_about_half_of_the_images_as_they_are():
    data = array_set((1000, 8, 8), flip=True)
    images = data.batch(range(1000))[0]
    plain = array_set((1000, 8, 8)).batch(range(1000))[0]
    same = (images == plain).flatten(1).all(1)
    assert (images.flip(3) == plain).flatten(1).all(1).logical_xor(same).all()
    assert 430 < same.sum() < 570  # standard deviation 16


def test_array_fingerprints_follow_contents_and_transform():
    data = array_set()
    assert data.fingerprint() == array_set().fingerprint()
    changed = array_set()
    changed.images[3, 2, 1] ^= 1
    relabelled = ArrayImages(data.images, data.labels[::-1].copy(), data.class_names, data.transform)
    prints = {s.fingerprint() for s in (data, changed, relabelled, array_set(flip=True), array_set(size=9))}
    assert len(prints) == 5


@pytest.mark.parametrize(
    ("images", "labels"),
    [(np.zeros((2, 8, 8)), [0, 1]), (np.zeros((2, 8, 8), np.uint8), [0]), (np.zeros((2, 8, 8), np.uint8), [0, 3])],
)
def test_arrays_that_do_not_fit_together_are_refused(images, labels):
    with pytest.raises(DataError, match="expected"):
        ArrayImages(images, np.array(labels), ["x", "y", "z"], Transform(8))


def test_folders_are_classes_sorted_nested_and_without_hidden_files(folder):
    data = FolderImages(folder, Transform(8))
    assert data.class_names == ["a", "a-b", "b"]
    assert data.files == ["a/3.webp", "a-b/4.jpeg", "b/1.PNG", "b/deep/2.jpg"]
    images, labels = data.batch([3, 0])
    assert images.shape == (2, 3, 8, 8) and labels.tolist() == [2, 0]
    assert images.min() >= 0 and images.max() <= 1


def test_a_flat_folder_is_one_class(tmp_path):
    save(tmp_path / "mine" / "b.png", value=51)
    save(tmp_path / "mine" / "a.png", value=0)
    data = FolderImages(tmp_path / "mine", Transform(4, channels=1))
    assert (data.class_names, data.labels.tolist()) == (["mine"], [0, 0])
    assert data.batch([1])[0].equal(torch.full((1, 1, 4, 4), 51 / 255))


def test_linked_class_folders_are_followed_and_circles_are_not(folder, tmp_path):
    save(tmp_path / "elsewhere" / "6.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "circle").symlink_to(folder)
    assert FolderImages(folder, Transform(8)).files[-1] == "linked/6.png"
    assert len(FolderImages(folder, Transform(8))) == 5


def test_a_folder_linked_to_its_sibling_stands_under_both_names(folder):
    (folder / "a-link").symlink_to(folder / "a")
    data = FolderImages(folder, Transform(8))
    assert data.class_names == ["a", "a-b", "a-link", "b"] and data.files[2] == "a-link/3.webp"


def test_folders_without_images_are_reported_in_one_line(tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, why in (("empty", "no images"), ("file", "not a folder"), ("nowhere", "no such folder")):
        with pytest.raises(DataError, match=rf"{name}: .*{why}") as caught:
            FolderImages(tmp_path / name, Transform(8))
        assert "\n" not in str(caught.value)


def test_loose_images_beside_class_folders_are_not_silently_dropped(folder):
    save(folder / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png"):
        FolderImages(folder, Transform(8))


def break_files(folder):
    jpeg = save(folder / "a" / "half.jpg", (64, 64))
    jpeg.write_bytes(jpeg.read_bytes()[:-300])
    webp = save(folder / "a" / "half.webp", (64, 64))
    webp.write_bytes(webp.read_bytes()[:-40])
    png = save(folder / "b" / "flipped.png")
    data = bytearray(png.read_bytes())
    data[len(data) // 2] ^= 1
    png.write_bytes(data)
    (folder / "b" / "empty.png").touch()
    return [jpeg, webp, folder / "b" / "empty.png", png]


def test_broken_images_stop_or_are_named_and_left_out(folder):
    intact = FolderImages(folder, Transform(8))
    broken = break_files(folder)
    with pytest.raises(DataError, match=r"half\.jpg: broken image"):
        FolderImages(folder, Transform(8), on_broken="stop")
    data = FolderImages(folder, Transform(8), on_broken="skip")
    assert [path for path, _ in data.broken] == [str(path) for path in broken]
    assert all(why and "\n" not in why for _, why in data.broken)
    assert data.files == intact.files
    assert data.fingerprint() == intact.fingerprint()


def test_an_odd_end_does_not_make_a_jpeg_broken(folder):
    path = folder / "a-b" / "4.jpeg"
    path.write_bytes(path.read_bytes() + b"\0" * 5 + b"camera trailer")
    assert len(FolderImages(folder, Transform(8))) == 4


def test_only_broken_images_is_an_error(tmp_path):
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match="all 1 images are broken"):
        FolderImages(tmp_path, Transform(8), on_broken="skip")


def test_errors_of_any_kind_that_a_format_raises_make_an_image_broken(folder, monkeypatch):
    """AVIF raises RuntimeError, DDS NotImplementedError, odd EXIF TypeError."""
    found = Image.open

    def load(path, *rest):
        if str(path).endswith("2.jpg"):
            raise RuntimeError("no such box")
        return found(path, *rest)

    later = FolderImages(folder, Transform(8))
    monkeypatch.setattr("PIL.Image.open", load)
    data = FolderImages(folder, Transform(8))
    assert [why for _, why in data.broken] == ["no such box"] and len(data) == 3
    later.batch(range(4))
    assert later.replaced == [(data.broken[0][0], "not a readable image: no such box")]
    with pytest.raises(DataError, match=r"2\.jpg: broken image: no such box"):
        FolderImages(folder, Transform(8), on_broken="stop")


def test_a_subset_of_a_folder_meets_every_class_and_is_named(folder):
    """Ten images of each of four classes, sorted; a subset of four has one image of each class."""
    for name in ("a", "a-b", "b", "c"):
        for number in range(10):
            save(folder / "even" / name / f"{number}.png")
    data = FolderImages(folder / "even", Transform(8))
    some = subset(data, 4)
    images, labels = some.batch([3, 0])
    assert labels.tolist() == [3, 0] and images.equal(data.batch([30, 0])[0])
    assert some.fingerprint() == f"spread 4 of {data.fingerprint()}" and some.name(3) == data.name(30)
    assert len(some.captions) == 4 and subset(data, 40) is data and subset(data, None) is data
    broken = folder / "even" / "b" / "0.png"
    broken.write_bytes(b"gone bad")
    assert some.batch([2])[1].tolist() == [2] and replaced_indices(some, range(4)) == [2]
    arrays = array_set()
    assert subset(arrays, 2).batch([1])[0].equal(arrays.batch([1])[0])
    assert subset(subset(arrays, 3), 2).fingerprint() == f"first 2 of first 3 of {arrays.fingerprint()}"


def test_files_that_break_later_are_replaced_by_the_next_good_one(folder):
    data = {mode: FolderImages(folder, Transform(8), on_broken=mode) for mode in ("skip", "stop")}
    expected = data["skip"].batch([0, 0])
    (folder / "b" / "deep" / "2.jpg").write_bytes(b"gone bad")
    images, labels = data["skip"].batch([3, 0])
    assert images.equal(expected[0]) and labels.tolist() == [0, 0]
    assert [path for path, _ in data["skip"].broken] == [str(folder / "b/deep/2.jpg")]
    with pytest.raises(DataError, match=r"2\.jpg"):
        data["stop"].batch([0, 3])


def test_folder_fingerprints_follow_files_and_transform(folder):
    first = FolderImages(folder, Transform(8)).fingerprint()
    assert first == FolderImages(folder, Transform(8)).fingerprint()
    assert first != FolderImages(folder, Transform(9)).fingerprint()
    (folder / "b" / "1.PNG").rename(folder / "a" / "1.PNG")
    assert first != FolderImages(folder, Transform(8)).fingerprint()


def test_folder_limit_meets_every_class(tmp_path):
    for index in range(12):
        save(tmp_path / "abc"[index // 4] / f"{index}.png")
    data = FolderImages(tmp_path, Transform(8), limit=3)
    assert data.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test"), ("training", "validation")])
def test_train_and_test_folders_share_their_classes(tmp_path, names):
    train, test = names
    for name in (f"{train}/a/1.png", f"{train}/c/2.png", f"{test}/b/3.png"):
        save(tmp_path / name)
    train, test = (
        open_images(ImageSource("folder", root=tmp_path, image_size=8, channels=3), split)
        for split in ("train", "test")
    )
    assert train.class_names == test.class_names == ["a", "b", "c"]
    assert train.batch([0, 1])[1].tolist() == [0, 2] and test.batch([0])[1].tolist() == [1]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_other_folders_are_split_by_a_hash_that_new_files_do_not_disturb(tmp_path, prefix):
    source = save(tmp_path / "source.png").read_bytes()
    root = tmp_path / "set"
    for name in ("a", "b"):
        (root / prefix / name).mkdir(parents=True)

    def split(count):
        for index in range(count):
            (root / prefix / "ab"[index % 2] / f"{index}.png").write_bytes(source)
        sets = (
            open_images(ImageSource("folder", root=root, image_size=8, channels=1), part) for part in ("train", "test")
        )
        return [set(s.files) for s in sets if s.class_names == ["a", "b"]]

    train, test = split(200)
    assert not train & test and len(train | test) == 200
    assert 2 <= len(test) <= 24  # 10 expected, standard deviation 3
    more_train, more_test = split(230)
    assert train <= more_train and test <= more_test


def test_open_images_refuses_in_one_line(tmp_path):
    save(tmp_path / "a" / "1.png")
    wrong = [
        {"split": "valid"},
        {"limit": 0},
        {"root": None},
        {"name": "imagenet"},
        {"root": tmp_path, "split": "test"},
    ]
    for change in wrong:
        with pytest.raises(DataError):
            options = {"name": "folder", "split": "train", "root": tmp_path, "image_size": 8, "channels": 3, **change}
            split = options.pop("split")
            open_images(ImageSource(**options), split)


def test_prefetch_passes_everything_on_in_order():
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))


def test_prefetch_raises_what_the_iterator_raised_after_what_came_before():
    def failing():
        yield 1
        raise KeyError("broken")

    stream = prefetch(failing())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="broken"):
        next(stream)


def test_prefetch_works_ahead_by_its_depth_only_and_ends_when_abandoned():
    made = []
    third = threading.Event()

    def endless():
        while True:
            made.append(len(made))
            if len(made) == 3:
                third.set()
            yield made[-1]

    stream = prefetch(endless(), depth=2)
    assert next(stream) == 0
    assert third.wait(10)
    assert len(made) == 3  # one handed out, two waiting
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "tok1d-prefetch"]


def test_a_large_folder_is_looked_through_once_until_a_file_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tok1d.data.folder.SCAN_CACHED_FROM", 1)
    broken, looked = break_files(folder), []
    real = folder_module.scan_file
    monkeypatch.setattr(folder_module, "scan_file", lambda path: looked.append(path) or real(path))
    first = FolderImages(folder, Transform(8))
    assert len(looked) == len(first) + len(broken) and [path for path, _ in first.broken] == [*map(str, broken)]
    again = FolderImages(folder, Transform(8))
    assert len(looked) == len(first) + len(broken) and again.files == first.files and again.broken == first.broken
    (folder / "a" / "3.webp").write_bytes(b"gone bad")
    assert len(FolderImages(folder, Transform(8))) == len(first) - 1


def test_a_file_that_could_not_be_opened_is_looked_at_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tok1d.data.folder.SCAN_CACHED_FROM", 1)
    real = Image.open
    whole = FolderImages(folder, Transform(8), "skip", files=None)
    (tmp_path / "cache" / "checked").rename(tmp_path / "before")

    def refused(path, *args, **kwargs):
        if str(path).endswith(whole.files[0]):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as once:
        once.setattr("PIL.Image.open", refused)
        assert FolderImages(folder, Transform(8), "skip").files == whole.files[1:]
    assert FolderImages(folder, Transform(8), "skip").files == whole.files

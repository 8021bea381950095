"""References: files, the ADM format, the cache, and which evaluation accepts which reference."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.cli import app as cli
from tok1d.data.folder import FolderImages
from tok1d.data.images import ArrayImages, ImageSource, open_images
from tok1d.data.splits import spread
from tok1d.data.subset import subset
from tok1d.data.transforms import Transform
from tok1d.errors import DataError, InputError
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.evaluate.measures import Measures, Number, record_of
from tok1d.evaluate.metrics import frechet_distance
from tok1d.evaluate.reference import (
    Reference,
    cache_path,
    cached_reference,
    check_reference,
    describe_images,
    load_reference,
    measure_reference,
    reference_fingerprint,
    split_of,
    with_features,
)
from tok1d.evaluate.sample_batch import SampleImages, write_sample_batch
from tok1d.evaluate.setup import image_references


class Rows(FrozenNetwork):
    """Features: the means of an image's first rows; spatial features: those of its first columns."""

    def __init__(self, name: str = "rows", dim: int = 4, digest: str = "0" * 12, **options: Any) -> None:
        super().__init__(name, digest, device="cpu", dim=dim, spatial_dim=3, **options)
        self.calls = 0

    def measure(self, images: torch.Tensor) -> Features:
        self.calls += 1
        pooled = images.mean(dim=(1, 3)).repeat(1, -(-self.dim // images.shape[2]))[:, : self.dim]
        return Features(pooled, images.mean(dim=(1, 2))[:, :3])


def image_set(num: int = 30, seed: int = 0) -> ArrayImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 8, 8), np.uint8)
    return ArrayImages(pixels, np.arange(num) % 3, ["a", "b", "c"], Transform(8, 1))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_statistics_are_those_of_the_features_in_any_batch_size() -> None:
    images, network = image_set(), Rows()
    x, _ = images.batch(range(30))
    found = network(x)
    assert found.spatial is not None
    for batch_size in (7, 100):
        reference = measure_reference(images, network, of="test", num_features=None, batch_size=batch_size)
        assert torch.allclose(reference.pooled.covariance, torch.cov(found.pooled.double().T), rtol=1e-10)
        assert reference.spatial is not None
        assert torch.allclose(reference.spatial.mean, found.spatial.double().mean(dim=0), rtol=1e-12)
        assert reference.features is not None and torch.equal(reference.features, found.pooled)
        assert (reference.num_images, reference.of, reference.network) == (30, "test", network.label)
    some = measure_reference(images, network, of="test", num=10, num_features=4, batch_size=3)
    assert some.features is not None and torch.equal(some.features, found.pooled[[0, 6, 15, 21]])
    assert some.num_images == 10
    assert torch.allclose(some.pooled.mean, found.pooled[::3].double().mean(dim=0))


def test_numbers_are_spread_over_a_sorted_set() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread(range(3), None) == [0, 1, 2] == spread(range(3), 9)


def test_statistics_of_images_that_could_not_be_read_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is temporarily unreadable: another replaces it, the reference states it, and the next pass is clean."""
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    clean = measure_reference(FolderImages(tmp_path, Transform(8, 1)), Rows(), of="test")
    measures, images = Measures(("fd",), [Rows()]), FolderImages(tmp_path, Transform(8, 1))
    file = tmp_path / "05.png"
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))
    (compared,) = image_references(images, measures, of="test")
    damaged, cached = cached_reference(images, Rows(), of="test")
    file.write_bytes(content)
    assert "skipped 1 broken images of 12" in capsys.readouterr().err
    assert not cached and damaged.replaced == compared.replaced == 1 and damaged.fingerprint != clean.fingerprint
    few = "few images: 12, fewer than 10 for each of the 4 numbers of a feature: too large"
    assert damaged.note == f"1 unreadable image replaced by another; {few}"
    measured = Number("fd", 1.0, measures.networks[0].label, compared=True)
    record = record_of(measured, "generation", measures, [compared], num_images=9)
    assert record.note == "1 unreadable reference image replaced by another"
    read = load_reference(damaged.save(tmp_path / "damaged.npz"))
    assert read.replaced == 1 and read.fingerprint == damaged.fingerprint
    again, cached = cached_reference(FolderImages(tmp_path, Transform(8, 1)), Rows(), of="test")
    assert not cached and again.fingerprint == clean.fingerprint and (again.replaced, again.note) == (0, few)
    assert torch.equal(again.pooled.mean, clean.pooled.mean)
    assert cached_reference(FolderImages(tmp_path, Transform(8, 1)), Rows(), of="test")[1]


@pytest.mark.parametrize(
    ("folders", "of"), [(("train", "val"), "validation"), (("train", "test"), "test"), (("train",), "own"), ((), "own")]
)
def test_a_set_is_of_the_split_that_its_folder_is_named_after(
    tmp_path: Path, folders: tuple[str, ...], of: str
) -> None:
    for folder in folders or (".",):
        (tmp_path / folder / "cats").mkdir(parents=True)
        for number in range(40):
            Image.new("L", (8, 8), number).save(tmp_path / folder / "cats" / f"{number}.png")
    images = open_images(ImageSource("folder", root=tmp_path, image_size=8, channels=1), "test")
    assert split_of(images) == split_of(subset(images, 1)) == of
    assert str(describe_images(images, of)) == f"{len(images)} {of} images {images.fingerprint()}"
    assert str(describe_images(subset(images, 1), of)) == f"spread 1 {of} images {images.fingerprint()}"
    assert split_of(image_set()) == "test"


def test_a_reference_survives_its_file(tmp_path: Path) -> None:
    reference = measure_reference(image_set(), Rows(), of="validation", num_features=5, about="noise")
    read = load_reference(reference.save(tmp_path / "deep" / "reference.npz"))
    for field in ("network", "fingerprint", "num_images", "of", "images", "crop", "note"):
        assert getattr(read, field) == getattr(reference, field), field
    assert str(read) == f"30 validation images {reference.fingerprint}"
    assert read.features is not None and torch.equal(read.features, reference.features)  # type: ignore[arg-type]
    other = measure_reference(image_set(seed=1), Rows(), of="test")
    for part in ("pooled", "spatial"):
        mine, theirs = getattr(read, part), getattr(reference, part)
        assert mine.count == 30 and torch.equal(mine.mean, theirs.mean)
        assert torch.allclose(mine.covariance, theirs.covariance, rtol=1e-14, atol=0)
        expected = frechet_distance(theirs, getattr(other, part))
        assert frechet_distance(mine, getattr(other, part)) == pytest.approx(expected, rel=1e-10)
    assert os.listdir(tmp_path / "deep") == ["reference.npz"]


def test_a_file_holds_what_adms_evaluator_reads(tmp_path: Path) -> None:
    reference = measure_reference(image_set(), Rows(), of="train")
    assert reference.spatial is not None
    reference.save(tmp_path / "reference.npz")
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as content:
        assert np.array_equal(content["mu"], reference.pooled.mean.numpy())
        assert np.array_equal(content["sigma"], reference.pooled.covariance.numpy())
        assert np.array_equal(content["mu_s"], reference.spatial.mean.numpy())
        assert np.array_equal(content["sigma_s"], reference.spatial.covariance.numpy())


@pytest.fixture
def adm(tmp_path: Path) -> Callable[..., Path]:
    """adm(**more): a file in ADM's format with random statistics; arrays can be added or left out."""

    def write(**more: Any) -> Path:
        rng = np.random.default_rng(0)
        arrays = {"mu": rng.random(2048, np.float32), "sigma": np.diag(rng.random(2048))}
        arrays |= {"mu_s": rng.random(23, np.float32), "sigma_s": np.diag(rng.random(23))}
        arrays |= more
        path = tmp_path / "adm.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write


def test_adms_statistics_are_inceptions_of_training_images(adm: Callable[..., Path]) -> None:
    reference = load_reference(adm())
    assert (reference.network, reference.of, reference.num_images) == ("inception", "train", None)
    assert (
        reference.spatial is not None and reference.spatial.dim == 23 and "does not state its images" in reference.note
    )
    with np.load(adm()) as content:
        assert np.array_equal(reference.pooled.mean.numpy(), content["mu"].astype(np.float64))
        assert np.allclose(reference.pooled.covariance.numpy(), content["sigma"], rtol=1e-15)
    assert load_reference(adm(mu_s=None, sigma_s=None)).spatial is None  # as torch-fidelity's and others' files
    assert load_reference(adm(), of="validation").of == "validation"
    assert load_reference(adm()).fingerprint == reference.fingerprint
    assert load_reference(adm(mu=np.zeros(2048))).fingerprint != reference.fingerprint
    reference.check_network(Rows("inception", 2048))
    for network in (Rows("inception-like", 2048), Rows("inception", 4)):
        with pytest.raises(DataError, match="its statistics are of inception, this evaluation measures with"):
            reference.check_network(network)


def test_the_images_in_adms_file_give_features_for_precision_and_recall(adm: Callable[..., Path]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    path, network = adm(arr_0=pixels), Rows("inception", 2048)
    reference = with_features(load_reference(path), path, network, batch_size=2)
    expected = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).pooled
    assert reference.features is not None and torch.allclose(reference.features, expected)
    with pytest.raises(DataError, match="with images in arr_0"):
        with_features(reference, adm(), network)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "got a sample batch; measure it with tok1d reference"),
        ({"mean": np.zeros(3)}, "got the keys mean"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "Inception's 2048 features, got \\(3,\\)"),
        ({"mu": np.zeros(2048), "sigma": np.eye(3)}, "a mean \\(dim,\\) and a covariance \\(dim, dim\\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "tok1d": np.array("{")}, "damaged reference statistics"),
        ({"mu": np.array([None]), "sigma": np.eye(3)}, "expected reference statistics in an .npz file"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(DataError, match=message) as caught:
        load_reference(tmp_path / "other.npz")
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("text")
    for name, message in (("none.npz", "No such file"), ("text.npz", "expected reference statistics")):
        with pytest.raises(DataError, match=message) as caught:
            load_reference(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_each_measurement_refuses_the_others_reference() -> None:
    reference = measure_reference(image_set(), Rows(), of="train")
    check_reference("generation", reference)
    with pytest.raises(InputError, match="is of train images, reconstruction is compared with validation or test"):
        check_reference("reconstruction", reference)
    check_reference("reconstruction", reference, allow_other=True)
    for of in ("validation", "test"):
        other = replace(reference, of=of)
        check_reference("reconstruction", other)
        with pytest.raises(InputError, match=f"is of {of} images, generation is compared with the training images"):
            check_reference("generation", other)
    for kind in ("generation", "reconstruction"):
        check_reference(kind, replace(reference, of="own"))  # type: ignore[arg-type]


def test_the_cache_is_read_where_the_fingerprint_fits() -> None:
    network = Rows()
    reference, hit = cached_reference(image_set(), network, of="test")
    calls = network.calls
    again, hit_again = cached_reference(image_set(), network, of="own")
    assert (hit, hit_again, network.calls) == (False, True, calls)
    assert again.of == "own" and again.fingerprint == reference.fingerprint
    assert torch.equal(again.pooled.mean, reference.pooled.mean)
    others: list[tuple[Any, FrozenNetwork, dict[str, Any]]] = [
        (image_set(seed=1), network, {}),
        (image_set(29), network, {}),
        (image_set(), Rows(pad=1), {}),
        (image_set(), Rows(digest="1" * 12), {}),
        (image_set(), Rows(eight_bit=False), {}),
        (image_set(), network, {"num": 20}),
    ]
    for images, other, options in others:
        assert not cached_reference(images, other, of="test", **options)[1]
    assert len({reference_fingerprint(i, n, **o) for i, n, o in [*others, (image_set(), network, {})]}) == 7


def test_the_cache_gives_features_only_where_enough_are_kept() -> None:
    network = Rows()
    hits = [cached_reference(image_set(), network, of="test", num_features=n) for n in (4, 4, 9, 9, None, 9, 4, 0)]
    assert [hit for _, hit in hits] == [False, True, False, True, False, True, True, True]
    whole = hits[4][0].features
    assert whole is not None
    for reference, _ in hits[1:-1]:
        assert reference.features is not None
        assert torch.equal(reference.features, whole[spread(range(30), len(reference.features))])


def test_a_damaged_cache_is_measured_anew() -> None:
    network = Rows()
    path = cache_path(cached_reference(image_set(), network, of="test")[0].fingerprint)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(damage)
        reference, hit = cached_reference(image_set(), network, of="test")
        assert not hit and load_reference(path).fingerprint == reference.fingerprint


def test_sample_batches_are_streamed_in_adms_form(tmp_path: Path) -> None:
    images = torch.rand(7, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    held: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for part in images.split(3):
            held.append(len(part))
            yield part

    path = write_sample_batch(tmp_path / "samples.npz", batches(), 7)
    with np.load(path, allow_pickle=False) as content:
        assert content.files == ["arr_0"] and content["arr_0"].dtype == np.uint8
        assert np.array_equal(content["arr_0"], (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    read = SampleImages(path)
    assert len(read) == 7 and isinstance(read.pixels, np.memmap)
    assert torch.equal(read.batch([6, 2])[0], (images[[6, 2]] * 255).round() / 255)
    np.savez_compressed(tmp_path / "small.npz", np.asarray(read.pixels))
    small = SampleImages(tmp_path / "small.npz")
    assert np.array_equal(small.pixels, read.pixels) and small.fingerprint() == read.fingerprint()
    grey = write_sample_batch(tmp_path / "grey.npz", [images[:, :1]], 7)
    assert np.array_equal(SampleImages(grey).pixels[..., 0], SampleImages(grey).pixels[..., 2])
    assert SampleImages(grey).fingerprint() != read.fingerprint()


@pytest.mark.parametrize(
    ("batches", "num", "message"),
    [
        ([torch.zeros(2, 3, 4, 4)], 3, "expected 3 images, at least one, got 2"),
        ([], 0, "got 0"),
        ([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 4)], 2, "of one shape"),
    ],
)
def test_wrong_batches_leave_no_file(tmp_path: Path, batches: list[torch.Tensor], num: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_sample_batch(tmp_path / "out" / "samples.npz", batches, num)
    assert os.listdir(tmp_path / "out") == []


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one byte changed."""
    place = int(rng.integers(len(content)))
    return content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :]


def test_damaged_and_misnamed_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, rng = tmp_path / "file.npz", np.random.default_rng(0)
    with file.open("wb") as opened:
        np.save(opened, np.zeros((4, 8, 8, 3), np.uint8))
    for read in (load_reference, SampleImages):
        with pytest.raises(DataError, match=r"file\.npz: expected .*, got"):
            read(file)
    assert cli.run(["reference", str(file), "--network", "fashion-mnist-cnn"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(64)}
    for read, arrays in (
        (load_reference, statistics),
        (SampleImages, {"arr_0": rng.integers(0, 9, (8, 16, 16, 3)).astype(np.uint8)}),
    ):
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        content = file.read_bytes()
        for _ in range(200):
            file.write_bytes(changed(content, rng))
            with suppress(DataError):  # no other error; some bytes, such as times, are never read
                read(file)


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.run(["reference", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return err.removeprefix("error: ").strip() if code else out


def test_the_command_measures_once_and_reads_the_cache(
    fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "test.npz"
    first = run(capsys, "fashion_mnist", "--split", "test", "--features", 9, "--out", out)
    assert "64 test images" in first and "features of 9 images" in first and "computed, cached as" in first
    reference = load_reference(out)
    assert reference.network.startswith("fashion-mnist-cnn@") and reference.images == "fashion_mnist, test"
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1), "test")
    from tok1d.evaluate.feature_networks import open_network

    expected = measure_reference(images, open_network("fashion-mnist-cnn"), of="test")
    assert torch.allclose(reference.pooled.mean, expected.pooled.mean) and reference.fingerprint == expected.fingerprint
    again = run(capsys, "fashion_mnist", "--split", "test", "--out", out)
    assert "read from the cache" in again and "unchanged" in again
    assert load_reference(out).features is not None
    line = run(capsys, "fashion_mnist", "--split", "train", "--num", 20, "--out", out, code=2)
    assert "holds 64 test images" in line and "--overwrite" in line
    printed = run(capsys, out, "--of", "validation", "--out", tmp_path / "other.npz")
    assert "read from" in printed and load_reference(tmp_path / "other.npz").of == "validation"


def test_the_command_measures_folders_and_sample_batches(
    tiny: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tok1d.config.load import load_recipe
    from tok1d.pictures import save_png, to_pil
    from tok1d.zoo import store
    from tok1d.zoo.card import Card

    torch.manual_seed(0)
    folder, model = tmp_path / "photos", tmp_path / "judge"
    store.save_model(
        store.build_model(load_recipe(tiny("classifier"), ["model.channels=3", "data.channels=3"]).model), model, Card()
    )
    pictures = torch.rand(6, 3, 28, 28)
    for i, picture in enumerate(pictures):
        save_png(to_pil(picture), folder / f"{i}.png")
    (folder / "broken.png").write_text("no image")
    network = ("--network", f"model:{model}")
    assert "broken image" in run(capsys, folder, "--split", "all", *network, code=2)
    skipping = ("--split", "all", "--on-broken", "skip")
    printed = run(capsys, folder, *skipping, *network, "--out", tmp_path / "folder.npz")
    assert "6 own images" in printed and "judge@" in printed and "adm-center-crop/28px/3ch" in printed
    samples = write_sample_batch(tmp_path / "samples.npz", [pictures], 6)
    assert "6 own images" in run(capsys, samples, *network, "--out", tmp_path / "batch.npz")
    a, b = load_reference(tmp_path / "folder.npz"), load_reference(tmp_path / "batch.npz")
    assert torch.allclose(a.pooled.mean, b.pooled.mean, rtol=1e-6) and a.fingerprint != b.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fashion_mnist", "--split", "all"], "of fashion_mnist expected train or test"),
        (["fashion_mnist", "--split", "val"], "expected train or test or all"),
        (["fashion_mnist", "--of", "holdout"], "expected train or validation or test or own"),
        (["fashion_mnist", "--out", "x.pt"], "expected the name of an .npz file"),
        (["fashion_mnist", "--network", "vgg"], "feature network: expected"),
        (["none.npz", "--network", "fashion-mnist-cnn"], "got: No such file"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    fashion: None, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = run(capsys, *arguments, code=2)
    assert message in line and "\n" not in line


def test_a_reference_is_of_a_known_split() -> None:
    with pytest.raises(InputError, match="expected one of train, validation, test, own"):
        measure_reference(image_set(), Rows(), of="holdout")
    with pytest.raises(DataError, match="at least two images"):
        measure_reference(image_set(1), Rows(), of="test")
    assert isinstance(measure_reference(image_set(2), Rows(), of="test"), Reference)


def test_images_rounded_otherwise_are_refused(tmp_path: Path) -> None:
    rounded, plain = Rows(), Rows(eight_bit=False)
    for own, other, advice in ((rounded, plain, "--eight-bit"), (plain, rounded, "--float")):
        reference = load_reference(measure_reference(image_set(), own, of="test").save(tmp_path / "x.npz"))
        reference.check_network(own)
        with pytest.raises(DataError, match=f"images {own.rounding}.*are {other.rounding}; pass {advice}$"):
            reference.check_network(other)
    replace(reference, rounding="").check_network(rounded)  # a file that does not state it

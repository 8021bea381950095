"""Baselines: their values against planted images and direct formulas, their cache, and where they are shown."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tok1d
from tok1d.analyze.prefix import judged
from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import DataError
from tok1d.evaluate import baselines
from tok1d.evaluate.baselines import (
    distance_records,
    leading_components,
    learned_nothing,
    measured,
    numbers_of,
    projected,
    reconstruction_records,
    verdict,
)
from tok1d.evaluate.explain import explain
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.evaluate.metrics import Moments, frechet_distance
from tok1d.tokenizers.base import TokenSpec
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import Record, write_records

SPEC = TokenSpec(length=3, dim=2)
Values = dict[str, tuple[float, float]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))


def image_set(pixels: np.ndarray, size: int | None = None, pad: int = 0) -> ArrayImages:
    labels = np.zeros(len(pixels), np.int64)
    channels = pixels.shape[3] if pixels.ndim == 4 else 1
    inner = pixels.shape[1] if size is None else size
    return ArrayImages(pixels, labels, ["a"], Transform(inner + 2 * pad, channels, pad=pad))


def noise(num: int, size: int = 16, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, channels), dtype=np.uint8)


def values(images: ArrayImages, train: ArrayImages | None, numbers: int = 6, pad: int = 0) -> Values:
    return {each.name: (each.mse, each.psnr) for each in measured(images, train, numbers, pad)}


def errors(y: Tensor, x: Tensor) -> tuple[float, float]:
    squares = (y - x).double().square().flatten(1).mean(1)
    return float(squares.mean()), float((-10 * squares.log10()).mean())


def test_each_baseline_is_its_direct_formula() -> None:
    train, test = image_set(noise(50, seed=1)), image_set(noise(9))
    x, z = test.batch(range(9))[0], train.batch(range(50))[0]
    found = values(test, train)
    assert list(found) == ["mean-image", "pca-6", "pca-3", "flat-colour", "thumbnail-8"]
    assert found["mean-image"] == pytest.approx(errors(z.mean(0).expand_as(x), x), rel=1e-5)
    assert found["flat-colour"] == pytest.approx(errors(x.mean((1, 2, 3))[:, None, None, None], x), rel=1e-5)
    halves = x.view(9, 1, 8, 2, 8, 2).mean((3, 5))
    large = torch.nn.functional.interpolate(halves, size=(16, 16), mode="bicubic").clamp(0, 1)
    assert found["thumbnail-8"] == pytest.approx(errors(large, x), rel=1e-5)
    flat = z.flatten(1).double()
    basis = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:6]
    for num in (3, 6):
        y = flat.mean(0) + (x.flatten(1) - flat.mean(0)) @ basis[:num].T @ basis[:num]
        assert found[f"pca-{num}"] == pytest.approx(errors(y.clamp(0, 1).view_as(x), x), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_planted_images_have_no_error(channels: int) -> None:
    flat = np.arange(10, 40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, channels), np.uint8)
    found = values(image_set(flat), image_set(flat), numbers=1)
    for name in ("flat-colour", "thumbnail-8", "pca-1"):  # brightness is the only component
        assert found[name][0] < 1e-12
    assert found["mean-image"][0] == pytest.approx(float((np.arange(10, 40) / 255).var()), rel=1e-5)


def test_large_images_have_the_same_components(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(5, 300, generator=generator) * torch.tensor([5.0, 4, 3, 2, 1])[:, None]
    images = (0.5 + 0.01 * torch.randn(80, 5, generator=generator) @ base).view(80, 3, 10, 10)
    exact = leading_components(images, 3)
    before = torch.random.get_rng_state()
    monkeypatch.setattr(baselines, "EXACT", 10)
    random = leading_components(images, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert random[1].shape == (300, 3) and random[1].dtype == torch.float32
    torch.testing.assert_close(projected(images, *random, 3), projected(images, *exact, 3), atol=1e-4, rtol=0)


def test_there_are_at_most_as_many_components_as_images_and_as_numbers() -> None:
    names = [each.name for each in measured(image_set(noise(3)), image_set(noise(4, seed=1)), 100)]
    assert names == ["mean-image", "pca-4", "flat-colour", "thumbnail-8"]
    note = measured(image_set(noise(3)), image_set(noise(4, seed=1)), 100)[1].note
    assert note == "4 principal components of 4 training images; the tokens have 100"


def test_the_border_is_not_measured() -> None:
    test, train = noise(6), noise(20, seed=1)
    with_border = values(image_set(test, pad=3), image_set(train, pad=3), pad=3)
    for name, pair in values(image_set(test), image_set(train)).items():
        assert with_border.pop(name) == pytest.approx(pair, rel=1e-6)
    assert not with_border


def test_images_as_small_as_a_thumbnail_have_none() -> None:
    assert list(values(image_set(noise(4, size=8)), None)) == ["flat-colour"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_NUMBERS", 7 * 16 * 16)
    (mean, *_) = measured(image_set(noise(3)), image_set(noise(30, seed=1)), 2)
    assert mean.note == "the mean of 7 training images"


def test_the_numbers_of_tokens() -> None:
    assert numbers_of(TokenSpec(length=4, dim=16)) == 64
    assert numbers_of(TokenSpec(length=4, dim=None, vocab_size=512)) == 4


def test_records_and_their_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    test, train = image_set(noise(5)), image_set(noise(20, seed=1))
    records = reconstruction_records(test, lambda: train, SPEC, metrics=("psnr", "mse"), crop="center 16")
    assert [record.name for record in records][:4] == [
        *("baseline:mean-image:psnr", "baseline:mean-image:mse", "baseline:pca-6:psnr", "baseline:pca-6:mse")
    ]
    assert {record.num_images for record in records} == {5} and {record.crop for record in records} == {"center 16"}
    assert {record.reference and record.reference.fingerprint for record in records} == {test.fingerprint()}
    (only,) = {record.weights for record in records}
    assert only is None

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(baselines, "measured", refuse)
    again = reconstruction_records(test, lambda: train, SPEC, metrics=("mse",))
    assert [record.value for record in again] == [record.value for record in records if record.name.endswith(":mse")]
    for changed in (
        {"spec": TokenSpec(length=3, dim=3)},
        {"images": image_set(noise(5, seed=2))},
        {"train": lambda: image_set(noise(20, seed=3))},
        {"pad": 1},
    ):
        given: Any = {"images": test, "train": lambda: train, "spec": SPEC, **changed}
        with pytest.raises(AssertionError, match="measured again"):
            reconstruction_records(metrics=("mse",), **given)
    assert reconstruction_records(test, lambda: train, SPEC, metrics=("fd", "ssim")) == []


def test_without_training_images_a_note_says_why() -> None:
    def missing() -> ArrayImages:
        raise DataError("PHOTOS: no training split")

    test = image_set(noise(5))
    for train, reason in ((missing, "PHOTOS: no training split"), (None, "the training images are not known")):
        records = reconstruction_records(test, train, SPEC, metrics=("mse",))
        assert [record.name for record in records] == ["baseline:flat-colour:mse", "baseline:thumbnail-8:mse"]
        assert all(f"no mean image and no principal components: {reason}" in record.note for record in records)


def test_the_verdict_compares_all_tokens_with_a_thumbnail() -> None:
    bound = {"baseline:thumbnail-8:mse": 0.02, "baseline:thumbnail-8:psnr": 17.0}
    good = {"mse keep 1": 0.5, "mse keep 16": 0.01, "psnr keep 16": 20.0}
    assert learned_nothing(good | bound) == learned_nothing(bound) == learned_nothing(good) == ""
    assert learned_nothing(good | bound | {"mse keep 16": 0.02}) == ""  # not above
    said = learned_nothing(good | bound | {"mse keep 16": 0.0312})
    assert (
        "has learned nothing yet: its error with all 16 tokens, 0.0312, is above that of an 8x8 thumbnail, 0.02" in said
    )
    assert "PSNR with all 16 tokens, 12 dB, is below" in learned_nothing({"psnr keep 16": 12.0} | bound)


def test_a_verdict_of_records_and_of_a_model_without_training() -> None:
    smooth = np.broadcast_to(np.arange(28, dtype=np.uint8)[:, None, None] * 9, (6, 28, 28, 1)).copy()
    images, trained = image_set(smooth), store.load("fashion-mnist-maetok")
    torch.manual_seed(0)
    untrained = store.build_model(trained.config)
    assert "has learned nothing yet" in judged(untrained.eval(), images, batch_size=3)
    records = reconstruction_records(images, None, SPEC, metrics=("mse",))
    assert verdict(records) == ""


class Means(FrozenNetwork):
    """Features: the mean and the deviation of the pixels."""

    def __init__(self) -> None:
        super().__init__("means", "0123456789ab", device="cpu", dim=2, eight_bit=False)

    def measure(self, images: Tensor) -> Features:
        return Features(self.of(images), None, None)

    @staticmethod
    def of(images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def test_the_distance_of_real_images() -> None:
    train, test = image_set(noise(40, seed=1)), image_set(noise(12))
    (record,) = distance_records(lambda: train, lambda: test, 30, [Means()])
    x, z = test.batch(range(12))[0], train.batch(range(30))[0]
    wanted = frechet_distance(Moments(2).update(Means.of(z)), Moments(2).update(Means.of(x)))
    assert record.name == "baseline:training-images:fd@means" and record.num_images == 30
    assert record.value == pytest.approx(wanted, rel=1e-6) and "30 training images against test" in record.note
    (one,) = distance_records(lambda: train, lambda: image_set(noise(1)), 30, [Means()])
    assert one.value is None and "two images" in one.note


def folder(root: Path) -> Path:
    for split, num, seed in (("train", 12, 1), ("test", 4, 0)):
        for i, pixels in enumerate(noise(num, size=28, channels=1, seed=seed)):
            path = root / split / "a" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0]).save(path)
    return root


def test_commands_show_and_write_them(tmp_path: Path, capsys: Any) -> None:
    data, out = folder(tmp_path / "photos"), tmp_path / "records.json"
    command = ["evaluate", "reconstruction", "fashion-mnist-maetok", str(data), "--metrics", "psnr,mse"]
    assert cli.run([*command, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "baseline:pca-12:mse" in shown and "has learned nothing yet" in shown  # clothes, not noise
    stored = {each["name"]: each for each in json.loads(out.read_text())}
    assert len([name for name in stored if name.startswith("baseline:")]) == 2 * 4  # 12 components in both cases
    assert len(stored) == 2 * 5, "no word about networks that these metrics do not need"
    assert stored["baseline:mean-image:mse"]["note"] == "the mean of 12 training images"
    assert math.isfinite(stored["baseline:thumbnail-8:psnr"]["value"])
    assert cli.run([*command, "--split", "train", "--out", str(out), "--overwrite"]) == 0
    stored = {each["name"]: each for each in json.loads(out.read_text())}
    assert "baseline:mean-image:mse" not in stored
    assert "not the test images" in stored["baseline:flat-colour:mse"]["note"]
    capsys.readouterr()
    generate = ["evaluate", "generation", "fashion-mnist-sit", str(data), "--network", "fashion-mnist-cnn"]
    assert (
        cli.run([*generate, "--num-samples", "8", "--metrics", "fd", "--steps", "2", "--out", str(out), "--overwrite"])
        == 0
    )
    stored = {each["name"]: each for each in json.loads(out.read_text())}
    real = stored["baseline:training-images:fd@fashion-mnist-cnn"]
    assert 0 < real["value"] < stored["fd@fashion-mnist-cnn"]["value"] and real["num_images"] == 8


def test_a_baseline_is_not_explained_unless_named(tmp_path: Path) -> None:
    network = "inception@0123456789ab"
    baseline = Record(name="baseline:training-images:gfid", value=3.0, num_images=9, network=network)
    unknown = Record(name="gfid", value=None, num_images=9, network=network, keep=4, note="too few")
    write_records(
        tmp_path / "a.json", [baseline, unknown, Record(name="score@x", value=2.0, num_images=9, network="x")]
    )
    place = str(tmp_path / "a.json")
    assert explain(place, "maetok").a.settings["metric"] == "score@x"
    assert explain(place, "maetok", metric=baseline.name).a.settings["metric"] == baseline.name


def test_fewer_than_all_tokens_say_nothing_about_what_is_learned(tmp_path: Path, capsys: Any) -> None:
    data, model = str(folder(tmp_path / "photos")), str(tmp_path / "untrained")
    store.save_model(store.build_model(store.load("fashion-mnist-semanticist").config), Path(model), Card())
    command = ["evaluate", "reconstruction", model, data, "--metrics", "mse", "--steps", "1"]
    for keep, said in (((4,), False), ((4, 16), True)):
        assert cli.run([*command, "--keep", ",".join(map(str, keep))]) == 0
        assert ("learned nothing" in capsys.readouterr().out) == said
        found = tok1d.evaluate(model, data, keep=keep, metrics="mse", steps=1)
        assert ("learned nothing" in repr(found)) == said

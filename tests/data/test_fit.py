"""Whole images in squares (crop=fit) and the background colour, from the recipe to the commands on its model."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.cli import app as cli
from tok1d.config.colour import rgb_of
from tok1d.config.load import load_recipe, to_yaml
from tok1d.data import transforms
from tok1d.data.transforms import Transform, fit_square
from tok1d.errors import ConfigError
from tok1d.evaluate.protocol import protocol_of
from tok1d.images.framing import framing_in, framing_of
from tok1d.inference.cache import with_views
from tok1d.inference.images import open_data, open_own
from tok1d.train.images import open_split
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

RED = (255, 0, 0)
PATCHES = ("model.encoder.patch=8", "model.decoder.patch=8", "model.auxiliary=[{target: hog, cell: 4}]")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("side", [8, 20, 31, 40, 100])
def test_a_square_image_is_that_of_the_centre_crop(side: int) -> None:
    image = picture(side, side)
    np.testing.assert_array_equal(pixels(fit_square(image, 20)), pixels(transforms.center_crop(image, 20)))


def test_the_whole_image_lies_at_the_centre_of_the_background() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    wide = Image.fromarray(blocks.repeat(4, 0).repeat(4, 1))  # 32 x 12, reduced by averaging to 8 x 3
    found = pixels(fit_square(wide, 8, RED))
    np.testing.assert_array_equal(found[2:5], blocks)  # 5 rows are left: 2 above and 3 below
    assert (np.delete(found, [2, 3, 4], 0) == RED).all()
    tall = fit_square(wide.transpose(Image.Transpose.TRANSPOSE), 8, RED)
    np.testing.assert_array_equal(pixels(tall), found.transpose(1, 0, 2))


@pytest.mark.parametrize("shape", [(1000, 1), (1, 1000), (3, 1), (1, 1)])
def test_thin_images_keep_at_least_a_pixel(shape: tuple[int, int]) -> None:
    found = pixels(fit_square(Image.new("RGB", shape, (0, 0, 255)), 16, RED))
    assert found.shape == (16, 16, 3) and (found == (0, 0, 255)).all(-1).any()


def test_grey_images_have_a_grey_background() -> None:
    grey = int(np.asarray(Image.new("RGB", (1, 1), RED).convert("L"))[0, 0])
    found = Transform(8, 1, "fit", background="#ff0000")(picture(8, 2))
    assert found.shape == (1, 8, 8) and (found[0, 0] == grey).all() and not (found[0, 3] == grey).all()


def test_views_flips_and_borders_are_of_the_whole_image() -> None:
    image, one = picture(50, 20), Transform(16, crop="fit", background="black")
    plain = one(image)
    both = replace(one, crop="fit+flip")(image)
    assert both.shape == (2, 3, 16, 16) and both[0].equal(plain) and both[1].equal(plain.flip(2))
    assert replace(one, flip=True).apply(image, (0, 0, 0.4, 0)).equal(plain.flip(2))
    assert replace(one, size=20, pad=2)(image)[:, 2:-2, 2:-2].equal(plain)


def test_colours() -> None:
    assert (rgb_of("white"), rgb_of("black"), rgb_of("#0180fF")) == ((255, 255, 255), (0, 0, 0), (1, 128, 255))
    for wrong in ("red", "#fff", "#12345g", "", "0180ff", "#0180ff0"):
        with pytest.raises(ConfigError, match=r"^background: expected white, black or #rrggbb"):
            rgb_of(wrong)
    with pytest.raises(ConfigError, match="background: expected"):
        Transform(8, background="blue")


def test_the_fingerprint_states_a_background_other_than_white() -> None:
    fit = Transform(28, 1, "fit")
    assert fit.fingerprint() == replace(fit, background="#FFFFFF").fingerprint() == "adm-fit-crop/28px/1ch/noflip"
    prints = {replace(fit, background=each).fingerprint() for each in ("white", "black", "#000001")}
    assert len(prints) == 3 and replace(fit, background="#000000").fingerprint() in prints


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of 24 x 12: the left half transparent, the right half green."""
    for split, num in (("train", 4), ("test", 2)):
        for i in range(num):
            image = Image.new("RGBA", (24, 12), (0, 0, 0, 0))
            image.paste((0, 255, 0, 255), (12, 0, 24, 12))
            image.putpixel((23, 11), (i, 0, 0, 255))
            path = tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return tmp_path / "photos"


def recipe_of(photos: Path, *more: str, name: str = "fashion_mnist/maetok") -> Any:
    data = ["data.name=folder", f"data.root={photos}", "data.pad=0", "data.image_size=24", "data.channels=3"]
    model = ["model.image_size=24", "model.channels=3", *PATCHES] if name == "fashion_mnist/maetok" else []
    return load_recipe(name, [*data, *model, *more])


def model_of(recipe: Any) -> Any:
    """What the commands read of a saved model."""
    spec = SimpleNamespace(needs_label=False)
    return SimpleNamespace(config=recipe.model, card=Card(recipe=to_yaml(recipe)), spec=spec)


@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("black", 0)])
def test_every_reader_of_a_models_images_frames_them_as_the_training_did(
    photos: Path, background: str, colour: int
) -> None:
    recipe = recipe_of(photos, "data.crop=fit", f"data.background={background}", "data.flip=true")
    model = model_of(recipe)
    wanted = {"pad": 0, "crop": "fit", "background": background}
    assert framing_of(model) == framing_in(recipe.data) == wanted
    opened = [
        open_split(recipe, "test"),
        open_data(str(photos), model, split="test"),
        open_own(str(photos), model, split="test"),
    ]
    for images in opened:
        assert isinstance(images.transform, Transform)  # type: ignore[union-attr]
        assert images.transform == Transform(24, 3, "fit", background=background)  # type: ignore[union-attr]
        (found,) = images.batch([1])[0]
        empty = torch.full((3, 24, 12), colour / 255)
        assert found[:, :, :12].equal(empty) and found[:, :6].eq(colour / 255).all() and found[1, 12, 20] == 1
    assert len({images.fingerprint() for images in opened}) == 1
    single = open_own(str(photos / "test" / "b" / "1.png"), model)
    assert single.batch([0])[0].equal(opened[0].batch([1])[0])
    augmented = open_split(recipe, "train", augment=True).transform
    assert augmented == Transform(24, 3, "fit", flip=True, background=background)


def test_a_recipe_without_these_keys_reads_as_before(photos: Path) -> None:
    plain = recipe_of(photos)
    model = model_of(plain)
    model.card.recipe = "\n".join(
        line for line in model.card.recipe.splitlines() if line.split(":")[0].strip() not in ("crop", "background")
    )
    assert framing_of(model) == framing_of(object()) == {"pad": 0, "crop": "center", "background": "white"}
    assert open_data(str(photos), model, split="test").fingerprint() == open_split(plain, "test").fingerprint()
    for random in ("random", "random_scale"):  # measured at the centre, as before
        recipe = recipe_of(photos, f"data.crop={random}")
        assert open_split(recipe, "test").transform.crop == "center" == framing_of(model_of(recipe))["crop"]


def test_cached_views_are_of_whole_images(photos: Path) -> None:
    recipe = recipe_of(photos, "data.crop=fit", "data.background=black")
    plain = open_split(recipe, "train").batch([0])[0]
    both = with_views(open_split(recipe, "train"), "center+flip").batch([0])[0]
    assert both[:1].equal(plain) and both[1:].equal(plain.flip(3))
    flips = with_views(open_split(recipe, "train"), "random")
    seen = {flips.batch([0], seed=seed)[0].equal(plain) for seed in range(8)}
    assert seen == {True, False} and flips.transform.is_random
    with pytest.raises(ConfigError, match=r"views: crop=fit has center, center\+flip, random .*, got tencrop"):
        with_views(open_split(recipe, "train"), "tencrop")


def test_records_state_the_framing(photos: Path) -> None:
    recipe = recipe_of(photos, "data.crop=fit", "data.background=#102030")
    model = store.build_model(recipe.model)
    assert protocol_of(model, framing_in(recipe.data))["crop"] == "fit 24, background #102030"
    assert protocol_of(model)["crop"] == "center 24"  # without a card


def test_wrong_backgrounds_end_with_one_line(photos: Path, capsys: Any) -> None:
    for overrides, message in (
        (["data.name=folder", f"data.root={photos}", "data.background=blue"], "data.background: expected white, black"),
        (["data.background=black"], "data.background: fashion_mnist has no transparent images, expected white"),
    ):
        assert cli.run(["config", "fashion_mnist/maetok", *overrides]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_generator_is_trained_on_images_framed_as_its_tokenizers(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(photos, "data.crop=fit")
    tokenizer = store.build_model(recipe.model)
    store.save_model(tokenizer, tmp_path / "model", Card(recipe=to_yaml(recipe)))
    settings = (f"tokenizer={tmp_path / 'model'}", f"out={tmp_path / 'run'}", "model.num_classes=2")
    for wrong, message in (
        (("data.crop=center",), "data.crop: expected fit as in the tokenizer's training, got center"),
        (("data.crop=fit", "data.background=black"), "data.background: expected white as in the tokenizer's"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_task(recipe_of(photos, *settings, *wrong, name="fashion_mnist/sit"))
    task = build_task(recipe_of(photos, *settings, name="fashion_mnist/sit"))
    assert task.images.transform.crop == "fit"  # type: ignore[union-attr]

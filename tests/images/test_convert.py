"""Pictures in and out: every kind gives what a training would have read, and others are refused with the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tok1d
from tok1d.config.load import load_recipe, to_yaml
from tok1d.data.images import ImageSource, open_images
from tok1d.errors import DataError, InputError
from tok1d.images import to_pil, to_tensor
from tok1d.zoo import store
from tok1d.zoo.card import Card


@pytest.fixture(scope="module")
def maetok(tiny: Callable[..., str]) -> Any:
    """A model of 28 pixels with a border of 2."""
    recipe = load_recipe(tiny("maetok"))
    model: Any = store.build_model(recipe.model).eval()
    model.card = Card(recipe=to_yaml(recipe))
    return model


@pytest.fixture(scope="module")
def colour() -> Any:
    return tok1d.load("emoji-smap")


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 4), np.uint8)
    pixels[:40, :, 3] = 0
    return Image.fromarray(pixels)


def test_every_kind_of_the_same_picture_is_the_same(maetok: Any, photo: Image.Image, tmp_path: Path) -> None:
    grey = photo.convert("L").resize((28, 28))
    grey.save(tmp_path / "grey.png")
    expected = torch.nn.functional.pad(torch.from_numpy(np.array(grey)).float() / 255, (2,) * 4)[None, None]
    array = np.array(grey)
    kinds: list[Any] = [
        grey,
        tmp_path / "grey.png",
        str(tmp_path / "grey.png"),
        array,
        array[..., None],
        array[None],
        torch.from_numpy(array),
        torch.from_numpy(array).float()[None] / 255,
        torch.from_numpy(array).float()[None, None] / 255,
        array.astype(np.float64) / 255,
        expected,
        [grey],
        (array,),
    ]
    for kind in kinds:
        assert torch.equal(maetok.preprocess(kind), expected), kind
    both = maetok.preprocess([grey, array])
    assert both.shape == (2, 1, 32, 32) and both.dtype == torch.float32


def test_a_model_reads_files_as_its_training_did(tmp_path: Path, photo: Image.Image, colour: Any) -> None:
    photo.save(tmp_path / "a.png")
    framing = tok1d.images.convert.framing_of(colour)
    size, channels = colour.config.image_size, colour.config.channels
    source = ImageSource("folder", root=str(tmp_path), image_size=size, channels=channels, **framing)
    expected = open_images(source, "all").batch([0])[0]
    for kind in (photo, tmp_path / "a.png"):
        assert torch.equal(colour.preprocess(kind), expected)
    # An array with alpha is composited before it is resized, as a file is.
    assert (colour.preprocess(np.array(photo)) - expected).abs().max() < 0.01


def test_transparency_is_the_background_of_the_training(colour: Any) -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert (colour.preprocess(clear) == 1).all()  # white, not the black of convert("RGB")
    assert (colour.preprocess(np.zeros((64, 64, 4), np.uint8)) == 1).all()
    assert (to_tensor(clear) == 1).all()


def test_without_a_model_nothing_is_resized(tmp_path: Path) -> None:
    assert to_tensor(Image.new("L", (5, 4), 255)).tolist() == [[[[1.0] * 5] * 4]]
    assert to_tensor([Image.new("L", (5, 4)), Image.new("RGB", (5, 4))]).shape == (2, 3, 4, 5)
    assert to_tensor(np.zeros((2, 3, 5, 5), np.uint8)).shape == (2, 3, 5, 5)
    with pytest.raises(InputError, match=r"got 4x5 and 6x5; pass model="):
        to_tensor([Image.new("L", (5, 4)), Image.new("L", (5, 6))])


def test_orientation_of_a_camera_is_applied() -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    assert to_tensor(image).shape == (1, 3, 8, 4)


BAD: list[tuple[Any, str]] = [
    (torch.full((1, 1, 28, 28), 200.0), "got 200 to 200; divide by 255, or give uint8"),
    (np.full((28, 28), 255.0), "divide by 255"),
    (torch.rand(1, 1, 28, 28) * 2 - 1.0001, "use \\(x \\+ 1\\) / 2"),
    (torch.full((1, 1, 28, 28), float("nan")), "got NaN or infinity"),
    (np.zeros((28, 28), np.int64), "expected floating point in \\[0, 1\\] or uint8, got torch.int64"),
    (np.zeros((8, 28, 28), np.uint8), "1 to 4 channels.*a batch of grey images is x\\[..., None\\]"),
    (np.zeros((0, 28, 1), np.uint8), "expected pixels"),
    ([], "got an empty list"),
    (3, "got int"),
    (None, "got NoneType"),
    (np.array(["a"]), "expected an array of numbers"),
    (Image.new("F", (9, 9)), "mode F: floating-point pixels"),
    (torch.zeros(1, 1, 1, 28, 28), "got the shape \\(1, 1, 1, 28, 28\\)"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_other_pictures_are_refused_with_the_remedy(maetok: Any, given: Any, message: str) -> None:
    for call in (maetok.preprocess, maetok.encode):
        with pytest.raises(InputError, match=message) as caught:
            call(given)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(maetok: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none\\.png"):
        maetok.encode(tmp_path / "none.png")


def test_to_pil_and_back() -> None:
    x = (torch.rand(2, 3, 5, 4) * 255).round() / 255
    found = to_pil(x)
    assert [image.mode for image in found] == ["RGB"] * 2 and torch.equal(to_tensor(found), x)
    assert to_pil(x[0, :1])[0].mode == "L" and to_pil(np.zeros((5, 4), np.uint8))[0].size == (4, 5)
    with pytest.raises(InputError, match="got \\(2, 5, 4\\)"):
        to_pil(torch.zeros(2, 5, 4))


@pytest.mark.parametrize("name", ["fashion-mnist-semanticist", "fashion-mnist-maetok", "fashion-mnist-smap"])
def test_encode_and_decode_take_pictures_and_keep_no_gradients(name: str) -> None:
    model = tok1d.load(name)
    image = Image.effect_noise((40, 50), 80)
    tokens = model.encode(image)
    assert torch.equal(tokens, model.encode(model.preprocess(image))) and not tokens.requires_grad
    images = model.decode(tokens)
    assert not images.requires_grad and images.shape[0] == 1
    (picture,) = model.decode(tokens, as_pil=True)
    assert picture.size == (images.shape[-1],) * 2
    x = model.preprocess(image).requires_grad_()
    model.encode(x).square().sum().backward()  # asked for
    assert x.grad is not None and x.grad.abs().sum() > 0
    tokens = tokens.requires_grad_()
    model.decode(tokens).sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
    trains = any(parameter.requires_grad for parameter in model.encoder.parameters())  # not in stage two
    assert model.train().encode(x.detach()).requires_grad == trains


@pytest.mark.parametrize("name", ["fashion-mnist-semanticist", "fashion-mnist-maetok", "fashion-mnist-smap"])
def test_half_precision_encodes_and_decodes(name: str) -> None:
    model, exact = tok1d.load(name, dtype=torch.bfloat16), tok1d.load(name)
    image = Image.effect_noise((28, 28), 80)
    tokens = model.encode(image)
    images = model.decode(tokens).float()
    assert next(model.parameters()).dtype == torch.bfloat16
    assert (images - exact.decode(exact.encode(image))).abs().mean() < 0.1


def test_show(tmp_path: Path) -> None:
    x = torch.rand(5, 1, 28, 28)
    plain = tok1d.show(x, columns=3)
    assert plain.size == (3 * (3 * 30 - 2), 3 * (2 * 30 - 2))
    assert tok1d.show(x, labels=range(5), columns=3).height > plain.height
    assert tok1d.show([Image.new("RGB", (200, 100))] * 2, labels=["a long label \u732b" * 9, ""]).width == 402
    for call, message in (
        (lambda: tok1d.show(x, labels=["a"]), "labels: expected 5"),
        (lambda: tok1d.show(x, columns=0), "columns: expected at least 1"),
        (lambda: tok1d.show(torch.rand(3, 7, 8, 8)), "got \\(3, 7, 8, 8\\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()

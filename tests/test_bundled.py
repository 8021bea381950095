"""The models inside the package: their cards, and a check on real images where these are available."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import tok1d
from tok1d.data import fashion_mnist
from tok1d.data.images import ImageSet, ImageSource, open_images
from tok1d.demo.colour import drawn
from tok1d.evaluate.metrics import accuracy
from tok1d.losses.pixel import psnr_per_image
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint

PAIRS = {
    "fashion-mnist-semanticist": "fashion-mnist-epsilon-llamagen",
    "fashion-mnist-maetok": "fashion-mnist-sit",
    "fashion-mnist-smap": "fashion-mnist-card",
    "emoji-maetok": "emoji-sit",
    "emoji-smap": "emoji-card",
}
NAMES = sorted(["fashion-mnist-cnn", *PAIRS, *PAIRS.values()])


@pytest.fixture(scope="module")
def images() -> Iterator[ImageSet]:
    """Fashion-MNIST's test images if they are already in the cache; never downloaded here."""
    cache = fashion_mnist.cache_home() / "fashion-mnist"
    try:
        fashion_mnist.load("test", cache)
    except Exception:
        pytest.skip("needs Fashion-MNIST: run `python -m tok1d.data.fashion_mnist` (make test does)")
    yield open_images(ImageSource("fashion_mnist", root=cache, image_size=28, channels=1), "test")


def test_names() -> None:
    assert store.bundled_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_card_and_storage(name: str) -> None:
    model = tok1d.load(name)
    card = model.card
    assert card.fingerprint == fingerprint(model)
    assert card.recipe and card.commit and card.trained["steps"] > 0 and card.seed is not None
    assert card.weights == "ema, stored as float16"
    own = [r for r in card.records if not r.name.startswith("baseline:")]
    assert own and all(r.weights_hash == card.fingerprint and r.value is not None for r in own)
    with safe_open(Path(model.folder) / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.float16"}  # noqa: SIM118


def test_sizes() -> None:
    def size(name: str) -> int:
        return (store.BUNDLED / name / "model.safetensors").stat().st_size

    pairs = {tokenizer: size(tokenizer) + size(generator) for tokenizer, generator in PAIRS.items()}
    assert all(each <= 4_000_000 for name, each in pairs.items() if name.startswith("fashion-mnist"))
    assert sum(each for name, each in pairs.items() if name.startswith("emoji")) <= 10_000_000
    assert size("fashion-mnist-cnn") < 1_000_000


def test_pair_belongs_together() -> None:
    for name in (*PAIRS, *PAIRS.values()):
        generator, tokenizer = tok1d.load_pair(name)
        assert generator.card.tokenizer_fingerprint == fingerprint(tokenizer)
        assert (tokenizer.folder.name, generator.folder.name) in PAIRS.items()


def test_first_words(images: ImageSet) -> None:
    """The README's first lines, on real images: sharper with more tokens, and far above a mean image."""
    model = tok1d.load("fashion-mnist-semanticist")
    x, _ = images.batch(range(100))
    with torch.no_grad():
        tokens = model.encode(x)
        psnr = [float(psnr_per_image(model.decode(tokens, keep=k), x).mean()) for k in (1, 4, model.spec.length)]
    assert psnr == sorted(psnr) and psnr[0] > 14 and psnr[-1] > 18, psnr


def test_words_draw_their_colours() -> None:
    """Samples of a caption are nearer to its colour than samples of another one."""
    pair = tok1d.load_pair("emoji-card")
    red, green = (images.mean((0, 2, 3)) for images in drawn(*pair, ("red apple", "green book")).values())
    assert red[0] - red[1] > green[0] - green[1] + 0.1, (red, green)


def test_classifier_and_samples(images: ImageSet) -> None:
    classifier = tok1d.load("fashion-mnist-cnn")
    x, labels = images.batch(range(1000))
    with torch.no_grad():
        assert float(accuracy(classifier(x), labels)) > 0.9
        generator, tokenizer = tok1d.load_pair("fashion-mnist-semanticist")
        classes = torch.arange(50) % 10
        generated = tokenizer.decode(generator.sample(classes, guidance=2.0))
        assert float(accuracy(classifier(generated), classes)) > 0.7

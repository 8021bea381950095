"""`Generator.generate` and `stream`: the pictures of `tok1d generate`, in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tok1d
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.errors import InputError
from tok1d.zoo import store

Tiny = Callable[..., str]


@pytest.fixture(scope="module")
def bundled() -> Any:
    return tok1d.load_pair("fashion-mnist-semanticist")[0]


def random_model(recipe: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_the_pictures_are_those_of_the_command(bundled: Any, tmp_path: Path, capsys: Any) -> None:
    command = ["generate", "fashion-mnist-semanticist", "--classes", "Sneaker,3", "--num", "2", "--seed", "5"]
    assert cli.run([*command, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    samples = bundled.generate(["Sneaker", 3], num=2, seed=5)
    assert samples.labels == ["Sneaker", "Sneaker", "Dress", "Dress"] and len(samples) == 4
    assert samples.images.shape == (4, 1, 28, 28) and samples.tokens.shape == (4, 16, 16)
    names = ["class007_000", "class007_001", "class003_000", "class003_001"]
    for name, picture in zip(names, samples.to_pil(), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{name}.png")), np.asarray(picture))


def test_batches_and_progress(bundled: Any) -> None:
    calls: list[tuple[int, int]] = []
    whole = bundled.generate("Bag", num=3)
    parts = bundled.generate("Bag", num=3, batch_size=2, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(2, 3), (3, 3)]
    torch.testing.assert_close(parts.images, whole.images, atol=1e-4, rtol=0)
    assert bundled.generate("Bag", num=1, keep=4).tokens.shape[1] == 4


def test_batches_shrink_to_the_memory(bundled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, sample, sizes = bundled.generate("Bag", num=3).images, type(bundled).sample, []

    def limited(self: Any, cond: Any, **options: Any) -> Any:
        sizes.append(len(cond))
        if len(cond) > 2:
            raise torch.OutOfMemoryError
        return sample(self, cond, **options)

    monkeypatch.setattr(type(bundled), "sample", limited)
    monkeypatch.setattr("tok1d.inference.draw.MOST", 4)
    torch.testing.assert_close(bundled.generate("Bag", num=3).images, expected, atol=1e-4, rtol=0)
    assert sizes == [3, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        bundled.generate("Bag", num=3, batch_size=3)


def test_a_stream_grows_to_the_same_images(bundled: Any) -> None:
    steps = list(bundled.stream([7], num=2, seed=3))
    samples = bundled.generate([7], num=2, seed=3)
    assert len(steps) == 16 and torch.equal(steps[-1], samples.images)
    tokenizer = bundled.partner[0]
    assert not torch.equal(steps[0], steps[-1]) and steps[0].shape == (2, 1, 28, 28)
    assert tokenizer.decode(samples.tokens, keep=1).shape == steps[0].shape


def test_samples_show_themselves(bundled: Any) -> None:
    samples = bundled.generate(["Bag", 1], num=1, temperature=0.5)
    text = repr(samples)
    assert text.startswith("Samples(2 images 1x28x28 of Bag, Trouser; tokens (2, 16, 16); seed 0, guidance 2")
    assert "temperature 0.5" in text
    assert samples._repr_png_()[:4] == b"\x89PNG" and samples._repr_html_().startswith("<img src=")


def test_captions(tmp_path: Path) -> None:
    generator = tok1d.load("emoji-card")
    samples = generator.generate(["red apple", "cat face"], num=1)
    assert samples.labels == ["red apple", "cat face"] and samples.images.shape[1] == 3
    with pytest.raises(InputError, match="expected at least one"):
        generator.generate()


def test_parallel_and_unordered_models_do_not_stream(bundled: Any, tiny: Tiny) -> None:
    with pytest.raises(InputError, match="a sit makes all tokens at once; use generate"):
        tok1d.load("fashion-mnist-sit").stream()
    with pytest.raises(InputError, match=r"stream: expected a tokenizer of ordered tokens"):
        generator = random_model(tiny("generator", tokenizer="x"), "num_tokens=4", "model.num_tokens=4")
        generator.stream(tokenizer=random_model(tiny("maetok")))


def test_a_model_that_was_not_loaded_takes_a_tokenizer(tiny: Tiny) -> None:
    generator, tokenizer = random_model(tiny("generator", tokenizer="x")), random_model(tiny("tokenizer"))
    with pytest.raises(InputError, match="pass tokenizer="):
        generator.generate()
    assert generator.generate([2], num=2, tokenizer=tokenizer).labels == [2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num": 0}, "num: expected a whole number from 1 on, got 0"),
        ({"keep": 0}, "keep: expected"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"temprature": 1}, "temprature: generate has no such setting; did you mean temperature?"),
        ({"conditions": ["Snaeker"]}, "did you mean Sneaker"),
        ({"conditions": [10]}, "numbers in 0..9, got 10"),
        ({"keep": 17}, "expected 1..16, got 17"),
    ],
)
def test_mistakes_are_named(bundled: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        bundled.generate(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)

"""What each token adds, for tokens and decoders whose parts are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.idle import batches, predicted_shares, token_uses
from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.evaluate.metrics import Moments
from tok1d.tokenizers.base import TokenSpec

SIDE = 2


class Pixelwise(nn.Module):
    """Token k is pixel k of an image of four pixels; the decoder multiplies it by `gain[k]`, and a copy of it adds up.

    `copies` tokens more are copies of the first; the decoder ignores them.
    """

    def __init__(self, gain: list[float], copies: int = 0, *, ids: bool = False) -> None:
        super().__init__()
        length = len(gain) + copies
        self.spec = TokenSpec(length, None if ids else 1, vocab_size=256 if ids else None, deterministic=True)
        self.config = None
        self.gain = nn.Parameter(torch.tensor(gain))
        self.copies, self.ids = copies, ids

    @property
    def decoder(self) -> nn.Module:
        return self

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        flat = images.flatten(1)
        flat = torch.cat([flat, flat[:, :1].expand(-1, self.copies)], 1)
        return (flat * 255).round().long() if self.ids else flat[..., None]

    def decode(self, tokens: Tensor, cond: Tensor | None = None, *, generator: object = None) -> Tensor:
        flat = tokens.float() / 255 if self.ids else tokens[..., 0]
        return (flat[:, : len(self.gain)] * self.gain).unflatten(1, (1, SIDE, SIDE))


def images_of(pixels: np.ndarray) -> ArrayImages:
    return ArrayImages(
        pixels.reshape(-1, SIDE, SIDE).astype(np.uint8), np.zeros(len(pixels), int), ["a"], Transform(2, 1)
    )


@pytest.fixture
def images() -> ArrayImages:
    return images_of(np.random.default_rng(0).integers(0, 256, (400, 4)))


@pytest.mark.parametrize("ids", [False, True])
def test_each_token_adds_the_variance_of_its_pixel(images: ArrayImages, ids: bool) -> None:
    model = Pixelwise([1.0, 1.0, 1.0, 0.0], ids=ids)
    found = token_uses(model, images, num_images=400, batch_size=150)  # type: ignore[arg-type]
    flat = images.batch(range(400))[0].flatten(1)
    variance = flat.var(0, correction=0)
    assert found.error == pytest.approx(float(flat[:, 3].square().mean()) / 4, rel=1e-6)
    for k, use in enumerate(found.tokens):
        gain = float(model.gain.detach()[k])
        if ids:
            assert use.left_out is None
        else:
            assert use.left_out == pytest.approx(gain * float(variance[k]) / 4, rel=1e-5)
            assert use.change == pytest.approx(use.left_out, rel=1e-5)  # the error without the change is zero
        # Independent values of two images differ by twice the variance.
        assert use.replaced == pytest.approx(gain * 2 * float(variance[k]) / 4, rel=0.2)
    assert found.idle == [3]


def test_copies_are_predicted_and_independent_tokens_are_not(images: ArrayImages) -> None:
    found = token_uses(Pixelwise([1.0] * 4, copies=2), images, num_images=400)  # type: ignore[arg-type]
    shares = [use.predicted for use in found.tokens]
    assert shares[0] is None
    assert all(share is not None and share < 0.05 for share in shares[1:4])
    assert shares[4:] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert found.idle == [4, 5]
    assert any("0.0%" in line or "100.0%" in line for line in found.describe())


def test_too_few_images_for_the_regression_are_said(images: ArrayImages) -> None:
    found = token_uses(Pixelwise([1.0] * 4), images, num_images=15)  # type: ignore[arg-type]
    assert all(use.predicted is None for use in found.tokens)
    assert "predicted from earlier tokens: not computed (15 images, too few for the regression)" in found.describe()


def test_a_known_share_of_a_token_is_predicted() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(20_000, 1, 2, generator=generator), torch.randn(20_000, 1, 2, generator=generator)
    tokens = torch.cat([x, 3 * x.flip(2) + noise, torch.ones_like(x)], 1).flatten(1)
    halves = [Moments(6).update(tokens[half::2]) for half in (0, 1)]
    shares = predicted_shares(halves, 2)
    assert shares[0] is None
    assert shares[1] == pytest.approx(0.9, abs=0.01)
    assert shares[2] == 1.0  # constant


def test_the_share_is_that_of_a_regression_on_the_other_half() -> None:
    """Halves of different means and few rows, against numpy's least squares."""
    generator = np.random.default_rng(1)
    tokens = generator.normal(size=(40, 4)) + np.arange(40)[:, None] * [0.1, 0, 0.02, 0]
    tokens[:, 2] += tokens[:, 0]
    found = []
    for first in (0, 1):
        fit, held = tokens[first::2], tokens[1 - first :: 2]
        design = np.c_[fit[:, :2], np.ones(20)]
        weight = np.linalg.lstsq(design, fit[:, 2:], rcond=None)[0]
        rest = held[:, 2:] - np.c_[held[:, :2], np.ones(20)] @ weight
        found.append(1 - (rest**2).sum() / ((held[:, 2:] - held[:, 2:].mean(0)) ** 2).sum())
    halves = [Moments(4).update(torch.tensor(tokens[half::2])) for half in (0, 1)]
    assert predicted_shares(halves, 2)[1] == pytest.approx(max(0, found[0]) / 2 + max(0, found[1]) / 2, abs=1e-4)


def test_the_result_does_not_depend_on_the_batch_size_but_for_the_other_image(images: ArrayImages) -> None:
    model = Pixelwise([1.0] * 4, copies=1)
    a, b = (token_uses(model, images, num_images=61, batch_size=size) for size in (20, 61))  # type: ignore[arg-type]
    for one, other in zip(a.tokens, b.tokens, strict=True):
        assert one.left_out == pytest.approx(other.left_out, rel=1e-5)
        assert one.predicted == (None if other.predicted is None else pytest.approx(other.predicted, abs=1e-9))


def test_no_image_replaces_its_own_token() -> None:
    assert batches(7, 3) == [range(0, 3), range(3, 7)]
    assert batches(6, 3) == [range(0, 3), range(3, 6)]
    assert batches(5, 1) == [range(0, 2), range(2, 5)]
    assert batches(2, 250) == [range(0, 2)]


def test_one_image_is_refused(images: ArrayImages) -> None:
    with pytest.raises(InputError, match=r"expected at least 2 images, .* got 1"):
        token_uses(Pixelwise([1.0] * 4), images, num_images=1)  # type: ignore[arg-type]


def test_the_sentence_names_the_idle_token(images: ArrayImages) -> None:
    found = token_uses(Pixelwise([1.0, 1.0, 1.0, 0.5]), images, num_images=400)  # type: ignore[arg-type]
    assert "0 of 4 tokens add at most 1%;" in found.said()
    found = token_uses(Pixelwise([1.0, 1.0, 0.5, 0.0]), images, num_images=400)  # type: ignore[arg-type]
    assert "1 of 4 tokens add at most 1% (3); earlier tokens predict at most" in found.said()


def test_the_command_measures_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    assert cli.run(["analyze", "idle", *models, "fashion_mnist", "--num", "6", "--out", str(out)]) == 0
    record = json.loads((out / "idle.json").read_text())
    smap, maetok = record["models"]
    assert [smap["model"], maetok["model"]] == models and smap["weights_hash"] != maetok["weights_hash"]
    assert (smap["num"], smap["seed"], smap["data"], smap["label"]) == (6, 0, "fashion_mnist", "true")
    assert "6 of" in smap["reference"] and len(smap["tokens"]) == 16 and maetok["label"] is None
    said = capsys.readouterr().out
    assert all(f"{name}: token" in said for name in models) and Image.open(out / "idle.png").width > 100


def test_the_command_reads_a_folder_of_pictures(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.run(["analyze", "idle", "fashion-mnist-maetok", str(pictures), "--num", "4", "--out", str(out)]) == 0
    (entry,) = json.loads((out / "idle.json").read_text())["models"]
    assert entry["num"] == 4 and entry["data"] == str(pictures)

"""What each token adds, for tokens and decoders whose parts are known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tok1d.analyze.idle import batches, predicted_shares, token_uses
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
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
    shares = predicted_shares(torch.cat([x, 3 * x.flip(2) + noise, torch.ones_like(x)], 1))
    assert shares[0] is None
    assert shares[1] == pytest.approx(0.9, abs=0.01)
    assert shares[2] == 1.0  # constant


def test_no_image_replaces_its_own_token() -> None:
    assert batches(7, 3) == [range(0, 3), range(3, 7)]
    assert batches(6, 3) == [range(0, 3), range(3, 6)]
    assert batches(5, 1) == [range(0, 2), range(2, 5)]
    assert batches(2, 250) == [range(0, 2)]


def test_one_image_is_refused(images: ArrayImages) -> None:
    with pytest.raises(InputError, match=r"expected at least 2 images, .* got 1"):
        token_uses(Pixelwise([1.0] * 4), images, num_images=1)  # type: ignore[arg-type]

"""Increments of a decoder whose increments are known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tok1d.analyze.increments import increments
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.latent_space import Pixels


class Sum(nn.Module):
    """Predicts the sum of fixed vectors, one per kept token. `gain` scales a vector; its sign depends on the time."""

    def __init__(self, directions: Tensor, gain: list[float]) -> None:
        super().__init__()
        self.spec = TokenSpec(len(gain), 2, ordered=True)
        self.latent_space = Pixels(1)
        self.vectors = nn.Parameter(directions * torch.tensor(gain)[:, None])

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return images.new_zeros(len(images), self.spec.length, 2)

    def uniform_times(self, num: int) -> Tensor:
        return (torch.arange(num) + 0.5) / num

    def predictions(self, latents: Tensor, tokens: Tensor, mask: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        sign = torch.where(t < 0.5, -1.0, 1.0)[:, None]
        return (noise.flatten(1) + sign * (mask.float() @ self.vectors)).view_as(latents)


@pytest.fixture
def images() -> ArrayImages:
    pixels = np.zeros((6, 2, 2), dtype=np.uint8)
    return ArrayImages(pixels, np.zeros(6, dtype=int), ["a"], Transform(2, 1))


def test_orthogonal_increments_of_falling_energy(images: ArrayImages) -> None:
    directions = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0][:3]
    found = increments(Sum(directions, [2.0, 1.0, 0.5]), images, num_times=4, batch_size=4)
    torch.testing.assert_close(found.cosine, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
    # Squared norms 4, 1, 1/4 spread over four pixels.
    torch.testing.assert_close(found.energy, torch.tensor([1, 0.25, 0.0625], dtype=torch.float64), atol=1e-5, rtol=0)
    assert found.off_diagonal < 1e-5 and found.falling == 1.0


def test_a_known_angle_and_signs(images: ArrayImages) -> None:
    half = 0.5**0.5
    directions = torch.tensor([[1.0, 0, 0, 0], [half, half, 0, 0], [-1.0, 0, 0, 0]])
    found = increments(Sum(directions, [1.0, 2.0, 3.0]), images, num_times=2)
    # The flip of all vectors at some times changes no cosine.
    torch.testing.assert_close(found.cosine[0], torch.tensor([1.0, half, -1.0], dtype=torch.float64))
    torch.testing.assert_close(found.absolute[0], torch.tensor([1.0, half, 1.0], dtype=torch.float64))
    assert found.neighbours == pytest.approx(0.0, abs=1e-6) and found.falling == 0.0
    assert found.off_diagonal == pytest.approx((4 * half + 2) / 6)


def test_refuses_what_has_no_increments(images: ArrayImages) -> None:
    with pytest.raises(InputError, match="diffusion decoder"):
        increments(nn.Linear(1, 1), images)
    with pytest.raises(InputError, match="at least 2 tokens"):
        increments(Sum(torch.eye(4)[:1], [1.0]), images)

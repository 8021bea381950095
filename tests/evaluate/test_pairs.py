"""SSIM against its formula and scikit-image, LPIPS of pairs of images against itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tok1d.errors import DataError, WeightsError
from tok1d.evaluate.measures import Gathered, Measures
from tok1d.evaluate.pairs import lpips_per_image, open_lpips, ssim_per_image
from tok1d.losses.perceptual import LPIPS, vgg16
from tok1d.zoo.weights import fingerprint


def pair(channels: int, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    a = torch.rand(3, channels, size, size, generator=generator)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_its_formula_with_mirrored_borders(channels: int) -> None:
    a, b = pair(channels)
    expected = [np.mean([ssim_map(x, y) for x, y in zip(c.double().numpy(), d.double().numpy())]) for c, d in zip(a, b)]
    assert ssim_per_image(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    def blur(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, truncate=3.5, mode="mirror")

    u, v = blur(x), blur(y)
    spread, both = blur(x * x) - u * u + blur(y * y) - v * v, blur(x * y) - u * v
    return (2 * u * v + 0.01**2) * (2 * both + 0.03**2) / ((u * u + v * v + 0.01**2) * (spread + 0.03**2))


@pytest.mark.slow
def test_ssim_within_the_borders_is_scikit_images() -> None:
    from skimage.metrics import structural_similarity

    a, b = (each[0, 0].double().numpy() for each in pair(1))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    assert ssim_map(a, b)[5:-5, 5:-5].mean() == pytest.approx(structural_similarity(a, b, **options), rel=1e-9)


@pytest.mark.slow
def test_ssim_is_of_each_image_alone_one_for_itself_and_of_clamped_images() -> None:
    a, b = pair(3)
    together = ssim_per_image(a, b)
    assert torch.allclose(torch.cat([ssim_per_image(x[None], y[None]) for x, y in zip(a, b)]), together, atol=1e-6)
    assert torch.allclose(ssim_per_image(a, a), torch.ones(3))
    assert torch.equal(ssim_per_image(a + 2 * (a == a.max()), b), ssim_per_image(torch.where(a == a.max(), 1.0, a), b))
    assert ssim_per_image(a[:1], b[:1]).shape == (1,)


def test_lpips_is_of_each_image_alone_and_clamped() -> None:
    torch.manual_seed(0)
    widths = (2, 3, 4, 4, 4)
    network = LPIPS(vgg16(widths), [torch.rand(width) for width in widths])
    found = Gathered(Measures(("lpips",), lpips=network))
    found.update({"lpips": torch.tensor([0.5])}, range(1))
    (number,) = found.numbers([])
    assert number.note == f"VGG16, heads v0.1, images at their own size, weights {fingerprint(network)}"
    a, b = pair(3)
    together = lpips_per_image(network, a, b)
    assert torch.allclose(torch.cat([lpips_per_image(network, x[None], y[None]) for x, y in zip(a, b)]), together)
    assert (together > 0).all() and torch.equal(lpips_per_image(network, a, a), torch.zeros(3))
    assert torch.equal(lpips_per_image(network, 9 * a - 4, b), lpips_per_image(network, (9 * a - 4).clamp(0, 1), b))


@pytest.mark.parametrize("shapes", [((2, 3, 9, 9), (2, 3, 9, 9)), ((2, 3, 28, 28), (2, 1, 28, 28))])
def test_small_or_unequal_images_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(DataError, match="SSIM: expected two batches"):
        ssim_per_image(a, b)
    with pytest.raises(DataError, match="LPIPS: expected two batches"):
        lpips_per_image(LPIPS(vgg16((1,) * 5), [torch.ones(1)] * 5), a, b)


def test_lpips_without_its_weights_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected VGG16's weights, got no file") as caught:
        heads = tmp_path / "heads.pth"
        heads.touch()
        open_lpips(vgg=str(tmp_path / "none.pth"), heads=str(heads))
    assert "\n" not in str(caught.value)

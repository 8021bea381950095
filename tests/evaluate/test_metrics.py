"""Image distances, streamed moments and the Frechet distance against closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tok1d.errors import DataError
from tok1d.evaluate.metrics import Moments, accuracy, frechet_distance
from tok1d.losses.pixel import mse_per_image, psnr_per_image


def features(num: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mix + 3 * seed


def exact(mean: torch.Tensor, root: torch.Tensor) -> Moments:
    """Moments of exactly this mean and covariance `root @ root.T`: the points mean +- c * root's columns."""
    dim = len(mean)
    scale = ((2 * dim - 1) / 2) ** 0.5
    return Moments(dim).update(torch.cat([mean + scale * root.T, mean - scale * root.T]))


def rotation(dim: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q


def test_psnr_of_a_constant_shift_is_known_per_image() -> None:
    a = torch.full((3, 1, 4, 4), 0.5)
    b = a + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert torch.allclose(psnr_per_image(a, b)[:2], torch.tensor([20.0, 40.0]), atol=1e-3)
    assert psnr_per_image(a, b)[2] == torch.inf


def test_images_are_clamped_before_they_are_compared() -> None:
    black, white = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert torch.equal(mse_per_image(black - 7, white + 7), torch.ones(2))
    assert torch.equal(psnr_per_image(black - 7, white + 7), torch.zeros(2))


def test_an_image_is_measured_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 5, 3, 8, 8, generator=generator)
    alone = torch.cat([psnr_per_image(x[None], y[None]) for x, y in zip(a, b)])
    assert torch.allclose(psnr_per_image(a, b), alone)


def test_half_precision_images_keep_small_differences() -> None:
    a = torch.zeros(1, 1, 4, 4, dtype=torch.float16)
    b = torch.full_like(a, 2.0**-10)
    assert mse_per_image(a, b).item() == pytest.approx(2.0**-20)


def test_images_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="same shape"):
        mse_per_image(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))


def test_accuracy_counts_hits() -> None:
    logits = torch.eye(4)
    assert accuracy(logits, torch.tensor([0, 1, 2, 0])).item() == 0.75


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=4),
    split=st.integers(0, 5),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_batches_and_merges_equal_one_pass(cuts: list[int], split: int, offset: float) -> None:
    x = features(40, 5) + offset
    batches = x.tensor_split(sorted(cuts))
    first, second = Moments(5), Moments(5)
    for batch in batches[:split]:
        first.update(batch)
    for batch in batches[split:]:
        second.update(batch)
    merged = first.merge(second)
    assert merged.count == 40
    assert torch.allclose(merged.mean, x.mean(dim=0), rtol=1e-12, atol=1e-9)
    assert torch.allclose(merged.covariance, torch.cov(x.T), rtol=1e-6, atol=1e-6)
    assert merged.mean.dtype == merged.covariance.dtype == torch.float64


def test_moments_refuse_what_they_cannot_count() -> None:
    moments = Moments(3)
    with pytest.raises(DataError, match=r"\(B, 3\)"):
        moments.update(torch.zeros(2, 4))
    with pytest.raises(DataError, match="finite"):
        moments.update(torch.tensor([[0.0, torch.nan, 0.0]]))
    with pytest.raises(DataError, match="at least 1"):
        _ = moments.mean
    with pytest.raises(DataError, match="at least 2"):
        _ = moments.update(torch.zeros(1, 3)).covariance
    with pytest.raises(DataError, match="dimension"):
        moments.merge(Moments(4))
    with pytest.raises(DataError, match="one network"):
        frechet_distance(exact(torch.zeros(3), torch.eye(3)), exact(torch.zeros(4), torch.eye(4)))


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form() -> None:
    turn = rotation(4)
    s1 = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    s2 = torch.tensor([2.0, 2.0, 0.0, 1.0], dtype=torch.float64)  # one direction of no variance
    m1 = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    m2 = torch.tensor([1.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    distance = frechet_distance(exact(m1, turn * s1), exact(m2, turn * s2))
    assert distance == pytest.approx((m1 - m2).square().sum().item() + (s1 - s2).square().sum().item())


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    # For 2 x 2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), here with M = C1 C2.
    r1 = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    r2 = torch.tensor([[1.0, -1.0], [0.0, 3.0]], dtype=torch.float64)
    c1, c2, zero = r1 @ r1.T, r2 @ r2.T, torch.zeros(2, dtype=torch.float64)
    product = c1 @ c2
    assert not torch.allclose(product, c2 @ c1)
    overlap = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (c1.trace() + c2.trace() - 2 * overlap).item()
    assert frechet_distance(exact(zero, r1), exact(zero, r2)) == pytest.approx(expected)


def test_frechet_distance_is_symmetric_and_invariant_to_rotation() -> None:
    x, y, turn = features(60, 6, 0), features(80, 6, 1), rotation(6)
    distance = frechet_distance(Moments(6).update(x), Moments(6).update(y))
    assert distance > 1
    assert frechet_distance(Moments(6).update(y), Moments(6).update(x)) == pytest.approx(distance)
    turned = frechet_distance(Moments(6).update(x @ turn), Moments(6).update(y @ turn))
    assert turned == pytest.approx(distance)


def test_distance_to_itself_is_zero_also_where_the_covariance_is_singular() -> None:
    few = Moments(64).update(features(10, 64))  # rank 9 of 64
    trace = few.covariance.trace().item()
    assert 0 <= frechet_distance(few, few) < 1e-6 * trace
    other = Moments(64).update(features(10, 64, 1))
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few))
    shifted = Moments(64).update(features(10, 64) + 0.5)
    assert frechet_distance(few, shifted) == pytest.approx(64 * 0.25, rel=1e-5)

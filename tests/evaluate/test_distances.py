"""Fréchet distance, KID, and the manifold metrics, compared with other libraries, direct sums and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from tok1d.errors import DataError, InputError
from tok1d.evaluate.kernel import kernel_distance, kernel_distance_subsets, random_subsets
from tok1d.evaluate.manifold import Manifold, manifold, radii, squared_distances
from tok1d.evaluate.metrics import Moments, frechet_distance

FIDELITY = "pip install torch-fidelity compares with it"


def features(num: int, dim: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mix + shift


@pytest.mark.parametrize(("num", "dim"), [(200, 16), (500, 48)])
def test_frechet_distance_is_scipys(num: int, dim: int) -> None:
    from scipy.linalg import sqrtm

    x, y = features(num, dim), features(num + 30, dim, 1, 0.3)
    c1, c2 = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    shift = (x.mean(dim=0) - y.mean(dim=0)).square().sum().item()
    expected = shift + np.trace(c1) + np.trace(c2) - 2 * np.trace(sqrtm(c1 @ c2)).real
    found = frechet_distance(Moments(dim).update(x), Moments(dim).update(y))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_torch_fidelitys() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason=FIDELITY)
    x, y = features(300, 20), features(250, 20, 1, 0.2)
    statistics = [fid.fid_features_to_statistics(part) for part in (x, y)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Moments(20).update(x), Moments(20).update(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = features(300, 20), features(250, 20, 1, 0.2)
    parts = [x.mean(dim=0), torch.cov(x.T), y.mean(dim=0), torch.cov(y.T)]
    expected = float(fid._compute_fid(*parts))
    assert frechet_distance(Moments(20).update(x), Moments(20).update(y)) == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_features_merge_as_well_as_they_add() -> None:
    # A covariance of rank 19 in 40 dimensions: rounding in its null space must not show.
    x, y = features(20, 40), features(30, 40, 1)
    other = Moments(40).update(y)
    whole = frechet_distance(Moments(40).update(x), other)
    merged = Moments(40).update(x[13:]).merge(Moments(40).update(x[:4]).merge(Moments(40).update(x[4:13])))
    assert frechet_distance(merged, other) == pytest.approx(whole, rel=1e-10)


def test_moments_are_rebuilt_from_statistics_and_states() -> None:
    moments = Moments(5).update(features(30, 5))
    rebuilt = Moments.from_statistics(moments.mean, moments.covariance, 30)
    assert torch.allclose(rebuilt.covariance, moments.covariance, rtol=1e-14) and rebuilt.count == 30
    more = features(12, 5, 2)
    merged = rebuilt.merge(Moments(5).update(more))
    assert torch.allclose(merged.covariance, torch.cov(torch.cat([features(30, 5), more]).T), rtol=1e-10)
    same = Moments.from_state(moments.state_dict())
    assert torch.equal(same.mean, moments.mean) and torch.equal(same.covariance, moments.covariance)
    for mean, covariance, count in ((3, 4, 9), (4, 4, 1)):
        with pytest.raises(DataError, match="statistics"):
            Moments.from_statistics(torch.zeros(mean), torch.zeros(covariance, covariance), count)
    with pytest.raises(DataError, match="finite"):
        Moments.from_statistics(torch.full((2,), torch.nan), torch.eye(2))


def direct_kernel_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def own(z: torch.Tensor) -> float:
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    return own(x) + own(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kernel_distance_is_its_double_sum_whatever_the_block() -> None:
    x, y = features(12, 5), features(17, 5, 1, 0.5)
    expected = direct_kernel_distance(x, y)
    for block in (4, 5, 100):
        assert kernel_distance(x, y, block=block) == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(y, x) == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(features(200, 5, 2), features(200, 5, 2) + 2) > 1


def test_kernel_distance_of_one_population_is_unbiased() -> None:
    # (x.y + 1)^3 with x, y = +-1: the kernel of the means is 4, so of one law the mean estimate is 0.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (400, 2, 8, 1), generator=generator).double() * 2 - 1
    estimates = torch.tensor([kernel_distance(x, y) for x, y in signs])
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(float(estimates.mean())) < 4 * float(error)
    assert (estimates < 0).any()


def test_kernel_distance_is_torch_fidelitys() -> None:
    kid = pytest.importorskip("torch_fidelity.metric_kid", reason=FIDELITY)
    x, y = features(60, 12), features(60, 12, 1, 0.5)
    theirs = kid.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=60, verbose=False)
    expected = theirs["kernel_inception_distance_mean"]
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    one = kernel_distance_subsets(x, y, num_subsets=1, subset_size=60)
    assert (one.mean, one.std) == (pytest.approx(expected, rel=1e-10), 0)
    found = kernel_distance_subsets(x, y, num_subsets=4, subset_size=20, seed=3)
    generator = torch.Generator().manual_seed(3)
    of_x, of_y = (random_subsets(60, 20, 4, generator) for _ in range(2))
    each = [kid.kernel_mmd(x[i].numpy(), y[j].numpy()) for i, j in zip(of_x, of_y)]
    assert found.mean == pytest.approx(np.mean(each), rel=1e-9) and found.std == pytest.approx(np.std(each), rel=1e-9)
    assert found == kernel_distance_subsets(x, y, num_subsets=4, subset_size=20, seed=3)
    assert found != kernel_distance_subsets(x, y, num_subsets=4, subset_size=20, seed=4)


def test_kernel_distance_is_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(40, 12), features(40, 12, 1, 0.5)
    assert kernel_distance(x, y) == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-6)


def test_small_or_foreign_sets_are_refused() -> None:
    x, y = features(30, 4), features(30, 5)
    for measure in (kernel_distance, manifold):
        with pytest.raises(DataError, match="one network"):
            measure(x, y)
        with pytest.raises(DataError, match="images in either set, got 30 and 1"):
            measure(x, x[:1])
    with pytest.raises(DataError, match="at least 1000 images in either set, got 30 and 30"):
        kernel_distance_subsets(x, x)
    with pytest.raises(InputError, match="float16, float32, float64"):
        manifold(x, x, distances="bfloat16")  # type: ignore[arg-type]


def direct_manifold(real: torch.Tensor, fake: torch.Tensor, k: int, k_density: int) -> Manifold:
    """The papers' formulas, pair by pair."""
    x, y = real.tolist(), fake.tolist()
    own = [sorted(math.dist(a, b) for b in x) for a in x]
    fakes = [sorted(math.dist(a, b) for b in y) for a in y]
    across = [[math.dist(a, b) for b in y] for a in x]  # [real][fake]
    rows, columns = range(len(x)), range(len(y))
    inside = [any(across[i][j] <= own[i][k] for i in rows) for j in columns]
    recalled = [any(across[i][j] <= fakes[j][k] for j in columns) for i in rows]
    within = [[across[i][j] < own[i][k_density] for j in columns] for i in rows]
    return Manifold(
        precision=sum(inside) / len(y),
        recall=sum(recalled) / len(x),
        density=sum(map(sum, within)) / (k_density * len(y)),
        coverage=sum(map(any, within)) / len(x),
    )


@pytest.mark.parametrize("distances", ["float32", "float64"])
@pytest.mark.parametrize("block", [7, 64])
@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (2, 2)])
def test_manifold_metrics_are_their_direct_sums(block: int, distances: Any, k: int, k_density: int) -> None:
    real, fake = features(50, 3), features(40, 3, 1, 0.6)
    expected = direct_manifold(real, fake, k, k_density)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1 and 0 < expected.coverage < 1
    assert manifold(real, fake, k=k, k_density=k_density, distances=distances, block=block) == expected


def test_precision_and_recall_are_torch_fidelitys() -> None:
    prc = pytest.importorskip("torch_fidelity.metric_prc", reason=FIDELITY)
    real, fake = features(80, 4), features(70, 4, 1, 0.8)
    theirs = prc.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)  # the generated ones first
    found = manifold(real, fake, distances="float64")
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]))


def test_identical_sets_are_fully_covered_and_distant_ones_not_at_all() -> None:
    real = features(64, 6)
    assert manifold(real, real.clone(), distances="float64") == Manifold(1, 1, 1, 1)
    assert manifold(real, real + 100) == Manifold(0, 0, 0, 0)
    # Real outliers do not change precision, and lower recall exactly by their share.
    outliers = torch.cat([real, 1000 + 10 * features(16, 6, 1)])
    found = manifold(outliers, real, distances="float64")
    assert found.precision == 1 and found.recall == found.coverage == 0.8


def test_distances_do_not_lose_to_a_mean_far_from_the_origin() -> None:
    real, fake = features(50, 3), features(40, 3, 1, 0.6)
    expected = direct_manifold(real, fake, 3, 5)
    assert manifold(real + 300, fake + 300) == expected


def test_half_precision_distances_are_the_adm_suites() -> None:
    # Its formula in numpy's float16: all terms are rounded, and a block that overflows is computed in float32.
    generator = torch.Generator().manual_seed(0)
    x, y = (4 * torch.rand(n, 4, generator=generator).half().float() for n in (20, 30))
    u, v = x.half().numpy(), y.half().numpy()
    norms = [np.sum(np.square(each), axis=1, dtype=np.float16) for each in (u, v)]
    expected = np.maximum(norms[0][:, None] - 2 * (u @ v.T) + norms[1][None], 0).astype(np.float32)
    found = squared_distances(x, y, "float16")
    assert found.dtype == torch.float32
    exact = squared_distances(x, y, "float64")
    rounding = 2.0**-10 * 4 * 16 * 4
    assert (found - torch.from_numpy(expected)).abs().max() <= rounding and (found - exact).abs().max() <= rounding
    assert (found != exact).any()
    large = squared_distances(1000 * x, 1000 * y, "float16")
    assert torch.allclose(large, squared_distances(1000 * x, 1000 * y), rtol=1e-4)


def test_a_radius_is_the_distance_to_the_kth_neighbour() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    for block in (1, 3, 9):
        assert radii(line, 1, 2, block=block).T.tolist() == [[1, 1, 4, 16], [9, 4, 9, 36]]
        assert radii(line, 2, block=block).tolist() == [[9], [4], [9], [36]]

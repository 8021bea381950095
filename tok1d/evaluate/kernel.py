"""KID: the squared maximum mean discrepancy of two sets of features (Binkowski et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tok1d.errors import DataError

DEGREE, COEF = 3, 1.0  # the kernel is (x.y / dim + COEF)^DEGREE


@dataclass(frozen=True)
class KernelDistance:
    """Mean and population standard deviation of the unbiased estimates over random subsets."""

    mean: float
    std: float
    num_subsets: int
    subset_size: int


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel (x.y / dim + 1)^3 of all pairs of rows of (N, dim) and (M, dim), as (N, M)."""
    return (x @ y.T / x.shape[1] + COEF) ** DEGREE


def kernel_distance(x: Tensor, y: Tensor, *, block: int = 4096) -> float:
    """The unbiased estimate from all features (N, dim) and (M, dim), in float64; it can be slightly below 0.

    The sums within a set leave out the pairs of a feature with itself, as torch-fidelity's "unbiased" does.

    Args:
        block: number of rows, and of columns, of the kernel that are in memory at once.

    Raises:
        DataError: fewer than two features in a set, or features of different networks.
    """
    _check(x, y, 2)
    return _own_mean(x, block) + _own_mean(y, block) - 2 * _cross_sum(x, y, block) / (len(x) * len(y))


def _own_mean(x: Tensor, block: int) -> float:
    """Mean of the kernel over all pairs of different rows of a set."""
    x = x.double()
    own = float(((x.square().sum(dim=1) / x.shape[1] + COEF) ** DEGREE).sum())
    return (_cross_sum(x, x, block) - own) / (len(x) * (len(x) - 1))


def _cross_sum(x: Tensor, y: Tensor, block: int) -> float:
    y = y.double()
    return sum(
        float(polynomial_kernel(rows.double(), part).sum()) for rows in x.split(block) for part in y.split(block)
    )


def random_subsets(num: int, size: int, num_subsets: int, generator: torch.Generator) -> list[Tensor]:
    """`num_subsets` random subsets, each of `size` different numbers of range(num)."""
    return [torch.randperm(num, generator=generator)[:size] for _ in range(num_subsets)]


def kernel_distance_subsets(
    x: Tensor, y: Tensor, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID as it is usually reported: mean and standard deviation over random subsets of both sets.

    Args:
        x, y: features (N, dim) and (M, dim).
        seed: of the subsets. torch-fidelity chooses other subsets, with numpy.

    Raises:
        DataError: a set smaller than a subset, or features of different networks.
    """
    _check(x, y, max(subset_size, 2))
    generator = torch.Generator().manual_seed(seed)
    of_x = random_subsets(len(x), subset_size, num_subsets, generator)
    of_y = random_subsets(len(y), subset_size, num_subsets, generator)
    found = torch.tensor(
        [kernel_distance(x[i], y[j], block=subset_size) for i, j in zip(of_x, of_y)], dtype=torch.float64
    )
    return KernelDistance(float(found.mean()), float(found.std(correction=0)), num_subsets, subset_size)


def _check(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise DataError(f"KID: expected two sets of features of one network, got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(len(x), len(y)) < least:
        raise DataError(
            f"KID: expected at least {least} images in either set, got {len(x)} and {len(y)}; evaluate more images "
            "or set a smaller subset"
        )

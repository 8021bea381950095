"""Distances between images and between sets of features."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from tok1d.errors import DataError


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the rows of `(B, classes)` whose largest logit is at the label `(B,)`; a scalar in [0, 1]."""
    return (logits.argmax(dim=-1) == labels).float().mean()


class Moments:
    """Count, mean and covariance of feature vectors that arrive in batches, in float64.

    Batches are combined by the pairwise update of Chan, Golub and LeVeque (1979), which does not cancel as sums of
    squares do when the mean is large compared with the spread.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> Self:
        """Add features `(B, dim)` of any float type and device; raises DataError on other shapes, NaN or inf."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise DataError(
                f"features of shape (B, {self.dim}) are expected, got {tuple(features.shape)}; use the "
                "network that the moments were started with"
            )
        x = features.detach().to("cpu", torch.float64)
        if not torch.isfinite(x).all():
            raise DataError("finite features are expected, got NaN or inf; check the images they come from")
        if len(x):
            mean = x.mean(dim=0)
            centred = x - mean
            self._combine(len(x), mean, centred.T @ centred)
        return self

    def merge(self, other: "Moments") -> Self:
        """Add everything that `other` has counted, as if one object had counted both."""
        if other.dim != self.dim:
            raise DataError(
                f"moments of dimension {self.dim} are expected, got {other.dim}; merge moments of one network"
            )
        if other.count:
            self._combine(other.count, other._mean, other._scatter)
        return self

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean `(dim,)` in float64; raises DataError before the first feature."""
        self._require(1)
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance `(dim, dim)` (divided by count - 1) in float64; raises DataError below two features."""
        self._require(2)
        return self._scatter / (self.count - 1)

    @classmethod
    def from_statistics(cls, mean: Tensor, covariance: Tensor, count: int = 2) -> "Moments":
        """Moments of a mean (dim,) and an unbiased covariance (dim, dim), such as a file of statistics holds.

        Where the count is not known they can be compared, but not merged. Raises DataError on shapes that do not fit,
        numbers that are not finite, or a count below 2.
        """
        moments = cls(mean.numel())
        if mean.shape != (moments.dim,) or covariance.shape != (moments.dim, moments.dim):
            raise DataError(
                f"statistics: expected a mean (dim,) and a covariance (dim, dim), got {tuple(mean.shape)} and "
                f"{tuple(covariance.shape)}"
            )
        if count < 2 or not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise DataError(f"statistics: expected finite ones of at least 2 images, got a count of {count} or NaN")
        moments.count = count
        moments._mean = mean.detach().to("cpu", torch.float64).clone()
        moments._scatter = covariance.detach().to("cpu", torch.float64) * (count - 1)
        return moments

    def state_dict(self) -> dict[str, Tensor | int]:
        """What `from_state` needs, as a number and two tensors."""
        return {"count": self.count, "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | int]) -> "Moments":
        """The moments that gave this state."""
        mean, scatter = (torch.as_tensor(state[key]) for key in ("mean", "scatter"))
        moments = cls(mean.numel())
        moments.count, moments._mean, moments._scatter = int(state["count"]), mean, scatter
        return moments

    def _require(self, count: int) -> None:
        if self.count < count:
            raise DataError(f"at least {count} feature vectors are expected, got {self.count}; evaluate more images")


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    # Eigenvalues that are rounding (numpy's tolerance of a rank) are zero: their roots would not be small.
    smallest = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > smallest, values, 0)
    return (vectors * values.sqrt()) @ vectors.T


def frechet_distance(m1: Moments, m2: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with these moments, >= 0.

    `|mu1 - mu2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))` (Dowson and Landau, 1982; Heusel et al., 2017, eq. 6).
    The last trace is the sum of the singular values of `C1^(1/2) C2^(1/2)`: real and non-negative by construction,
    and accurate for singular covariances, where the square root of the product itself breaks down.
    """
    if m1.dim != m2.dim:
        raise DataError(
            f"moments of one network are compared, got dimensions {m1.dim} and {m2.dim}; measure both sets "
            "with the same network"
        )
    c1, c2 = m1.covariance, m2.covariance
    overlap = torch.linalg.svdvals(_root(c1) @ _root(c2)).sum()
    distance = (m1.mean - m2.mean).square().sum() + c1.trace() + c2.trace() - 2 * overlap
    # Rounding can leave a tiny negative number where the two sets are equal.
    return max(float(distance), 0.0)

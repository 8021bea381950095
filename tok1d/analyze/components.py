"""The principal components of the tokens of a set of images, from one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tok1d.errors import InputError
from tok1d.evaluate.metrics import Moments

Batches = Callable[[], Iterable[Tensor]]  # opens the rows (B, F) of an image set, batch by batch


@dataclass(frozen=True)
class Components:
    """The principal components of the tokens of some images, flattened to F numbers.

    Args:
        num: number of images.
        mean: (F,) float64.
        axes: (F, R) float64, orthonormal, in columns by decreasing variance; R is the number of those that vary.
        variances: (R,), of the projections on the axes.
        total: the variance of all numbers together.
    """

    num: int
    mean: Tensor
    axes: Tensor
    variances: Tensor
    total: float

    @classmethod
    def of(cls, batches: Batches, what: str) -> Components:
        """The components of rows (B, F) in batches. Memory: three matrices of F x F numbers of 8 bytes.

        Components whose variance is below rounding are left out.

        Args:
            what: what needs them, at the beginning of error messages.

        Raises:
            InputError: rows that are not finite or do not vary, or fewer than two.
        """
        moments: Moments | None = None
        for rows in batches():
            if not torch.isfinite(rows).all():
                raise InputError(f"{what}: expected finite tokens, got NaN or inf; check the tokenizer")
            moments = (Moments(rows.shape[1]) if moments is None else moments).update(rows)
        if moments is None or moments.count < 2:
            raise InputError(f"{what}: expected at least 2 images, got {0 if moments is None else moments.count}")
        covariance = moments.covariance * ((moments.count - 1) / moments.count)
        variances, axes = torch.linalg.eigh(covariance)
        variances, axes = variances.flip(0), axes.flip(1)
        least = variances[0] * max(moments.dim, moments.count) * torch.finfo(torch.float64).eps
        rank = min(int((variances > least.clamp_min(0)).sum()), moments.count - 1)
        if not covariance.diagonal().any() or rank < 1:
            raise InputError(f"{what}: expected tokens that vary from image to image; check the tokenizer")
        return cls(moments.count, moments.mean, axes[:, :rank], variances[:rank], float(covariance.trace()))

    def share(self, keep: int) -> float:
        """The share of the variance in the first `keep` components, in [0, 1]."""
        return float(self.variances[:keep].sum()) / self.total

    def dims_for(self, variance: float) -> int:
        """The fewest components that explain a share of the variance."""
        shares = self.variances.cumsum(0) / self.total
        return min(int((shares < variance - 1e-12).sum()) + 1, len(shares))

    def standardised(self, batches: Batches, dims: int) -> Tensor:
        """The first components, each divided by its deviation over the images, (N, dims) float64."""
        scale = self.variances[:dims].rsqrt()
        return torch.cat([(rows.to(self.mean) - self.mean) @ self.axes[:, :dims] * scale for rows in batches()])

    def project(self, tokens: Tensor, keep: int) -> Tensor:
        """Tokens (B, K, D) from their first `keep` components; the mean for 0."""
        axes, mean = self.axes[:, :keep].to(tokens.device), self.mean.to(tokens.device)
        rows = (tokens.double().flatten(1) - mean) @ axes @ axes.T + mean
        return rows.view_as(tokens).to(tokens.dtype)

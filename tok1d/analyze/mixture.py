"""Gaussian mixtures fitted to tokens, to count their modes (MAETok, section 2 and appendix B.3)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.inference.cache import encode_batch, tokens_kept
from tok1d.inference.conditions import ConditionedImages
from tok1d.tokenizers.base import Tokenizer

Covariance = Literal["diag", "full"]


@dataclass(frozen=True)
class MixturePoint:
    """One fitted mixture.

    Args:
        components: number of Gaussians.
        seed: of the initialisation.
        nll: mean negative log-likelihood of the fitted rows, in nats per row.
        mean_norm: the largest norm of a component's mean.
    """

    components: int
    seed: int
    nll: float
    mean_norm: float


@dataclass(frozen=True)
class Mixtures:
    """Mixtures fitted to the same rows.

    Args:
        num: number of rows, one per image.
        dims: number of principal components; likelihoods are comparable only if it is equal.
        variance: share of the variance that they explain.
        covariance: "diag" or "full".
    """

    num: int
    dims: int
    variance: float
    covariance: str
    points: list[MixturePoint]


def collect_tokens(tokenizer: Tokenizer, images: ImageSet, *, num: int = 5000, batch_size: int = 250) -> Tensor:
    """Return the continuous tokens (N, K, D) of `num` images of a set, see `subset`.

    Raises:
        InputError: a tokenizer with discrete tokens, or no images.
    """
    if tokenizer.spec.dim is None:
        raise InputError("mixtures are fitted to continuous tokens, this tokenizer has discrete ones")
    images = subset(images, num)
    count, length = len(images), tokens_kept(tokenizer.spec, None)
    if count < 1:
        raise InputError(f"mixtures need images, got {count}")
    parts, conditioned = [], ConditionedImages(tokenizer, images)
    for start in range(0, count, batch_size):
        x, _, cond = conditioned.batch(range(start, min(start + batch_size, count)))
        parts.append(encode_batch(tokenizer, x, cond, length).cpu())
    return torch.cat(parts)


def fit_mixtures(
    tokens: Tensor,
    components: Sequence[int],
    *,
    dims: int | None = None,
    variance: float = 0.9,
    covariance: Covariance = "diag",
    seeds: Sequence[int] = (0,),
) -> Mixtures:
    """Fit Gaussian mixtures to tokens (N, ...), flattened to one row per image.

    The rows are projected to principal components, each standardised to mean 0 and deviation 1. A mixture is fitted by
    expectation maximisation from a k-means initialisation, for every number of components and every seed. A fit may
    end in a local optimum, so compare the lowest `nll` of several seeds. A latent space is simpler if it needs
    fewer components for the same likelihood. With one diagonal component, `nll` is always dims / 2 (1 + log 2 pi).

    Args:
        components: numbers of Gaussians to fit.
        dims: number of principal components, to compare tokenizers; default: as few as explain `variance`.
        variance: share of the variance, in (0, 1].
        covariance: of a component, "diag" or "full".
        seeds: of the initialisations.

    Raises:
        InputError: a value out of range, or tokens that are not finite or do not vary.
    """
    rows = tokens.flatten(1).double().numpy()
    _check(rows, components, dims, variance, covariance)
    projected, share = _project(rows, dims, variance)
    points = [_fit(projected, k, seed, covariance) for k in components for seed in seeds]
    return Mixtures(len(rows), projected.shape[1], share, covariance, points)


def _check(rows: np.ndarray, components: Sequence[int], dims: int | None, variance: float, covariance: str) -> None:
    most = min(rows.shape)
    if not np.isfinite(rows).all() or not rows.std(axis=0).any():
        raise InputError("mixtures need finite tokens that vary from image to image; check the tokenizer")
    if not components or min(components) < 1 or max(components) > len(rows):
        raise InputError(f"components: expected counts in 1..{len(rows)} (the images), got {list(components)}")
    if dims is not None and not 1 <= dims <= most:
        raise InputError(f"dims: expected 1..{most} (images, or numbers of an image's tokens), got {dims}")
    if not 0 < variance <= 1:
        raise InputError(f"variance: expected a share above 0 and at most 1, got {variance:g}")
    if covariance not in get_args(Covariance):
        raise InputError(f"covariance: expected diag or full, got {covariance!r}")


def _project(rows: np.ndarray, dims: int | None, variance: float) -> tuple[np.ndarray, float]:
    """Return standardised principal components (N, dims), and the share of the variance that they explain.

    Raises:
        InputError: `dims` is larger than the rank of the rows; further components would be amplified rounding errors.
    """
    from sklearn.decomposition import PCA

    pca = PCA(svd_solver="full").fit(rows)
    shares = np.cumsum(pca.explained_variance_ratio_)
    rank = int((pca.singular_values_ > pca.singular_values_[0] * max(rows.shape) * np.finfo(np.float64).eps).sum())
    if dims is not None and dims > rank:
        raise InputError(f"dims: expected at most {rank}, the dimensions in which these tokens vary, got {dims}")
    if dims is None:
        dims = min(int(np.searchsorted(shares, variance - 1e-12)) + 1, len(shares))
    projected = pca.transform(rows)[:, :dims]
    return projected / np.maximum(projected.std(axis=0), 1e-12), float(shares[dims - 1])


def _fit(rows: np.ndarray, components: int, seed: int, covariance: Covariance) -> MixturePoint:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(components, covariance_type=covariance, random_state=seed)
    with warnings.catch_warnings():
        # The limit on iterations (100, the default) is part of the protocol, so no warning is printed if it is reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    norms = np.linalg.norm(model.means_, axis=1)
    return MixturePoint(components, seed, -float(model.score(rows)), float(norms.max()))

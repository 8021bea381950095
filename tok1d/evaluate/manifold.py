"""Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020) of features.

The manifold of a set of features is approximated by a union of balls. Each feature is the centre of one ball, and the
radius is the distance to its k-th nearest neighbour in the set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tok1d.errors import DataError, InputError

Distances = Literal["float16", "float32", "float64"]


@dataclass(frozen=True)
class Manifold:
    """Precision, recall and coverage are shares in [0, 1]; density is at least 0 and can exceed 1.

    Attributes:
        precision: share of the generated images that lie in the ball of a real image.
        recall: share of the real images that lie in the ball of a generated image.
        density: mean number of balls of real images that a generated image lies in, divided by k.
        coverage: share of the real images whose ball contains a generated image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def squared_distances(x: Tensor, y: Tensor, precision: Distances = "float32") -> Tensor:
    """Squared distances (N, M), at least 0, between the rows of (N, dim) and (M, dim).

    Computed as |x|^2 - 2 x.y + |y|^2 in the given precision. With "float16", distances are computed again in float32
    if one of them is not finite, as in the ADM suite.
    """
    if precision == "float16":
        found = _expanded(x.half(), y.half())
        return found.float() if bool(torch.isfinite(found).all()) else _expanded(x.float(), y.float())
    dtype = torch.float64 if precision == "float64" else torch.float32
    return _expanded(x.to(dtype), y.to(dtype))


def _expanded(x: Tensor, y: Tensor) -> Tensor:
    norms = x.square().sum(dim=1)[:, None] - 2 * (x @ y.T) + y.square().sum(dim=1)[None]
    return norms.clamp(min=0)


def radii(x: Tensor, *ks: int, precision: Distances = "float32", block: int = 4096) -> Tensor:
    """Squared distances (N, len(ks)) of each feature (N, dim) to its k-th nearest neighbour, for each k.

    As in the ADM suite this is the (k + 1)-th smallest of the distances to all features, of which the feature itself
    is one.
    """
    found, most = [], max(ks) + 1
    for rows in x.split(block):
        nearest = torch.empty(len(rows), 0, device=x.device)
        for columns in x.split(block):
            both = torch.cat([nearest, squared_distances(rows, columns, precision)], dim=1)
            nearest = both.topk(min(most, both.shape[1]), dim=1, largest=False).values
        found.append(nearest[:, list(ks)])  # topk returns sorted values; column 0 is the feature itself
    return torch.cat(found)


def manifold(
    real: Tensor,
    fake: Tensor,
    *,
    k: int = 3,
    k_density: int = 5,
    distances: Distances = "float32",
    block: int = 4096,
) -> Manifold:
    """Precision, recall, density and coverage of generated images.

    For precision and recall a feature on the surface of a ball is inside, as in the ADM suite and the code of
    Kynkäänniemi et al.; for density and coverage it is outside, as in the code of Naeem et al.

    Args:
        real, fake: features (N, dim) of real and (M, dim) of generated images. The ADM suite compares 10,000 or 50,000
            real images with 50,000 generated ones.
        k: the nearest neighbour that gives the radius for precision and recall.
        k_density: the same for density and coverage.
        distances: precision of the distances; the ADM suite uses "float16".
        block: number of features of each set that are compared at once.

    Raises:
        DataError: features of different networks, or a set of k images or fewer.
        InputError: another precision.
    """
    if distances not in get_args(Distances):
        raise InputError(f"distances: expected {', '.join(get_args(Distances))}, got {distances!r}")
    _check(real, fake, max(k, k_density))
    if distances != "float16":
        # Distances are invariant to translation; with centred features their expansion has smaller rounding errors.
        centre = real.double().mean(dim=0)
        real, fake = ((x.double() - centre).to(getattr(torch, distances)) for x in (real, fake))
    options: dict = {"precision": distances, "block": block}
    real_radii, density_radii = radii(real, k, k_density, **options).T
    fake_radii = radii(fake, k, **options)[:, 0]
    fake_inside = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    real_inside = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered, num_pairs = torch.zeros_like(real_inside), 0
    for i, j, found in _blocks(real, fake, distances, block):
        fake_inside[j] |= (found <= real_radii[i, None]).any(dim=0)
        real_inside[i] |= (found <= fake_radii[None, j]).any(dim=1)
        strictly = found < density_radii[i, None]
        covered[i] |= strictly.any(dim=1)
        num_pairs += int(strictly.sum())
    return Manifold(
        precision=_share(fake_inside),
        recall=_share(real_inside),
        density=num_pairs / (k_density * len(fake)),
        coverage=_share(covered),
    )


def _blocks(real: Tensor, fake: Tensor, distances: Distances, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    for i in range(0, len(real), block):
        for j in range(0, len(fake), block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            yield rows, columns, squared_distances(real[rows], fake[columns], distances)


def _share(inside: Tensor) -> float:
    return float(inside.double().mean())


def _check(real: Tensor, fake: Tensor, k: int) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise DataError(
            f"precision and recall: expected two sets of features of one network, got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}"
        )
    if min(len(real), len(fake)) <= k:
        raise DataError(
            f"precision and recall: expected more than {k} images in either set, got {len(real)} and {len(fake)}; "
            "evaluate more images"
        )

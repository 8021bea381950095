"""Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020) of features.

Either set's manifold is the union of balls around its features, each as large as the distance to its k-th nearest
neighbour among them.
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
    """Shares in [0, 1], but density, which can exceed 1."""

    precision: float  # of generated images within the real images' balls
    recall: float  # of real images within the generated images' balls
    density: float  # real balls that a generated image lies in, over k
    coverage: float  # of real images with a generated image in their own ball


def squared_distances(x: Tensor, y: Tensor, precision: Distances = "float32") -> Tensor:
    """Squared distances (N, M) of the rows of (N, dim) and (M, dim), at least 0.

    Computed as |x|^2 - 2 x.y + |y|^2 in that precision. With "float16" a block that overflows is computed in float32,
    as in the ADM suite.
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
    """Squared distances (N, len(ks)) of each feature (N, dim) to its k-th nearest neighbour, itself not counted.

    As in the ADM suite it is the (k + 1)-th smallest distance to all features with itself among them.
    """
    found, most = [], max(ks) + 1
    for rows in x.split(block):
        nearest = torch.empty(len(rows), 0, device=x.device)
        for columns in x.split(block):
            both = torch.cat([nearest, squared_distances(rows, columns, precision)], dim=1)
            nearest = both.topk(min(most, both.shape[1]), dim=1, largest=False).values
        found.append(nearest[:, list(ks)])  # topk sorts
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
    """Precision, recall, density and coverage of generated features against real ones, a block of pairs at a time.

    A feature on the border of a ball is inside for precision and recall, as in the ADM suite and in the paper's code;
    it is outside for density and coverage, as in that paper's code.

    Args:
        real, fake: (N, dim) and (M, dim); the ADM suite compares 10,000 or 50,000 real with 50,000 generated images.
        k: neighbours for precision and recall; k_density: for density and coverage.
        distances: precision of the distances; the ADM suite's is "float16".
        block: features of either set that are compared at once.

    Raises:
        DataError: sets of different networks, or with too few images for k neighbours.
        InputError: another precision.
    """
    if distances not in get_args(Distances):
        raise InputError(f"distances: expected {', '.join(get_args(Distances))}, got {distances!r}")
    _check(real, fake, max(k, k_density))
    if distances != "float16":
        # Distances do not depend on the origin; near it their expansion loses less to rounding.
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

"""How many images a metric of features needs: refused below the least number, and said below a customary one."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tok1d.errors import InputError
from tok1d.evaluate.score import ADM_CHUNK
from tok1d.zoo.record import Record

DISTANCES = ("fd", "sfd")
K_MANIFOLD, K_DENSITY = 3, 5  # nearest neighbours for precision and recall, for density and coverage
# Images of either set: a covariance and KID are divided by their number minus one; a neighbour is another image.
LEAST, LEAST_MANIFOLD = 2, max(K_MANIFOLD, K_DENSITY) + 1
PER_NUMBER = 10  # images for each number of a feature, below which a Frechet distance is said to be of few images
SUBSET, NUM_SUBSETS = 1000, 100  # KID: images in a subset, number of subsets
_FEW = "few images: "


def few_images(metric: str, num: int, dim: int, reference: int | None = None) -> str:
    """A note that a metric is of few images; "" if it is not.

    Args:
        num, reference: images that are measured, and of the reference (None: not known).
        dim: numbers of a feature.
    """
    least = num if reference is None else min(num, reference)
    if metric in DISTANCES and least < PER_NUMBER * dim:
        return f"{_FEW}{least}, fewer than {PER_NUMBER} for each of the {dim} numbers of a feature: too large"
    if metric == "kid" and least < SUBSET:
        return f"{_FEW}subsets of {least} instead of {SUBSET}"
    if metric == "score" and num < ADM_CHUNK:
        return f"{_FEW}{num}, fewer than a chunk of {ADM_CHUNK}: too low"
    return ""


def too_few(metric: str, num: int, reference: int | None) -> str:
    """Why a metric that compares two sets cannot be computed from so many images; "" if it can."""
    got = num if reference is None else min(num, reference)
    least = LEAST if metric in (*DISTANCES, "kid") else LEAST_MANIFOLD
    return f"expected at least {least} images in each set, got {got}" if got < least else ""


def check_number(metrics: Iterable[str], num: int, what: str) -> None:
    """Check before an evaluation that there are enough images for its metrics.

    Args:
        metrics: those that are measured.
        what: the images, for the message.

    Raises:
        InputError: a Frechet distance of fewer than two images.
    """
    for metric in metrics:
        if metric in DISTANCES and num < LEAST:
            raise InputError(
                f"{metric}: expected at least {LEAST} {what}, got {num}; take more, or leave it out with --metrics"
            )


def say_few(records: Iterable[Record]) -> None:
    """Print on stderr which records are of few images, each metric once."""
    parts = ((record.name, part) for record in records for part in record.note.split("; ") if part.startswith(_FEW))
    for name, part in dict(parts).items():
        print(f"{name}: {part}", file=sys.stderr)

"""The order of the data and the random numbers of augmentation, as pure functions of seed, epoch and index.

No state needs to be saved or restored to resume a run.
"""

import hashlib
from functools import lru_cache

import numpy as np

from tok1d.data.base import Indices

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Different hash inputs make the order of an epoch independent of the augmentation of the same (seed, epoch).
_ORDER, _UNIFORMS = 1, 2


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply the finaliser of splitmix64 (Steele, Lea, Flood 2014) to uint64 values of any shape."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(purpose: int, seed: int, epoch: int, counters: np.ndarray) -> np.ndarray:
    """Hash uint64 counters of any shape, keyed by (purpose, seed, epoch), to uint64.

    A counter-based generator of our own: numpy does not guarantee equal `Generator` streams across its versions.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in (purpose, seed, epoch):
        key = _mix(key + np.array([(part + _GOLDEN) & _MASK], dtype=np.uint64))
    return _mix(key + _mix((counters + np.uint64(1)) * np.uint64(_GOLDEN)))


def seed_from(text: str) -> int:
    """Return a 64-bit seed that is determined by a text.

    A cryptographic hash, so that the low 32 bits depend on the whole text: torch's CPU generator uses only those.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def uniforms(num: int, *, seed: int, epoch: int, indices: Indices, stream: int = 0) -> np.ndarray:
    """Return `num` <= 64 random numbers in [0, 1) for every image, a pure function of (seed, epoch, index).

    Returns float64 (B, num) for `indices` (B,). Different values of `stream` give independent numbers.
    """
    # Every index has 64 counters; 53 random bits fill a float64's mantissa.
    counters = np.asarray(indices, dtype=np.uint64)[:, None] * np.uint64(64) + np.arange(num, dtype=np.uint64)
    return (_hash(_UNIFORMS + stream, seed, epoch, counters) >> np.uint64(11)) * 2.0**-53


def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch: a permutation of range(num), int64 (num,)."""
    keys = _hash(_ORDER, seed, epoch, np.arange(num, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


@lru_cache(maxsize=2)  # two, because a batch may span two epochs
def _cached_permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(num, seed, epoch)


def batch_indices(
    num: int, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> tuple[np.ndarray, int]:
    """Return the indices that one rank reads at one step.

    The permutations of successive epochs form one stream. The global batch of G = `batch_size * world` rows is the
    positions [step * G, (step + 1) * G) of this stream, and ranks take contiguous parts of it. A resumed run, or one
    with another `world` and equal G, therefore reads the same images at the same step.

    Args:
        num: number of images.
        batch_size: rows per rank.
        step: from 0.
        rank: of this process, in range(world).
        world: number of processes.

    Returns:
        Indices, int64 (batch_size,), and the epoch in which the global batch begins (it may span several).

    Raises:
        ValueError: an argument is out of range.
    """
    if num < 1 or batch_size < 1 or step < 0 or not 0 <= rank < world:
        raise ValueError(f"no batch for num={num} batch_size={batch_size} step={step} rank={rank} world={world}")
    start = step * batch_size * world
    positions = np.arange(start + rank * batch_size, start + (rank + 1) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        rows = epochs == epoch
        indices[rows] = _cached_permutation(num, seed, epoch)[offsets[rows]]
    return indices, start // num


def choice(num: int, *, seed: int, step: int, stream: int = 0) -> int:
    """Return a uniform random element of range(num): a pure function of (seed, step, stream), so all ranks agree."""
    return int(uniforms(1, seed=seed, epoch=0, indices=[step], stream=stream)[0, 0] * num)

"""Data order and augmentation draws as pure functions: nothing to save, nothing to restore on resume."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Keeps the order of an epoch and the augmentation draws of the same (seed, epoch) unrelated.
_ORDER, _DRAWS = 1, 2


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values (any shape) with the splitmix64 finaliser (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(purpose: int, seed: int, epoch: int, counters: np.ndarray) -> np.ndarray:
    """Hash uint64 counters (any shape) under (purpose, seed, epoch) to uint64.

    Our own counter-based hash, because numpy does not promise equal `Generator` streams across versions.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in (purpose, seed, epoch):
        key = _mix(key + np.array([(part + _GOLDEN) & _MASK], dtype=np.uint64))
    return _mix(key + _mix((counters + np.uint64(1)) * np.uint64(_GOLDEN)))


def seed_from(text: str) -> int:
    """A seed of 64 bits that belongs to a text.

    Hashed, because torch's CPU generator takes only the low 32 bits of a seed: all of the text must reach them.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def uniforms(num: int, *, seed: int, epoch: int, indices: Sequence[int] | np.ndarray, stream: int = 0) -> np.ndarray:
    """Draw `num` numbers in [0, 1) for every image, a pure function of (seed, epoch, index).

    Returns (B, num) float64 for `indices` (B,); `stream` separates independent uses of the same triple.
    """
    counters = np.asarray(indices, dtype=np.uint64)[:, None] * np.uint64(64) + np.arange(num, dtype=np.uint64)
    return (_hash(_DRAWS + stream, seed, epoch, counters) >> np.uint64(11)) * 2.0**-53


def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch: a permutation of range(num), (num,) int64."""
    keys = _hash(_ORDER, seed, epoch, np.arange(num, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


@lru_cache(maxsize=2)  # two: a batch may straddle epochs
def _cached_permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(num, seed, epoch)


def batch_indices(
    num: int, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> tuple[np.ndarray, int]:
    """Return what one rank reads at one step of the endless stream of concatenated epochs.

    The global batch of `batch_size * world` rows is positions [step * G, (step + 1) * G) of the stream; ranks
    take contiguous parts of it, so a resumed run, or one with another `world` at equal G, reads the same images.
    Returns indices (batch_size,) int64 and the epoch in which the global batch begins (a batch may straddle two).
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
    """Draw one of range(num) for a training step, each as likely; a pure function of (seed, step), so ranks agree."""
    return int(uniforms(1, seed=seed, epoch=0, indices=[step], stream=stream)[0, 0] * num)

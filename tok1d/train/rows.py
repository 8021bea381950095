"""Which rows of a token cache a training step reads, and samples of cached posteriors."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tok1d.data.order import batch_indices, uniforms

# Independent streams of random numbers under the same seed.
_LATENT_STREAM = 1  # third part of the seed, after seed and step
_VIEW_STREAM = 1  # stream of `uniforms` that picks a view; 0 is for augmentation


def sampled(moments: Tensor, *, seed: int, step: int, rank: int) -> Tensor:
    """Samples (B, K, D) of normal distributions given by means and standard deviations (B, K, 2 D): mean + std * noise.

    The noise depends on seed, step and the row's place in the batch of all processes only, so a resumed run gets the
    same noise (with the same version of numpy).
    """
    mean, std = moments.chunk(2, dim=-1)
    rng = np.random.default_rng([seed, step, _LATENT_STREAM])
    noise = rng.standard_normal(((rank + 1) * len(mean), *mean.shape[1:]), dtype=np.float32)[rank * len(mean) :]
    return mean + std * torch.from_numpy(noise).to(mean)


def every_image(
    rows: int, views: int, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The cache rows of one process's batch, (batch_size,) int64: every image once an epoch, in a random view.

    Args:
        rows: rows of the cache, images * views.
    """
    images, epoch = batch_indices(rows // views, batch_size, seed=seed, step=step, rank=rank, world=world)
    random = uniforms(1, seed=seed, epoch=epoch, indices=images, stream=_VIEW_STREAM)[:, 0]
    return images * views + (random * views).astype(np.int64)


def released(
    rows: int, views: int, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The cache rows of one process's batch, (B,) int64, as Semanticist's released loader picks them in one process.

    An epoch has as many rows as there are images. They are sampled uniformly with replacement over all views, by a
    generator seeded with seed + epoch; the last batch of an epoch is shorter. Several processes split this sequence,
    and an epoch then ends at a multiple of `world` rows.
    """
    images, whole = rows // views, batch_size * world
    served = max(images // world * world, world)
    epoch, batch = divmod(step, -(-served // whole))
    chosen = _released_epoch(rows, served, seed + epoch)[batch * whole : (batch + 1) * whole]
    return np.split(chosen, world)[rank]


@lru_cache(maxsize=2)
def _released_epoch(rows: int, num: int, seed: int) -> np.ndarray:
    return torch.randint(rows, (num,), generator=torch.Generator().manual_seed(seed)).numpy()

"""Which rows of a token cache a training step reads."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tok1d.data.order import batch_indices, uniforms

_LATENT_DRAWS = 1  # of a KL tokenizer's samples, beside seed and step
_VIEW_DRAWS = 1  # stream of the draws that pick a view; 0 are the augmentations'


def sampled(moments: Tensor, *, seed: int, step: int, rank: int) -> Tensor:
    """Samples (B, K, D) of tokens' means and standard deviations (B, K, 2 D), as a KL tokenizer's decoder reads them.

    The noise belongs to (seed, step, row of the batch of all processes): a resumed run draws the same, with the same
    version of numpy.
    """
    mean, std = moments.chunk(2, dim=-1)
    draws = np.random.default_rng([seed, step, _LATENT_DRAWS])
    noise = draws.standard_normal(((rank + 1) * len(mean), *mean.shape[1:]), dtype=np.float32)[rank * len(mean) :]
    return mean + std * torch.from_numpy(noise).to(mean)


def every_image(
    rows: int, views: int, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The rows of one rank's batch, (batch_size,) int64: every image once an epoch, in a view drawn uniformly."""
    images, epoch = batch_indices(rows // views, batch_size, seed=seed, step=step, rank=rank, world=world)
    draws = uniforms(1, seed=seed, epoch=epoch, indices=images, stream=_VIEW_DRAWS)[:, 0]
    return images * views + (draws * views).astype(np.int64)


def released(
    rows: int, views: int, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The rows of one rank's batch, (B,) int64, as Semanticist's released cache loader draws them in one process.

    An epoch has as many rows as images, drawn uniformly with replacement over all views by a generator seeded
    seed + epoch; its last batch is shorter. Several ranks share one such stream, an epoch ending at a multiple of
    `world` rows.
    """
    images, whole = rows // views, batch_size * world
    served = max(images // world * world, world)
    epoch, batch = divmod(step, -(-served // whole))
    drawn = _released_epoch(rows, served, seed + epoch)[batch * whole : (batch + 1) * whole]
    return np.split(drawn, world)[rank]


@lru_cache(maxsize=2)
def _released_epoch(rows: int, num: int, seed: int) -> np.ndarray:
    return torch.randint(rows, (num,), generator=torch.Generator().manual_seed(seed)).numpy()

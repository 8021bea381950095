"""Statistics over all processes of a training, for bottlenecks and losses. Every process has to call them."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def num_processes() -> int:
    """Number of training processes; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_of_processes(x: Tensor) -> Tensor:
    """The mean of `x` over all processes, with gradient.

    DistributedDataParallel averages gradients over processes; with this mean the result equals the gradient of a
    single process that has all batches.
    """
    world = num_processes()
    if world == 1:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x) / world


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of `x` over all processes, without gradient; in a single process `x` itself."""
    x = x.detach()
    world = num_processes()
    if world == 1:
        return x
    total = x.clone()
    distributed.all_reduce(total)
    return total / world


def count_codes(ids: Tensor, size: int, *, shared: bool) -> Tensor:
    """How often each of `size` codes occurs in ids of any shape, (size,) float32.

    Args:
        shared: whether the batches of all processes are counted.
    """
    # Not unique or bincount: both synchronise with the device.
    flat = ids.flatten()
    counts = torch.zeros(size, device=ids.device).index_add_(0, flat, torch.ones(flat.shape, device=ids.device))
    if shared and num_processes() > 1:
        distributed.all_reduce(counts)
    return counts


def code_statistics(counts: Tensor) -> dict[str, Tensor]:
    """From counts (K,): "codes_used", the share of codes that occur, and "perplexity", exp of their entropy in nats."""
    p = counts / counts.sum()
    return {"codes_used": (counts > 0).float().mean(), "perplexity": torch.special.entr(p).sum().exp()}


def nearest_rows(z: Tensor, distances: Tensor) -> Tensor:
    """For every code the nearest token of the batches of all processes.

    Args:
        z: tokens (n, C) of this process.
        distances: their distances (n, K) to the codes.

    Returns:
        (K, C). Processes exchange one candidate per code, not their distances.
    """
    least, index = distances.min(0)
    rows, world = z[index], num_processes()
    if world == 1:
        return rows
    every_least = [torch.empty_like(least) for _ in range(world)]
    every_row = [torch.empty_like(rows) for _ in range(world)]
    distributed.all_gather(every_least, least.contiguous())
    distributed.all_gather(every_row, rows.contiguous())
    first = torch.stack(every_least).argmin(0)
    return torch.stack(every_row)[first, torch.arange(len(first), device=first.device)]

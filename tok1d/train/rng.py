"""The random numbers of a training step: seeded by the step, and over several processes those that one would draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tok1d.data.order import seed_from

# Draws of more numbers than this over all processes are each process's own: the memory and time are not worth it.
SHARED_NUMBERS = 2**26


def seed_of(seed: int, micro_step: int, rank: int = 0, prefix: str = "") -> int:
    """The seed of one forward pass's random numbers, of the player that logs with this prefix."""
    return seed_from(f"{seed} {micro_step} {rank}{prefix and ' '}{prefix}")


@contextmanager
def seeded(
    seed: int, micro_step: int, rank: int, world: int, prefix: str, batch: Any, *, copies: int = 1
) -> Iterator[None]:
    """Seed a player's forward pass on `batch`, this process's part of what `world` processes train on."""
    torch.manual_seed(seed_of(seed, micro_step, 0, prefix))
    if world == 1:
        yield
        return
    global _active
    with _Shared(len(batch[0]), rank, world, copies, seed_of(seed, micro_step, rank + 1, prefix)) as _active:
        try:
            yield
        finally:
            _active = None


def recomputing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For `torch.utils.checkpoint`: contexts of a block's forward pass, and of its repetition with equal draws.

    The repetition runs in the backward pass, where `seeded` has ended, on a GPU in another thread; torch puts back its
    own random numbers, this the rest.
    """
    return nullcontext(), nullcontext() if _active is None else _active.again()


class _Shared(TorchFunctionMode):
    """Draws what one process would for the batch of all, and gives each process the rows of its own part.

    Rows are known by the first dimension: a multiple of this process's batch. Other draws are the same in all
    processes, again as one would make them, also a single number for a whole batch (how much of the tail SMAP drops);
    where a process has but one row that number is taken for the row's. Each process's own are draws of more than
    SHARED_NUMBERS, and dropout inside attention kernels.

    Args:
        rows: of this process's batch.
        copies: draws of a multiple of rows * copies hold the batch so many times over (a head's `batch_mul`).
        own_seed: of draws too large to share.
    """

    def __init__(self, rows: int, rank: int, world: int, copies: int, own_seed: int) -> None:
        super().__init__()
        self.rows, self.rank, self.world, self.copies = rows, rank, world, copies
        self.own_seed = own_seed
        self.own: dict[torch.device, torch.Generator] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        kwargs.pop("generator", None)
        if func in (torch.rand, torch.randn):
            shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            shape = kwargs.pop("size", shape)
            return self._part(func, (), tuple(shape), kwargs)
        if func in (torch.rand_like, torch.randn_like):
            like, plain = args[0], torch.rand if func is torch.rand_like else torch.randn
            return self._part(plain, (), like.shape, {"dtype": like.dtype, "device": like.device, **kwargs})
        if func is torch.randint:
            bounds, shape = (args[:-1], args[-1]) if "size" not in kwargs else (args, kwargs.pop("size"))
            return self._part(func, bounds, tuple(shape), kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _part(self, func: Any, bounds: tuple[Any, ...], shape: tuple[int, ...], kwargs: dict[str, Any]) -> Tensor:
        if not shape or not shape[0] or shape[0] % self.rows:
            return func(*bounds, shape, **kwargs)
        numel = self.world * torch.Size(shape).numel()
        if numel > SHARED_NUMBERS:
            device = torch.device(kwargs.get("device") or "cpu")
            return func(*bounds, shape, generator=self._own_generator(device), **kwargs)
        copies = self.copies if shape[0] % (self.rows * self.copies) == 0 else 1
        whole = func(*bounds, (self.world * shape[0], *shape[1:]), **kwargs)
        parts = whole.view(copies, self.world, shape[0] // copies, *shape[1:])
        return parts[:, self.rank].reshape(shape)

    def again(self) -> _Shared:
        """A mode that draws from here on what this one will."""
        copy = _Shared(self.rows, self.rank, self.world, self.copies, self.own_seed)
        for device, generator in self.own.items():
            copy.own[device] = torch.Generator(device)
            copy.own[device].set_state(generator.get_state())
        return copy

    def _own_generator(self, device: torch.device) -> torch.Generator:
        if device not in self.own:
            self.own[device] = torch.Generator(device).manual_seed(self.own_seed)
        return self.own[device]

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0 or x.shape[0] % self.rows:
            return F.dropout(x, p, training)
        if self.world * x.numel() > SHARED_NUMBERS:
            kept = torch.rand(x.shape, device=x.device, generator=self._own_generator(x.device)) >= p
            return x * kept / (1 - p)
        ones = torch.ones(self.world * x.shape[0], *x.shape[1:], dtype=x.dtype, device=x.device)
        return x * F.dropout(ones, p, True)[self.rank * x.shape[0] : (self.rank + 1) * x.shape[0]]


_active: _Shared | None = None  # of the forward pass that this process is in


def copies_of(model: Any) -> int:
    """How many times over a model draws for each row of its batch: a diffusion head's `batch_mul`, else 1."""
    return int(getattr(getattr(getattr(model, "head", None), "config", None), "batch_mul", 1))

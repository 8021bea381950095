"""The processes of a training (torchrun), through accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

# How long processes wait for one that encodes a token cache or evaluates alone; torch's default is 10 minutes.
TIMEOUT = timedelta(hours=24)


def on_gloo() -> bool:
    """Whether there are several processes and no GPU; accelerate then needs `cpu=True`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def processes() -> PartialState:
    """accelerate's `PartialState`: rank and number of the processes, and this one's device."""
    from accelerate import PartialState

    return PartialState(cpu=on_gloo(), timeout=TIMEOUT)


@contextmanager
def first_process_first() -> Iterator[bool]:
    """Run the block in the first process before the others, so that it makes folders and caches for all of them.

    Yields whether this is the first process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    state = processes()
    with state.main_process_first():
        yield state.is_main_process

"""The processes of a training (torchrun), through accelerate."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from tok1d import errors
from tok1d.errors import reason_of

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
# How long processes wait for one that encodes a token cache or evaluates alone; torch's default is 10 minutes.
TIMEOUT = timedelta(hours=24)


def on_gloo() -> bool:
    """Whether there are several processes and no GPU; accelerate then needs `cpu=True`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def processes() -> PartialState:
    """accelerate's `PartialState`: rank and number of the processes, and this one's device."""
    from accelerate import PartialState

    atexit.unregister(_leave)
    atexit.register(_leave)
    return PartialState(cpu=on_gloo(), timeout=TIMEOUT)


def _leave() -> None:
    """Join the threads of gloo while the interpreter is whole; later they may abort a process that has finished."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the first process of the training."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or processes().is_main_process


def in_turn(step: Callable[[bool], T]) -> T:
    """Run `step(first)` in the first process, then in the others, and return this process's result.

    The first process can so make folders and caches for all of them. If a process fails, all of them end with its
    error.

    Raises:
        Tok1dError: what `step` raises, here or in another process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return step(True)
    from accelerate.utils import gather_object

    state = processes()
    result: T | None = None
    failure: BaseException | None = None
    for first in (True, False):
        if state.is_main_process == first:
            try:
                result = step(first)
            except (Exception, KeyboardInterrupt) as error:
                failure = error
        own = None if failure is None else (type(failure).__name__, reason_of(failure, 2000))
        told = next((each for each in gather_object([own]) if each is not None), None)
        if failure is not None:
            raise failure
        if told is not None:
            raise _named(*told)
    return cast(T, result)


def _named(name: str, message: str) -> BaseException:
    """An error of another process."""
    if name == "KeyboardInterrupt":
        return KeyboardInterrupt()
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.Tok1dError)):
        return errors.Tok1dError(f"another process ended with {name}: {message}")
    error = kind(message)
    error.elsewhere = True
    return error

"""What every generator offers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.nn.embed import ClassLabels


class Generator(Protocol):
    """A model of token sequences (B, K, D) or ids (B, K), given a class (B,) or nothing."""

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Scalars of one training step on (tokens, cond); entries named "loss..." are summed and minimised."""
        ...

    def sample(
        self,
        cond: Tensor | None = None,
        *,
        num: int | None = None,
        length: int | None = None,
        guidance: float | Guidance = 1.0,
        steps: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Raw tokens that the tokenizer can decode; `num` for unconditional models."""
        ...


def class_ids(table: ClassLabels, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Checked class ids (B,) for sampling; None is the null class.

    Raises:
        InputError: not (B,) integers, an id out of range, or no null class to stand for None.
    """
    if cond is None:
        if not table.has_null:
            raise InputError("this model was trained without class dropout: it needs class ids")
        return torch.full((batch,), table.null, device=device)
    if table.num_classes == 0:
        raise InputError("this model is unconditional: it takes no class ids, give num")
    if cond.dim() != 1 or cond.is_floating_point():
        raise InputError(f"expected class ids (B,) of integers, got {cond.dtype} of shape {tuple(cond.shape)}")
    if len(cond) and (int(cond.min()) < 0 or int(cond.max()) >= table.num_classes):
        raise InputError(f"class ids lie in 0..{table.num_classes - 1}, got {int(cond.min())}..{int(cond.max())}")
    return cond.to(device)


def training_ids(table: ClassLabels, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Class ids (B,) of a training step, some replaced by the null class; checked where that makes nothing wait."""
    if cond is None or table.num_classes == 0:
        cond = class_ids(table, None, batch, device)
    elif cond.device.type == "cpu":  # elsewhere a look at the ids would make the step wait for the device
        cond = class_ids(table, cond, batch, device)
    return table.drop(cond)

"""Captions as a model is told them: the states of a frozen text encoder, some of which are padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import InputError
from tok1d.nn.embed import Condition


class Captions(Condition):
    """Embeddings (B, T, E) of captions, T <= length, in place of class ids.

    Places that are zero in all E numbers are padding, as `tok1d.text.TextEncoder` fills up: no mask has to travel. A
    caption that is padding alone is none, the null condition, for which one learned vector stands in the first place.

    Args:
        dim: width E. length: most places T; shorter captions are filled up to it.
        dropout: probability of the null condition instead of the caption in training.
        null_row: whether None may stand for the null condition without dropout too.
    """

    def __init__(self, dim: int, length: int, dropout: float, *, null_row: bool = False) -> None:
        super().__init__(dropout, has_null=null_row or dropout > 0)
        self.dim, self.length = dim, length
        self.null_vector = nn.Parameter(torch.randn(1, dim) * 0.02)

    def given(self, cond: Tensor | None, batch: int, device: torch.device, *, look: bool = True) -> Tensor:
        """Captions (B, length, E) in the precision of the weights, see `Condition.given`."""
        if cond is None:
            if not self.has_null:
                raise InputError("this model was trained without class dropout: it needs captions")
            return self.null_vector.new_zeros(batch, self.length, self.dim)
        fits = cond.dim() == 3 and cond.is_floating_point() and cond.shape[2] == self.dim
        if not fits or cond.shape[1] > self.length:
            raise InputError(
                f"this model is told captions, expected embeddings (B, at most {self.length}, {self.dim}), "
                f"got {cond.dtype} of shape {tuple(cond.shape)}"
            )
        cond = cond.to(device, self.null_vector.dtype)
        return F.pad(cond, (0, 0, 0, self.length - cond.shape[1]))

    def drop(self, cond: Tensor, draws: Tensor | None = None) -> Tensor:
        """Captions (B, T, E), of which those whose draw is below `dropout` become the null condition."""
        if self.dropout == 0:
            return cond
        draws = torch.rand(len(cond), device=cond.device) if draws is None else draws
        return cond * (draws >= self.dropout)[:, None, None]

    def filled(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (B, T, E) with the null vector where there is none, and (B, T) bool, True where there is something.

        Every row has at least one True.
        """
        seen = cond.ne(0).any(-1)
        null = ~seen.any(1, keepdim=True) & (torch.arange(cond.shape[1], device=cond.device) == 0)
        return torch.where(null[..., None], self.null_vector, cond), seen | null

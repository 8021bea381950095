"""Captions as a condition: states of a frozen text encoder, padded to a common length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import InputError
from tok1d.nn.embed import Condition


class Captions(Condition):
    """The condition of a model that receives embeddings (B, T, E) of captions, T <= length, instead of class ids.

    `tok1d.zoo.pretrained.text.TextEncoder` pads with zeros: a position whose E channels are all zero is padding, so no
    separate mask is needed. A caption that is all padding is the null condition (no caption); `filled` puts a learned
    vector at its first position.

    Args:
        dim: width E.
        length: largest number of positions T; shorter captions are padded to it.
        dropout: probability of the null condition instead of the caption in training.
        null_row: whether there is a null condition without dropout as well.
    """

    def __init__(self, dim: int, length: int, dropout: float, *, null_row: bool = False) -> None:
        super().__init__(dropout, has_null=null_row or dropout > 0)
        self.dim, self.length = dim, length
        self.null_vector = nn.Parameter(torch.randn(1, dim) * 0.02)

    def checked(self, cond: Tensor | None, batch: int, device: torch.device, *, check_values: bool = True) -> Tensor:
        """Captions (B, length, E) in the precision of the weights; see `Condition.checked`."""
        if cond is None:
            if not self.has_null:
                raise InputError(
                    "expected captions, because this model has no null condition (trained without class dropout)"
                )
            return self.null_vector.new_zeros(batch, self.length, self.dim)
        fits = cond.dim() == 3 and cond.is_floating_point() and cond.shape[2] == self.dim
        if not fits or cond.shape[1] > self.length:
            raise InputError(
                f"this model is conditioned on captions, expected embeddings (B, at most {self.length}, {self.dim}), "
                f"got {cond.dtype} of shape {tuple(cond.shape)}"
            )
        cond = cond.to(device, self.null_vector.dtype)
        return F.pad(cond, (0, 0, 0, self.length - cond.shape[1]))

    def drop(self, cond: Tensor, u: Tensor | None = None) -> Tensor:
        """Captions (B, T, E) with some replaced by the null condition; see `Condition.drop`."""
        if self.dropout == 0:
            return cond
        u = torch.rand(len(cond), device=cond.device) if u is None else u
        return cond * (u >= self.dropout)[:, None, None]

    def filled(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (B, T, E) with the null vector in place of missing ones, and (B, T) bool, False for padding.

        Every row of the mask has at least one True.
        """
        present = cond.ne(0).any(-1)
        null = ~present.any(1, keepdim=True) & (torch.arange(cond.shape[1], device=cond.device) == 0)
        return torch.where(null[..., None], self.null_vector, cond), present | null

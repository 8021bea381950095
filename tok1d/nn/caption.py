"""Captions as a condition: states of a frozen text encoder, or ids of words, padded to a common length."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import InputError
from tok1d.nn.embed import Condition
from tok1d.nn.roles import WORDS, Roles
from tok1d.nn.values import has_values


class Captions(Condition):
    """The condition of a model that receives captions instead of class ids.

    A batch of captions is either their embeddings (B, T, E), T <= length, or with `words` the ids (B, T) of their
    words, 1..words, 0 for padding, which a learned table embeds.

    `tok1d.zoo.pretrained.text.TextEncoder` pads with zeros: a position whose E channels are all zero is padding, so no
    separate mask is needed. A caption that is all padding is the null condition (no caption); `filled` puts a learned
    vector at its first position.

    Args:
        dim: width E.
        length: largest number of positions T; shorter captions are padded to it.
        dropout: probability of the null condition instead of the caption in training.
        null_row: whether there is a null condition without dropout as well.
        words: number of words of the table; None for captions that are embedded already.
    """

    roles: ClassVar[Roles] = {"table": (WORDS,)}

    def __init__(
        self, dim: int, length: int, dropout: float, *, null_row: bool = False, words: int | None = None
    ) -> None:
        super().__init__(dropout, has_null=null_row or dropout > 0)
        self.dim, self.length, self.words = dim, length, words
        self.null_vector = nn.Parameter(torch.randn(1, dim) * 0.02)
        if words is not None:
            # The scale of a text encoder's states. A class table has 0.02, but no layer follows it: with one, a model
            # takes far longer to see the words.
            self.table = nn.Parameter(torch.randn(max(words, 1), dim))

    def checked(self, cond: Tensor | None, batch: int, device: torch.device, *, check_values: bool = True) -> Tensor:
        """Captions (B, length, E) in the precision of the weights, or ids (B, length); see `Condition.checked`."""
        if cond is None:
            if not self.has_null:
                raise InputError(
                    "expected captions, because this model has no null condition (trained without class dropout)"
                )
            if self.words is not None:
                return torch.zeros(batch, self.length, dtype=torch.int64, device=device)
            return self.null_vector.new_zeros(batch, self.length, self.dim)
        if self.words is not None:
            return self._checked_ids(cond.to(device), self.words, check_values=check_values)
        fits = cond.dim() == 3 and cond.is_floating_point() and cond.shape[2] == self.dim
        if not fits or cond.shape[1] > self.length:
            raise InputError(
                f"this model is conditioned on captions, expected embeddings (B, at most {self.length}, {self.dim}), "
                f"got {cond.dtype} of shape {tuple(cond.shape)}"
            )
        cond = cond.to(device, self.null_vector.dtype)
        return F.pad(cond, (0, 0, 0, self.length - cond.shape[1]))

    def _checked_ids(self, ids: Tensor, words: int, *, check_values: bool) -> Tensor:
        """Ids (B, length) of words."""
        if ids.dim() != 2 or ids.dtype != torch.int64 or ids.shape[1] > self.length:
            raise InputError(
                f"this model is conditioned on captions, expected ids (B, at most {self.length}) of words, int64, "
                f"got {ids.dtype} of shape {tuple(ids.shape)}"
            )
        if check_values and has_values(ids) and (int(ids.min()) < 0 or int(ids.max()) > words):
            raise InputError(f"ids of words: expected 0..{words}, got {int(ids.min())}..{int(ids.max())}")
        return F.pad(ids, (0, self.length - ids.shape[1]))

    def drop(self, cond: Tensor, u: Tensor | None = None) -> Tensor:
        """Captions (B, T, E) or (B, T) with some replaced by the null condition; see `Condition.drop`."""
        if self.dropout == 0:
            return cond
        u = torch.rand(len(cond), device=cond.device) if u is None else u
        return cond * (u >= self.dropout).view(-1, *[1] * (cond.dim() - 1))

    def filled(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, E), the null vector in place of missing captions, and (B, T) bool, False for padding.

        Padding is zero. Every row of the mask has at least one True.

        Args:
            cond: captions as `checked` returns them.
        """
        if self.words is None:
            present = cond.ne(0).any(-1)
        else:
            present = cond > 0
            cond = F.embedding((cond - 1).clamp(min=0), self.table) * present[..., None]
        null = ~present.any(1, keepdim=True) & (torch.arange(cond.shape[1], device=cond.device) == 0)
        return torch.where(null[..., None], self.null_vector, cond), present | null

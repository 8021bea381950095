"""Residual vector quantisation: a token becomes a sum of entries, one of each level's codebook.

RQ-VAE (arXiv 2203.01941, section 3.1); the levels of ImageFolder (arXiv 2410.01756).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.base import Bottleneck, Terms
from tok1d.bottleneck.vq import VQ
from tok1d.nn.precision import full_precision


class ResidualVQ(Bottleneck):
    """A linear layer to the token width, then levels: each selects the entry nearest to what the former ones left over.

    A sequence of ids contains the ids of all levels of token 0, then those of token 1, and so on, each in 0..K-1: the
    position of an id gives its level. Tokens and entries are not normalised, because the length of a residual matters.

    Args:
        dim: width of the encoder; 0: there is no linear layer, the input has the token width.
        levels: number n of levels.
        size: entries K of the codebook of a level.
        beta, entropy, revival, decay: see `VQ`, for each level.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        *,
        levels: int,
        size: int,
        beta: float = 0.25,
        entropy: float = 0.0,
        revival: bool = False,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim) if dim else nn.Identity()
        options = {"beta": beta, "entropy": entropy, "decay": decay}
        self.codebooks = nn.ModuleList(
            VQ(0, token_dim, size=size, l2=False, revival=revival, **options) for _ in range(levels)
        )
        self.vocab_size, self.levels = size, levels

    def _levels(self) -> list[VQ]:
        return [cast(VQ, level) for level in self.codebooks]

    def project(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> tokens (B, L, C) before quantisation, in the precision of the weights."""
        with full_precision(features):
            return self.proj(features.to(self._levels()[0].codebook.dtype))

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Terms]:
        """Tokens (B, L, C) -> sums of entries (B, L, C) with the tokens' gradient, ids (B, L * n), and scalars.

        The scalars are those of `VQ`, averaged over the levels. With revival, entries are moved in train mode.
        """
        total, ids, terms = torch.zeros_like(z), [], []
        for level in self._levels():
            entries, chosen, scalars = level.quantise(z - total)
            total = total + entries.detach()
            ids.append(chosen)
            terms.append(scalars)
        means = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
        return z + (total - z).detach(), torch.stack(ids, dim=-1).flatten(1), means

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> sums of entries (B, L, C), and scalars; see `quantise`."""
        with full_precision(features):
            entries, _, terms = self.quantise(self.project(features))
        return entries, terms

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> ids (B, L * n) int64."""
        rest, ids = self.project(features), []
        for level in self._levels():
            ids.append(level.distances(rest).argmin(-1))
            rest = rest - level.embed(ids[-1])
        return torch.stack(ids, dim=-1).flatten(1)

    def embed(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Ids (B, k) -> sums of the entries (B, ceil(k / n), C) of the ids that count, by default of all.

        Args:
            visible: (B, k) bool.
        """
        visible = torch.ones_like(tokens, dtype=torch.bool) if visible is None else visible
        missing = -tokens.shape[1] % self.levels
        ids, counts = (F.pad(each, (0, missing)).unflatten(1, (-1, self.levels)) for each in (tokens, visible))
        parts = [level.embed(ids[..., i]) * counts[..., i, None] for i, level in enumerate(self._levels())]
        return torch.stack(parts).sum(0)

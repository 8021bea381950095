"""Soft vector quantisation: tokens are convex combinations of codebook entries (SoftVQ-VAE, arXiv 2412.10958)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.base import Bottleneck, Terms
from tok1d.bottleneck.shared import code_statistics, count_codes
from tok1d.bottleneck.vq import entropy_loss, init_codebook
from tok1d.nn.precision import full_precision


class SoftVQ(Bottleneck):
    """A linear layer to the token width, then sum_k w_k c_k with weights w = softmax(z c^T / tau) over the entries c.

    Tokens stay continuous. With several codebooks the sequence is split into parts of equal length, each with a
    codebook of its own, or with `residual` each codebook approximates what the former ones left over of every token,
    and a token is the sum of the combinations. Similarities are computed without gradient to the codebook, which learns
    from the combination alone. It runs in the precision of the weights, under autocast as well.

    Args:
        size: entries K of a codebook.
        num_codebooks: number n of codebooks; divides the number of tokens unless `residual`.
        tau: temperature of the softmax; towards 0 the nearest entry is selected.
        l2: whether tokens and entries are normalised to length 1 first; combinations then have length at most 1.
        entropy: weight of the entropy loss; 0 leaves it out.
        residual: whether the codebooks are residual levels, which needs l2=False.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        *,
        size: int,
        num_codebooks: int = 1,
        tau: float = 0.07,
        l2: bool = True,
        entropy: float = 0.01,
        residual: bool = False,
    ) -> None:
        super().__init__()
        assert not (residual and l2), "a residual has no fixed length"
        self.residual = residual
        self.proj = nn.Linear(dim, token_dim)
        self.codebook = init_codebook((num_codebooks, size, token_dim), l2=l2)
        self.tau, self.l2, self.entropy = tau, l2, entropy

    def _combine(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (B, L, C) -> tokens and combinations (B, n, L/n, C), similarities and weights (B, n, L/n, K).

        With `residual` the residuals of the levels and their combinations (B, n, L, C), and (B, n, L, K).
        """
        if self.residual:
            return self._combine_levels(z)
        z = z.unflatten(1, (self.codebook.shape[0], -1))
        codes: Tensor = self.codebook
        if self.l2:
            z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
        similarity = z @ codes.detach().transpose(1, 2)
        weights = (similarity / self.tau).softmax(-1)
        return z, weights @ codes, similarity, weights

    def _combine_levels(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found: list[tuple[Tensor, ...]] = []
        for codes in self.codebook:
            similarity = z @ codes.detach().T
            weights = (similarity / self.tau).softmax(-1)
            found.append((z, weights @ codes, similarity, weights))
            z = z - found[-1][1].detach()
        rest, mixed, similarities, weights = (torch.stack(each, dim=1) for each in zip(*found))
        return rest, mixed, similarities, weights

    def _joined(self, parts: Tensor) -> Tensor:
        """Combinations (B, n, L/n, C), or with `residual` (B, n, L, C), as tokens (B, L, C)."""
        return parts.sum(1) if self.residual else parts.flatten(1, 2)

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Terms]:
        """Tokens (B, L, C) -> combinations (B, L, C), the ids (B, n, L/n) of the largest weights, and scalars.

        With `residual` the ids are (B, n, L).

        The scalars: "loss_entropy" (weighted); "max_weight", the mean of the largest weights; "cosine", the mean
        cosine similarity of tokens and combinations; "codes_used" in (0, 1] and "perplexity" in [1, n K] of these ids,
        in train mode over the batches of all processes.
        """
        z, mixed, similarity, weights = self._combine(z)
        largest, ids = weights.max(-1)
        num, size = self.codebook.shape[:2]
        # Ids of different codebooks are counted apart.
        shifted = ids + size * torch.arange(num, device=ids.device)[:, None]
        terms = {
            "max_weight": largest.detach().mean(),
            "cosine": F.cosine_similarity(z.detach(), mixed.detach(), dim=-1).mean(),
            **code_statistics(count_codes(shifted, num * size, shared=self.training)),
        }
        if self.entropy:
            terms["loss_entropy"] = self.entropy * entropy_loss(similarity, eps=1e-6, shared=self.training)
        return self._joined(mixed), ids, terms

    def project(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> tokens (B, L, C) before the combination."""
        return self.proj(features.to(self.proj.weight.dtype))

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> combinations (B, L, C), and scalars; see `quantise`."""
        with full_precision(features):
            mixed, _, terms = self.quantise(self.project(features))
        return mixed, terms

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> combinations (B, L, C)."""
        with full_precision(features):
            return self._joined(self._combine(self.project(features))[1])

"""Soft vector quantisation: tokens become convex combinations of codebook entries (SoftVQ-VAE, arXiv 2412.10958)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.plain import Terms
from tok1d.bottleneck.shared import code_statistics, count_codes
from tok1d.bottleneck.vq import entropy_loss, init_codebook
from tok1d.nn.precision import full_precision


class SoftVQ(nn.Module):
    """Linear to the token width, then the codebook's mean under softmax(similarity / tau). Tokens stay continuous.

    The sequence is cut into as many parts of equal length as there are codebooks, each with its own. The similarities
    see the codebook without gradient: it learns from the combination alone. All this is in the precision of the weights
    under autocast too.

    Args:
        size: entries K of a codebook.
        num_codebooks: must divide the number of tokens.
        tau: temperature; towards 0 it is the nearest entry.
        l2: tokens and entries are put on the unit sphere first, so results lie in the unit ball.
        entropy: weight of the entropy loss; 0 leaves it out.
    """

    vocab_size: int | None = None

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
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim)
        self.codebook = init_codebook((num_codebooks, size, token_dim), l2=l2)
        self.tau, self.l2, self.entropy = tau, l2, entropy

    def _combine(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens and their combinations (B, n, L/n, C), similarities and weights (B, n, L/n, K); n codebooks."""
        z = z.unflatten(1, (self.codebook.shape[0], -1))
        codes: Tensor = self.codebook
        if self.l2:
            z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
        similarity = z @ codes.detach().transpose(1, 2)
        weights = (similarity / self.tau).softmax(-1)
        return z, weights @ codes, similarity, weights

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Terms]:
        """Tokens (B, L, C) -> combinations (B, L, C), largest entries (B, n, L/n) for n codebooks, and scalars.

        The scalars are "loss_entropy" (weighted), "max_weight" and "cosine" (means over the tokens of the largest
        weight, and of the similarity before and after), and of the largest entries of the batch, in training that of
        all processes, "codes_used" in (0, 1] and "perplexity" in [1, n K].
        """
        z, mixed, similarity, weights = self._combine(z)
        largest, ids = weights.max(-1)
        num, size = self.codebook.shape[:2]
        # Every codebook has a vocabulary of its own.
        shifted = ids + size * torch.arange(num, device=ids.device)[:, None]
        terms = {
            "max_weight": largest.detach().mean(),
            "cosine": F.cosine_similarity(z.detach(), mixed.detach(), dim=-1).mean(),
            **code_statistics(count_codes(shifted, num * size, shared=self.training)),
        }
        if self.entropy:
            terms["loss_entropy"] = self.entropy * entropy_loss(similarity, eps=1e-6, shared=self.training)
        return mixed.flatten(1, 2), ids, terms

    def project(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> tokens (B, L, C) that are not combined yet."""
        return self.proj(features.to(self.proj.weight.dtype))

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> combinations (B, L, C), and scalars; see `quantise`."""
        with full_precision(features):
            mixed, _, terms = self.quantise(self.project(features))
        return mixed, terms

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> combinations (B, L, C)."""
        with full_precision(features):
            return self._combine(self.project(features))[1].flatten(1, 2)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens are what the decoder reads. (B, L, C) -> (B, L, C)."""
        return tokens

"""Vector quantisation: every token becomes the nearest entry of a codebook (arXiv 1711.00937)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.plain import Terms


def entropy_loss(affinity: Tensor, *, eps: float, temperature: float = 0.01) -> Tensor:
    """Mean entropy of the assignments minus the entropy of their mean: sharp for a token, even over the codebook.

    Args:
        affinity: (..., K), larger is nearer; softmax(affinity / temperature) are the assignments.
        eps: inside the logarithm of the mean assignment.
    """
    logits = affinity.flatten(0, -2).float() / temperature
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = p.mean(0)
    return -(p * log_p).sum(-1).mean() + (mean * (mean + eps).log()).sum()


def init_codebook(shape: tuple[int, ...], *, l2: bool) -> nn.Parameter:
    """Entries (..., K, C), uniform in +-1 / K, then put on the sphere where codes are compared there."""
    codebook = torch.empty(shape).uniform_(-1 / shape[-2], 1 / shape[-2])
    return nn.Parameter(F.normalize(codebook, dim=-1) if l2 else codebook)


def used_share(ids: Tensor, size: int) -> Tensor:
    """Share of a vocabulary that occurs in ids of any shape; a number in (0, 1]."""
    # No unique or bincount: they wait for the device.
    return torch.zeros(size, device=ids.device).index_fill_(0, ids.flatten(), 1.0).mean()


class VQ(nn.Module):
    """Linear to the token width, then the nearest codebook entry (Euclidean); gradients pass straight through.

    Args:
        size: entries K of the codebook.
        l2: compare, and decode, tokens and entries on the unit sphere.
        beta: weight of the commitment loss.
        entropy: weight of the entropy loss; 0 leaves it out.
    """

    def __init__(
        self, dim: int, token_dim: int, *, size: int, l2: bool = True, beta: float = 0.25, entropy: float = 0.0
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim)
        self.codebook = init_codebook((size, token_dim), l2=l2)
        self.vocab_size: int | None = size
        self.l2, self.beta, self.entropy = l2, beta, entropy

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.l2 else x

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances of tokens (B, L, C) to the entries, (B, L, K)."""
        z, codes = self._unit(z), self._unit(self.codebook)
        return z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * z @ codes.T

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Terms]:
        """Tokens (B, L, C) -> entries (B, L, C) with the tokens' gradient, ids (B, L), and scalars.

        The scalars are "loss_vq", "loss_commit", "loss_entropy" (weighted), and "codes_used" of this batch in (0, 1].
        """
        distances = self.distances(z)
        ids = distances.argmin(-1)
        z, codes = self._unit(z), self.embed(ids)
        terms = {
            "loss_vq": F.mse_loss(codes, z.detach()),
            "loss_commit": self.beta * F.mse_loss(z, codes.detach()),
            "codes_used": used_share(ids, self.codebook.shape[0]),
        }
        if self.entropy:
            terms["loss_entropy"] = self.entropy * entropy_loss(-distances, eps=1e-5)
        return z + (codes - z).detach(), ids, terms

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> entries (B, L, C), and scalars; see `quantise`."""
        entries, _, terms = self.quantise(self.proj(features))
        return entries, terms

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> ids (B, L) int64."""
        return self.distances(self.proj(features)).argmin(-1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) -> entries (B, L, C)."""
        return self._unit(F.embedding(tokens, self.codebook))

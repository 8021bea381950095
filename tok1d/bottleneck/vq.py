"""Vector quantisation: every token becomes the nearest entry of a codebook (arXiv 1711.00937)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.plain import Terms
from tok1d.bottleneck.shared import (
    code_statistics,
    count_codes,
    mean_of_processes,
    nearest_rows,
)
from tok1d.nn.precision import full_precision


def entropy_loss(affinity: Tensor, *, eps: float, temperature: float = 0.01, shared: bool = False) -> Tensor:
    """Mean entropy of the assignments minus the entropy of their mean: sharp for a token, even over the codebook.

    Args:
        affinity: (..., K), larger is nearer; softmax(affinity / temperature) are the assignments.
        eps: inside the logarithm of the mean assignment.
        shared: the mean is over the batches of all processes, every one of which has to call.
    """
    logits = affinity.flatten(0, -2).float() / temperature
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = mean_of_processes(p.mean(0)) if shared else p.mean(0)
    return -(p * log_p).sum(-1).mean() + (mean * (mean + eps).log()).sum()


def init_codebook(shape: tuple[int, ...], *, l2: bool) -> nn.Parameter:
    """Entries (..., K, C), uniform in +-1 / K, then put on the sphere where codes are compared there."""
    codebook = torch.empty(shape).uniform_(-1 / shape[-2], 1 / shape[-2])
    return nn.Parameter(F.normalize(codebook, dim=-1) if l2 else codebook)


class VQ(nn.Module):
    """Linear to the token width, then the nearest codebook entry (Euclidean); gradients pass straight through.

    Distances and losses are those of float32 weights under autocast too.

    Args:
        size: entries K of the codebook.
        l2: compare, and decode, tokens and entries on the unit sphere.
        beta: weight of the commitment loss.
        entropy: weight of the entropy loss; 0 leaves it out.
        revival: in training, entries that are hardly used move to their nearest token (CVQ, arXiv 2307.15139).
        decay: of the running usage that tells which these are.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        *,
        size: int,
        l2: bool = True,
        beta: float = 0.25,
        entropy: float = 0.0,
        revival: bool = False,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim)
        self.codebook = init_codebook((size, token_dim), l2=l2)
        self.vocab_size: int | None = size
        self.l2, self.beta, self.entropy = l2, beta, entropy
        self.decay = decay
        self.moving = ("codebook",) if revival else ()  # what the forward pass itself changes, beside buffers
        self.register_buffer("usage", torch.zeros(size) if revival else None)
        self.usage: Tensor | None

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.l2 else x

    def project(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> tokens (B, L, C) that are not quantised yet, in the precision of the weights."""
        with full_precision(features):
            return self.proj(features.to(self.proj.weight.dtype))

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances of tokens (B, L, C) to the entries, (B, L, K)."""
        # A copy where entries move before the backward pass, which needs what they were.
        codebook = self.codebook if self.usage is None else self.codebook.clone()
        with full_precision(z):
            z, codes = self._unit(z), self._unit(codebook)
            return z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * z @ codes.T

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Terms]:
        """Tokens (B, L, C) -> entries (B, L, C) with the tokens' gradient, ids (B, L), and scalars.

        The scalars are "loss_vq", "loss_commit", "loss_entropy" (weighted), and of the batch, in training that of all
        processes, "codes_used" in (0, 1] and "perplexity" in [1, K]. With revival, training moves entries afterwards.
        """
        distances = self.distances(z)
        ids = distances.argmin(-1)
        unit, codes = self._unit(z), self.embed(ids)
        counts = count_codes(ids, self.codebook.shape[0], shared=self.training)
        terms = {
            "loss_vq": F.mse_loss(codes, unit.detach()),
            "loss_commit": self.beta * F.mse_loss(unit, codes.detach()),
            **code_statistics(counts),
        }
        if self.entropy:
            terms["loss_entropy"] = self.entropy * entropy_loss(-distances, eps=1e-5, shared=self.training)
        if self.training and self.usage is not None:
            self.revive(z, distances, counts)
        return unit + (codes - unit).detach(), ids, terms

    @torch.no_grad()
    def revive(self, z: Tensor, distances: Tensor, counts: Tensor) -> None:
        """Move each entry towards its nearest token (not normalised), the more the less it is used.

        The running usage u is updated first; an entry keeps the share 1 - exp(-10 K u / (1 - decay) - 0.001).

        Args:
            z: tokens (B, L, C) of this process. distances: theirs (B, L, K). counts: uses (K,) in all processes.
        """
        assert self.usage is not None, "a codebook without revival"
        self.usage.mul_(self.decay).add_(counts / counts.sum(), alpha=1 - self.decay)
        share = torch.exp(-10 * len(self.usage) * self.usage / (1 - self.decay) - 1e-3)[:, None]
        nearest = nearest_rows(z.flatten(0, -2), distances.flatten(0, -2)).to(self.codebook.dtype)
        self.codebook.lerp_(nearest, share.to(nearest.dtype).expand_as(nearest))

    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """(B, L, dim) -> entries (B, L, C), and scalars; see `quantise`."""
        with full_precision(features):
            entries, _, terms = self.quantise(self.project(features))
        return entries, terms

    def encode(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> ids (B, L) int64."""
        return self.distances(self.project(features)).argmin(-1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) -> entries (B, L, C)."""
        return self._unit(F.embedding(tokens, self.codebook))

"""Vector quantisation: every token becomes the nearest entry of a codebook (VQ-VAE, arXiv 1711.00937)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.bottleneck.base import Bottleneck, Terms
from tok1d.bottleneck.shared import (
    code_statistics,
    count_codes,
    mean_of_processes,
    nearest_rows,
)
from tok1d.nn.precision import full_precision


def entropy_loss(affinity: Tensor, *, eps: float, temperature: float = 0.01, shared: bool = False) -> Tensor:
    """Mean entropy of the assignments minus the entropy of the mean assignment, in nats.

    Its minimum has confident assignments of each token and an even use of the codebook.

    Args:
        affinity: (..., K), larger is nearer; the assignments are softmax(affinity / temperature).
        eps: added inside the logarithm of the mean assignment.
        shared: whether the mean assignment is over all processes, which then all have to call this.
    """
    logits = affinity.flatten(0, -2).float() / temperature
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = mean_of_processes(p.mean(0)) if shared else p.mean(0)
    return -(p * log_p).sum(-1).mean() + (mean * (mean + eps).log()).sum()


def init_codebook(shape: tuple[int, ...], *, l2: bool) -> nn.Parameter:
    """Entries (..., K, C), uniform in [-1/K, 1/K]; with `l2` then normalised to length 1."""
    codebook = torch.empty(shape).uniform_(-1 / shape[-2], 1 / shape[-2])
    return nn.Parameter(F.normalize(codebook, dim=-1) if l2 else codebook)


class VQ(Bottleneck):
    """A linear layer to the token width, then the nearest codebook entry (Euclidean), with a straight-through gradient.

    Distances and losses are computed in the precision of the weights, under autocast as well.

    Args:
        dim: width of the encoder; 0: there is no linear layer, the input has the token width.
        size: entries K of the codebook.
        l2: whether tokens and entries are normalised to length 1, for distances and for the decoder.
        beta: weight of the commitment loss.
        entropy: weight of the entropy loss; 0 leaves it out.
        revival: whether in training entries that are rarely used move to their nearest token (CVQ, arXiv 2307.15139).
        decay: decay of the running usage of entries, which `revival` reads.
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
        self.proj = nn.Linear(dim, token_dim) if dim else nn.Identity()
        self.codebook = init_codebook((size, token_dim), l2=l2)
        self.vocab_size: int | None = size
        self.l2, self.beta, self.entropy = l2, beta, entropy
        self.decay = decay
        self.moving = ("codebook",) if revival else ()  # parameters that the forward pass changes in place
        self.register_buffer("usage", torch.zeros(size) if revival else None)
        self.usage: Tensor | None

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.l2 else x

    def project(self, features: Tensor) -> Tensor:
        """(B, L, dim) -> tokens (B, L, C) before quantisation, in the precision of the weights."""
        with full_precision(features):
            return self.proj(features.to(self.codebook.dtype))

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances of tokens (B, L, C) to the entries, (B, L, K)."""
        # Revival changes entries before the backward pass, which needs the old values: a copy.
        codebook = self.codebook if self.usage is None else self.codebook.clone()
        with full_precision(z):
            z, codes = self._unit(z), self._unit(codebook)
            return z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * z @ codes.T

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Terms]:
        """Tokens (B, L, C) -> entries (B, L, C) with the tokens' gradient, ids (B, L), and scalars.

        The scalars: "loss_vq", "loss_commit" and "loss_entropy" (weighted); "codes_used" in (0, 1] and "perplexity" in
        [1, K], in train mode over the batches of all processes. With revival, entries are moved afterwards in train
        mode.
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
        """Move each entry c towards its nearest token z: c <- (1 - a) c + a z, a = exp(-10 K u / (1 - decay) - 0.001).

        u is the running usage of the entry, updated first; rarely used entries move most.

        Args:
            z: tokens (B, L, C) of this process, not normalised.
            distances: their distances (B, L, K) to the entries.
            counts: uses (K,) of the entries, over all processes.
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

    def embed(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Ids (B, L) -> entries (B, L, C); `visible` is not read."""
        return self._unit(F.embedding(tokens, self.codebook))

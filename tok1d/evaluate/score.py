"""The Inception Score (Salimans et al., 2016) from sums, so that shards of a set can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tok1d.errors import DataError

ADM_CHUNK = 5000


@dataclass(frozen=True)
class Score:
    """exp of the mean divergence of an image's classes from all images' classes; mean and spread over chunks.

    `std` is the population's, over the chunks (0 where there is one).
    """

    mean: float
    std: float
    num_chunks: int


class ScoreSums:
    """Sums of p and of p log p over images, in float64, for each chunk of `chunk` successive image numbers.

    The ADM suite takes chunks of 5000 images in their order, the last one as small as it comes, and reports the mean
    of their scores; torch-fidelity shuffles and takes 10 chunks. Image i is in chunk i // chunk, whoever measures it.

    Args:
        chunk: images of a chunk; None: all images are one.
    """

    def __init__(self, num_classes: int, chunk: int | None = ADM_CHUNK) -> None:
        if chunk is not None and chunk < 1:
            raise DataError(f"chunk: expected at least one image, or None for all, got {chunk}")
        self.num_classes, self.chunk = num_classes, chunk
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._logs = torch.zeros(0, dtype=torch.float64)
        self._sums = torch.zeros(0, num_classes, dtype=torch.float64)

    def update(self, logits: Tensor, indices: Tensor) -> Self:
        """Add logits (B, C) of the images of these numbers (B,) >= 0."""
        log_p = logits.detach().to("cpu", torch.float64).log_softmax(dim=1)
        p = log_p.exp()
        chunks = torch.zeros_like(indices) if self.chunk is None else indices // self.chunk
        self._grow(int(chunks.max()) + 1 if len(chunks) else 0)
        self._counts.index_add_(0, chunks, torch.ones_like(chunks))
        self._logs.index_add_(0, chunks, (p * log_p).sum(dim=1))
        self._sums.index_add_(0, chunks, p)
        return self

    def merge(self, other: ScoreSums) -> Self:
        """Add everything that `other` has counted; raises DataError where it counts other classes or chunks."""
        if (other.num_classes, other.chunk) != (self.num_classes, self.chunk):
            raise DataError(
                f"score sums: expected {self.num_classes} classes in chunks of {self.chunk}, got {other.num_classes} "
                f"in chunks of {other.chunk}"
            )
        size = len(other._counts)
        self._grow(size)
        self._counts[:size] += other._counts
        self._logs[:size] += other._logs
        self._sums[:size] += other._sums
        return self

    def _grow(self, size: int) -> None:
        more = size - len(self._counts)
        if more > 0:
            self._counts = torch.cat([self._counts, self._counts.new_zeros(more)])
            self._logs = torch.cat([self._logs, self._logs.new_zeros(more)])
            self._sums = torch.cat([self._sums, self._sums.new_zeros(more, self.num_classes)])

    def score(self) -> Score:
        """Mean and spread over the chunks; raises DataError before the first image."""
        met = self._counts > 0
        if not met.any():
            raise DataError("an Inception Score needs images, got none")
        counts = self._counts[met].double()
        marginal = self._sums[met] / counts[:, None]
        divergence = self._logs[met] / counts - torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return Score(float(scores.mean()), float(scores.std(correction=0)), len(scores))

    def state_dict(self) -> dict[str, Tensor | int]:
        """What `from_state` needs: numbers and tensors; chunk 0 stands for one of all images."""
        return {"chunk": self.chunk or 0, "counts": self._counts, "logs": self._logs, "sums": self._sums}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | int]) -> ScoreSums:
        """The sums that gave this state."""
        counts, logs, totals = (torch.as_tensor(state[key]).clone() for key in ("counts", "logs", "sums"))
        sums = cls(totals.shape[1], int(state["chunk"]) or None)
        sums._counts, sums._logs, sums._sums = counts, logs, totals
        return sums


def inception_score(logits: Tensor, *, chunk: int | None = ADM_CHUNK) -> Score:
    """The score of logits (N, C), in their order; see `ScoreSums`."""
    return ScoreSums(logits.shape[1], chunk).update(logits, torch.arange(len(logits))).score()

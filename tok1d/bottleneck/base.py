"""The interface of the bottlenecks that tokenizers can choose from: plain, KL, VQ and SoftVQ."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

Terms = dict[str, Tensor]


class Bottleneck(nn.Module):
    """From encoder states (B, L, dim) to tokens (B, L, C) or ids (B, L), and to the input (B, L, C) of the decoder.

    Attributes:
        vocab_size: number of ids; None where tokens are continuous.
    """

    vocab_size: int | None = None

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """One training step: the input of the decoder (B, L, C), and scalars.

        The scalars named "loss_..." are weighted already and are added to the training loss; others are logged.
        """

    @abstractmethod
    def encode(self, features: Tensor) -> Tensor:
        """The tokens (B, L, C), or ids (B, L) int64; deterministic."""

    def embed(self, tokens: Tensor) -> Tensor:
        """The input of the decoder for tokens (B, L, C) or ids (B, L): continuous tokens themselves. -> (B, L, C)."""
        return tokens

"""The interface of the bottlenecks that tokenizers can choose from: plain, KL, VQ and SoftVQ."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

Terms = dict[str, Tensor]


class Bottleneck(nn.Module):
    """From encoder states (B, L, dim) to tokens (B, L, C) or ids (B, L * levels), and to the decoder's input (B, L, C).

    Attributes:
        vocab_size: number of ids; None where tokens are continuous.
        levels: ids of a token, next to each other in a sequence of ids.
    """

    vocab_size: int | None = None
    levels: int = 1

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, Terms]:
        """One training step: the input of the decoder (B, L, C), and scalars.

        The scalars named "loss_..." are weighted already and are added to the training loss; others are logged.
        """

    @abstractmethod
    def encode(self, features: Tensor) -> Tensor:
        """The tokens (B, L, C), or ids (B, L * levels) int64; deterministic."""

    def embed(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """The input (B, L, C) of the decoder for tokens (B, L, C), which it is itself, or for ids (B, k).

        Args:
            visible: (B, k) bool, which ids count. Read with several `levels` alone, where k need not be a multiple of
                them: a token is then made from those of its ids that count.
        """
        return tokens

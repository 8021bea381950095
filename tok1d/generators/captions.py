"""Captions as the condition of a generator: one vector, or one input per sub-word or word."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.caption import Captions


class CaptionVectors(Captions):
    """The mean of a caption's embeddings, without padding, and a projection. (B, T, E) or (B, T) -> (B, dim).

    Args:
        text_dim: width E of the embeddings.
        length: largest number of sub-words or words T.
        dropout: probability of the null condition in training.
        words: see `Captions`.
    """

    def __init__(self, text_dim: int, length: int, dim: int, dropout: float, words: int | None = None) -> None:
        super().__init__(text_dim, length, dropout, words=words)
        self.proj = nn.Linear(text_dim, dim)

    def forward(self, captions: Tensor) -> Tensor:
        embeddings, visible = self.filled(captions)
        # Padding is zero, so it adds nothing to the sum.
        return self.proj(embeddings.sum(1) / visible.sum(1, keepdim=True))


class CaptionPrefix(Captions):
    """A caption's embeddings through two linear layers, as inputs before the ids (LlamaGen, arXiv 2406.06525).

    Padding comes first, so that the input before the first id is the caption's last sub-word, whatever its length.

    Args:
        text_dim: width E of the embeddings.
        length: largest number of sub-words or words T.
        dropout: probability of the null condition in training.
        words: see `Captions`.
    """

    def __init__(self, text_dim: int, length: int, dim: int, dropout: float, words: int | None = None) -> None:
        super().__init__(text_dim, length, dropout, words=words)
        self.fc1 = nn.Linear(text_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, E) or (B, T) -> (B, T, dim), and (B, T) bool, False for padding."""
        embeddings, visible = self.filled(captions)
        order = visible.to(torch.uint8).argsort(dim=1, stable=True)
        embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
        return self.fc2(F.gelu(self.fc1(embeddings), approximate="tanh")), visible.gather(1, order)


def causal_after_padding(visible: Tensor, length: int) -> Tensor:
    """Causal attention without padding: what each of `length` positions may attend to, (B, 1, length, length) bool.

    A position of padding attends to itself, because attention over nothing is not defined.

    Args:
        visible: (B, T) bool, False for padding among the first T positions.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    allowed = F.pad(visible, (0, length - visible.shape[1]), value=True)[:, None, None]
    return causal & (allowed | torch.eye(length, dtype=torch.bool, device=visible.device))

"""Captions as generators are told them: one vector, or as many as the caption has sub-words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.nn.caption import Captions


class CaptionVectors(Captions):
    """The mean of a caption's embeddings, padding left out, through a projection. (B, T, E) -> (B, dim).

    Args:
        text_dim: width E. length: most sub-words T.
    """

    def __init__(self, text_dim: int, length: int, dim: int, dropout: float) -> None:
        super().__init__(text_dim, length, dropout)
        self.proj = nn.Linear(text_dim, dim)

    def forward(self, captions: Tensor) -> Tensor:
        embeddings, seen = self.filled(captions)
        # What is padding is zero, so that it adds nothing.
        return self.proj(embeddings.sum(1) / seen.sum(1, keepdim=True))


class CaptionPrefix(Captions):
    """A caption's embeddings through two linear layers, before the ids (LlamaGen, arXiv 2406.06525, text-to-image).

    Padding goes first, so that the place before the first id is always the caption's last, however long it is.

    Args:
        text_dim: width E. length: most sub-words T.
    """

    def __init__(self, text_dim: int, length: int, dim: int, dropout: float) -> None:
        super().__init__(text_dim, length, dropout)
        self.fc1 = nn.Linear(text_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, E) -> (B, T, dim), and (B, T) bool, False for padding."""
        embeddings, seen = self.filled(captions)
        order = seen.to(torch.uint8).argsort(dim=1, stable=True)
        embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
        return self.fc2(F.gelu(self.fc1(embeddings), approximate="tanh")), seen.gather(1, order)


def causal_behind(seen: Tensor, length: int) -> Tensor:
    """What each of `length` places may attend to, (B, 1, length, length) bool: no later one, and no padding.

    A place of padding sees itself, so that no place sees nothing.

    Args:
        seen: (B, T) bool, False for padding among the first T places.
    """
    places = torch.ones(length, length, dtype=torch.bool, device=seen.device)
    allowed = F.pad(seen, (0, length - seen.shape[1]), value=True)[:, None, None]
    return places.tril() & (allowed | torch.eye(length, dtype=torch.bool, device=seen.device))

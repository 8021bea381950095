"""What a tokenizer is told of an image, as tokens of the encoder's and of the decoder's sequence: its class, out of one
table, as one token, or its caption as one a sub-word."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from tok1d.nn.caption import Captions
from tok1d.nn.embed import Condition, LabelEmbed, class_ids, training_ids

ConditionTokens = tuple[
    Tensor, Tensor | None
]  # tokens (B, T, dim), and (B, T) bool, True for those that are seen; None: all


class SharedCondition(nn.Module):
    """What both sides share: a condition's vectors of the encoder's width, from which a layer leads to the decoder's.

    Subclasses make what gives the vectors, then call `make_sides`, then draw their initial weights.
    """

    def make_sides(self, dim: int, decoder_dim: int, length: int) -> None:
        """Make the layers and positions of both sides.

        Args:
            dim: width of the encoder, and of the vectors. decoder_dim: where it differs, a linear layer leads there.
            length: tokens that the condition becomes on each side.
        """
        self.proj = nn.Linear(dim, decoder_dim) if decoder_dim != dim else nn.Identity()
        self.encoder_position = nn.Parameter(torch.zeros(1, length, dim))
        self.decoder_position = nn.Parameter(torch.zeros(1, length, decoder_dim))

    def init_sides(self) -> None:
        """Truncated normal with std 0.02, zero biases."""
        for position in (self.encoder_position, self.decoder_position):
            nn.init.trunc_normal_(position, std=0.02)
        if isinstance(self.proj, nn.Linear):
            nn.init.trunc_normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)

    @property
    @abstractmethod
    def source(self) -> Condition:
        """Where conditions are checked and dropped."""

    @abstractmethod
    def shared(self, cond: Tensor) -> ConditionTokens:
        """The vectors (B, length, dim) of a condition."""

    def given(self, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """The checked condition of a batch, the null one for None; in train mode some are dropped to it.

        Raises:
            InputError: another kind of condition, or out of range (in train mode only looked at on the CPU).
        """
        return (training_ids if self.training else class_ids)(self.source, cond, batch, device)

    def for_encoder(self, cond: Tensor) -> ConditionTokens:
        """A `given` condition as tokens (B, length, dim)."""
        vectors, seen = self.shared(cond)
        return vectors + self.encoder_position, seen

    def for_decoder(self, cond: Tensor) -> ConditionTokens:
        """A `given` condition as tokens (B, length, decoder_dim)."""
        vectors, seen = self.shared(cond)
        return self.proj(vectors) + self.decoder_position, seen


class ClassCondition(SharedCondition):
    """A table of num_classes + 1 rows that encoder and decoder share, the last one the null class (SMAP, section 3.1).

    Args:
        dim: width of the encoder, and of the table's rows. decoder_dim: see `make_sides`.
        dropout: probability of the null class instead of the label in training; at 0 the null row is never trained.
    """

    def __init__(self, num_classes: int, dim: int, decoder_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.label_embed = LabelEmbed(num_classes, dim, dropout, null_row=True)
        self.make_sides(dim, decoder_dim, 1)
        nn.init.normal_(self.label_embed.table.weight, std=0.02)
        self.init_sides()

    @property
    def source(self) -> LabelEmbed:
        return self.label_embed

    def shared(self, cond: Tensor) -> ConditionTokens:
        """The rows of class ids (B,), (B, 1, dim)."""
        return self.label_embed(cond)[:, None], None


class TextCondition(SharedCondition):
    """The embeddings (B, T, E) of captions, which one layer leads to the encoder's width: T tokens, padding unseen.

    Args:
        text_dim: width E. length: most sub-words T. dim, decoder_dim: see `make_sides`.
        dropout: probability of no caption in training; at 0 the null vector is trained by images without one alone.
    """

    def __init__(self, text_dim: int, length: int, dim: int, decoder_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.captions = Captions(text_dim, length, dropout, null_row=True)
        self.text_proj = nn.Linear(text_dim, dim)
        self.make_sides(dim, decoder_dim, length)
        nn.init.trunc_normal_(self.text_proj.weight, std=0.02)
        nn.init.zeros_(self.text_proj.bias)
        self.init_sides()

    @property
    def source(self) -> Captions:
        return self.captions

    def shared(self, cond: Tensor) -> ConditionTokens:
        """Captions (B, T, E) as (B, T, dim)."""
        embeddings, seen = self.captions.filled(cond)
        return self.text_proj(embeddings), seen

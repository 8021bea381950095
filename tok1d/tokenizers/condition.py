"""Conditions of a tokenizer as tokens in the sequences of encoder and decoder: the class as one token, or a caption as
one token per sub-word."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tok1d.nn.caption import Captions
from tok1d.nn.embed import Condition, LabelEmbed, checked_cond, training_cond

# Tokens (B, T, dim), and (B, T) bool, False for tokens that are masked as attention keys; None: none is masked.
ConditionTokens = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Widths:
    """Widths of the networks that read a condition.

    Args:
        encoder: width of the encoder, and of the condition vectors.
        decoder: width of the decoder; a linear layer maps to it if it differs. None: the decoder reads no condition.
        encoder_reads: whether the encoder reads the condition.
    """

    encoder: int
    decoder: int | None
    encoder_reads: bool = True


class SharedCondition(nn.Module):
    """Condition vectors that encoder and decoder share, of the encoder's width, and a layer to the decoder's width.

    A network that does not read the condition has no parameters here. The constructor of a subclass builds its
    embedding, calls `make_sides`, and initialises its weights.
    """

    def make_sides(self, widths: Widths, length: int) -> None:
        """Build the positions of both sides and the layer to the decoder's width, for `length` condition tokens."""
        dim, decoder_dim = widths.encoder, widths.decoder
        self.proj = nn.Linear(dim, decoder_dim) if decoder_dim and decoder_dim != dim else nn.Identity()
        self.encoder_position = nn.Parameter(torch.zeros(1, length, dim)) if widths.encoder_reads else None
        self.decoder_position = nn.Parameter(torch.zeros(1, length, decoder_dim)) if decoder_dim else None

    def init_sides(self) -> None:
        """Initialise these positions and the layer: truncated normal with std 0.02, zero biases."""
        for position in (self.encoder_position, self.decoder_position):
            if position is not None:
                nn.init.trunc_normal_(position, std=0.02)
        if isinstance(self.proj, nn.Linear):
            nn.init.trunc_normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)

    @property
    @abstractmethod
    def source(self) -> Condition:
        """The module that checks conditions and drops them in training."""

    @abstractmethod
    def shared(self, cond: Tensor) -> ConditionTokens:
        """The vectors (B, length, dim) of a checked condition."""

    def checked(self, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """The checked condition of a batch, the null condition for None; in train mode some are replaced by it.

        Raises:
            InputError: another kind of condition, or a class id out of range (in train mode only checked on the CPU).
        """
        return (training_cond if self.training else checked_cond)(self.source, cond, batch, device)

    def for_encoder(self, cond: Tensor) -> ConditionTokens:
        """A checked condition as tokens (B, length, dim) of the encoder."""
        assert self.encoder_position is not None, "an encoder without a condition"
        vectors, visible = self.shared(cond)
        return vectors + self.encoder_position, visible

    def for_decoder(self, cond: Tensor) -> ConditionTokens:
        """A checked condition as tokens (B, length, decoder_dim) of the decoder."""
        assert self.decoder_position is not None, "a decoder without a condition"
        vectors, visible = self.shared(cond)
        return self.proj(vectors) + self.decoder_position, visible


class ClassCondition(SharedCondition):
    """A table that encoder and decoder share (SMAP, section 3.2): num_classes rows, then one for the null class.

    Args:
        widths: of encoder and decoder.
        dropout: probability of the null class instead of the label in training; with 0 the null row is not trained.
    """

    def __init__(self, num_classes: int, widths: Widths, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.label_embed = LabelEmbed(num_classes, widths.encoder, dropout, null_row=True)
        self.make_sides(widths, 1)
        nn.init.normal_(self.label_embed.table.weight, std=0.02)
        self.init_sides()

    @property
    def source(self) -> LabelEmbed:
        return self.label_embed

    def shared(self, cond: Tensor) -> ConditionTokens:
        """Class ids (B,) -> (B, 1, dim)."""
        return self.label_embed(cond)[:, None], None


class TextCondition(SharedCondition):
    """A linear layer from caption embeddings (B, T, E), or from words (B, T), to T tokens; padding is masked.

    Args:
        text_dim: width E.
        length: largest number of sub-words T.
        widths: of encoder and decoder.
        dropout: probability of no caption in training; with 0 only images without a caption train the null vector.
        words: see `Captions`.
    """

    def __init__(
        self, text_dim: int, length: int, widths: Widths, *, dropout: float = 0.0, words: int | None = None
    ) -> None:
        super().__init__()
        self.captions = Captions(text_dim, length, dropout, null_row=True, words=words)
        self.text_proj = nn.Linear(text_dim, widths.encoder)
        self.make_sides(widths, length)
        nn.init.trunc_normal_(self.text_proj.weight, std=0.02)
        nn.init.zeros_(self.text_proj.bias)
        self.init_sides()

    @property
    def source(self) -> Captions:
        return self.captions

    def shared(self, cond: Tensor) -> ConditionTokens:
        """Captions (B, T, E) or (B, T) -> (B, T, dim)."""
        embeddings, visible = self.captions.filled(cond)
        return self.text_proj(embeddings), visible

"""The class of an image as one token of the encoder's and one of the decoder's sequence, out of one table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tok1d.nn.embed import LabelEmbed, class_ids, training_ids


class ClassCondition(nn.Module):
    """A table of num_classes + 1 rows that encoder and decoder share, the last one the null class (SMAP, section 3.1).

    Args:
        dim: width of the encoder, and of the table's rows. decoder_dim: where it differs, a linear layer leads there.
        dropout: probability of the null class instead of the label in training; at 0 the null row is never trained.
    """

    def __init__(self, num_classes: int, dim: int, decoder_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.label_embed = LabelEmbed(num_classes, dim, dropout, null_row=True)
        self.proj = nn.Linear(dim, decoder_dim) if decoder_dim != dim else nn.Identity()
        self.encoder_position = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_position = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        nn.init.normal_(self.label_embed.table.weight, std=0.02)
        for position in (self.encoder_position, self.decoder_position):
            nn.init.trunc_normal_(position, std=0.02)
        if isinstance(self.proj, nn.Linear):
            nn.init.trunc_normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)

    def ids(self, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """Rows (B,) of the table for class ids (B,), the null row for None; in train mode some are dropped to it.

        Raises:
            InputError: not (B,) integers, or an id out of range (in train mode only looked at on the CPU).
        """
        return (training_ids if self.training else class_ids)(self.label_embed, cond, batch, device)

    def for_encoder(self, ids: Tensor) -> Tensor:
        """(B,) -> (B, 1, dim)."""
        return self.label_embed(ids)[:, None] + self.encoder_position

    def for_decoder(self, ids: Tensor) -> Tensor:
        """(B,) -> (B, 1, decoder_dim)."""
        return self.proj(self.label_embed(ids))[:, None] + self.decoder_position

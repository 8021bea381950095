"""The tokens of an image set as vectors, batch by batch, with pixels and classes beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tok1d.analyze.plots import ranges
from tok1d.data.images import ImageSet
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.images.framing import padding_of
from tok1d.inference.conditions import ConditionedImages
from tok1d.tokenizers.base import Tokenizer

SIDE = 32  # pixels a side to which images are reduced where pixels are compared with tokens


class Codes:
    """The tokens (B, K, D) of a tokenizer for the images of a set; of ids the entries of the codebook.

    Args:
        label: condition of the encoder, see `conditioning_of`; by default null, because with the true class as
            condition the tokens may hold what is looked for in them.

    Raises:
        InputError: a label for a tokenizer without a condition, or ids without a codebook.
    """

    def __init__(self, tokenizer: Tokenizer, images: ImageSet, label: Literal["true", "null"] | None = None) -> None:
        wanted = "null" if label is None and tokenizer.spec.needs_label else label
        self.tokenizer, self.images = tokenizer, images
        self.conditioned = ConditionedImages(tokenizer, images, wanted)
        self.device, self.pad = next(tokenizer.parameters()).device, padding_of(tokenizer)
        parts = [tokenizer, getattr(tokenizer, "bottleneck", None)]
        self.entries = next((found for each in parts for found in [_entries(each)] if found is not None), None)
        if tokenizer.spec.vocab_size is not None and self.entries is None:
            raise InputError(f"expected tokens that are vectors, {type(tokenizer).__name__} has ids without a codebook")

    @property
    def label(self) -> str | None:
        """The condition, as records state it."""
        return self.conditioned.conditioning.label

    @torch.no_grad()
    def batches(self, batch_size: int) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
        """Yield numbers, tokens (B, K, D) and pixels (B, F), both float64 on the device, and labels (B,) on it.

        The pixels are those of the images without border, reduced to 32 a side by the mean over areas if they are
        larger.

        Raises:
            InputError: tokens that are not finite.
        """
        for numbers in ranges(len(self.images), batch_size):
            x, labels, cond = self.conditioned.batch(numbers)
            x = x.to(self.device)
            tokens = self.tokenizer.encode(x, cond)
            if self.tokenizer.spec.vocab_size is not None and self.entries is not None:
                tokens = self.entries(tokens)
            if not torch.isfinite(tokens).all():
                raise InputError("expected finite tokens, got NaN or inf; check the tokenizer")
            yield numbers, tokens.double(), small(x, self.pad).double(), labels.to(self.device)


def _entries(part: object) -> Callable[[Tensor], Tensor] | None:
    """The method of a tokenizer or bottleneck that turns ids (B, K) into entries (B, K, D); None without one."""
    return getattr(part, "entries", None) or getattr(part, "embed", None)


def small(images: Tensor, pad: int = 0) -> Tensor:
    """Images (B, C, H, W) without their border as pixels (B, F), reduced to at most 32 x 32 by the mean over areas."""
    inner = without_border(images, pad)
    size = [min(side, SIDE) for side in inner.shape[-2:]]
    return interpolate(inner, size=size, mode="area").flatten(1)

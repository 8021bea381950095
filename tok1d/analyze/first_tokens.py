"""Images decoded from their first tokens, for tokenizers whose error is measured on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tok1d.analyze.cuts import first_tokens, mean_tokens
from tok1d.analyze.plots import ranges
from tok1d.data.images import ImageSet
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.evaluate.reconstruction import Reconstructor
from tok1d.evaluate.request import Reconstructions
from tok1d.images.framing import padding_of
from tok1d.inference.sampling import DECODER_NOISE, noise_of
from tok1d.tokenizers.base import Tokenizer


def check_order(tokenizer: Tokenizer, partial: bool = False) -> None:
    """Check that a tokenizer can be decoded from its first tokens.

    Args:
        partial: whether unordered tokens after the first ones are replaced by their means.

    Raises:
        InputError: it cannot; the message states why.
    """
    spec = tokenizer.spec
    if spec.ordered:
        return
    if not partial:
        raise InputError("its tokens have no order, so it cannot be decoded from the first ones")
    if spec.vocab_size is not None:
        raise InputError("its tokens are ids without an order, which have no mean that could replace the last ones")


class FirstTokens:
    """Images of a set and what a tokenizer decodes from their first tokens, both without border and in [0, 1].

    A stochastic decoder uses its own settings, and for an image the same noise with every number of tokens.

    Args:
        label: condition of the tokenizer, see `conditioning_of`; the result's attribute `label` is as records state it.
        partial: unordered tokens after the first ones are replaced by their means over the images.

    Raises:
        InputError: see `check_order` and `conditioning_of`.
    """

    @torch.no_grad()
    def __init__(
        self,
        tokenizer: Tokenizer,
        images: ImageSet,
        *,
        label: str | None = None,
        partial: bool = False,
        batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        check_order(tokenizer, partial)
        how = Reconstructions(label=label, batch_size=batch_size, seed=seed)  # type: ignore[arg-type]
        self.reconstructor, self.pad = Reconstructor(tokenizer, images, how), padding_of(tokenizer)
        self.label = self.reconstructor.conditioned.conditioning.label
        self.mean = None if tokenizer.spec.ordered else mean_tokens(self.reconstructor)

    @torch.no_grad()
    def batches(self) -> Iterator[tuple[Tensor, Callable[[int], Tensor]]]:
        """Yield images (B, C, H, W), and a function that decodes them (B, C, H, W) from a number of first tokens."""
        source = self.reconstructor
        tokenizer, length = source.tokenizer, source.tokenizer.spec.length
        for numbers in ranges(len(source.images), source.how.batch_size):
            x, _, cond = source.conditioned.batch(numbers)
            x = x.to(source.device)
            tokens = tokenizer.encode(x, cond)

            @torch.no_grad()
            def decoded(
                keep: int, numbers: range = numbers, tokens: Tensor = tokens, cond: Tensor | None = cond
            ) -> Tensor:
                noise = [noise_of(source.how.seed, DECODER_NOISE, i) for i in numbers]
                code, kept = (tokens, keep) if self.mean is None else (first_tokens(tokens, self.mean, keep), length)
                y = tokenizer.decode(code, cond, keep=kept, generator=noise, **source.decoder_options)
                return without_border(y.clamp(0, 1), self.pad)

            yield without_border(x, self.pad), decoded

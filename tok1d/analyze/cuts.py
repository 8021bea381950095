"""What is decoded for a number: the first tokens, also with means after them, or the first principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tok1d.analyze.components import Components
from tok1d.analyze.judged import prefix_counts
from tok1d.analyze.plots import ranges
from tok1d.analyze.request import Spectra
from tok1d.config.options import check_counts
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.reconstruction import Reconstructor
from tok1d.inference.conditions import ConditionedImages
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

Decode = Callable[..., Tensor]  # as `Tokenizer.decode`


@dataclass(frozen=True)
class Cut:
    """How a tokenizer is decoded from a part of what it encodes.

    Args:
        keep: the numbers, ascending.
        unit: what they are of: "tokens" or "components".
        read: what `encode` returns -> tokens (B, K, D), or ids (B, K).
        part: (tokens, number) -> tokens and the number of leading ones that are decoded.
        decode: as `Tokenizer.decode`.
        components: None unless the unit is components.
    """

    keep: list[int]
    unit: str
    read: Callable[[Tensor], Tensor]
    part: Callable[[Tensor, int], tuple[Tensor, int]]
    decode: Decode
    components: Components | None = None


def cut_of(reconstructor: Reconstructor, how: Spectra, training: ImageSet | None = None, *, name: str = "") -> Cut:
    """The cut that the settings ask for.

    Args:
        training: images on `num_fit` of which components are fitted; None: those of the reconstructor.
        name: for the progress bar.

    Raises:
        InputError: both --partial and --components, partial tokens of ids, components of ids whose entries cannot be
            decoded, or more components than there are.
    """
    tokenizer = reconstructor.tokenizer
    length = tokenizer.spec.length
    if how.partial and how.components:
        raise InputError("--partial: expected it without --components, which also decodes a part of all tokens")
    if how.components:
        return _components(reconstructor, how, training, name)
    if how.partial and not tokenizer.spec.ordered:
        mean = mean_tokens(reconstructor)
        keep = prefix_counts(how.keep, length)
        return Cut(keep, "tokens", _same, lambda tokens, k: (first_tokens(tokens, mean, k), length), tokenizer.decode)
    return Cut(sorted(set(reconstructor.keep)), "tokens", _same, lambda tokens, k: (tokens, k), tokenizer.decode)


def _same(tokens: Tensor) -> Tensor:
    return tokens


def _components(reconstructor: Reconstructor, how: Spectra, training: ImageSet | None, name: str) -> Cut:
    """The cut of principal components."""
    tokenizer = reconstructor.tokenizer
    read, decode = vectors_of(tokenizer)
    images = reconstructor.images if training is None else subset(training, how.num_fit)
    label = reconstructor.how.label
    found, shape = fit_components(tokenizer, images, read, batch_size=how.batch_size, label=label, name=name)
    check_components(how.keep, len(found.variances))
    keep = prefix_counts(how.keep, len(found.variances))
    length = shape[0]
    return Cut(keep, "components", read, lambda tokens, k: (found.project(tokens, k), length), decode, found)


def check_components(keep: Sequence[int], most: int) -> None:
    """Raise InputError on numbers of components above `most`."""
    check_counts(list(keep), "--keep", 0, most)


def vectors_of(tokenizer: Tokenizer) -> tuple[Callable[[Tensor], Tensor], Decode]:
    """What turns a tokenizer's tokens into vectors (B, K, D), and the decoder of these.

    Continuous tokens are vectors themselves; of ids the entries of the codebook are.

    Raises:
        InputError: ids whose entries cannot be decoded.
    """
    if tokenizer.spec.vocab_size is None:
        return _same, tokenizer.decode
    bottleneck, decode = getattr(tokenizer, "bottleneck", None), getattr(tokenizer, "decode_entries", None)
    if bottleneck is None or decode is None:
        raise InputError(
            f"--components: expected continuous tokens, or a decoder of codebook entries, {type(tokenizer).__name__} "
            "has ids without one; leave it out"
        )

    def of_entries(entries: Tensor, cond: Tensor | None = None, **options: Any) -> Tensor:
        """`decode_entries`, with the options of `Tokenizer.decode`, which a decoder of one pass does not read."""
        return decode(entries, cond)

    return bottleneck.embed, of_entries


@torch.no_grad()
def fit_components(
    tokenizer: Tokenizer,
    images: ImageSet,
    read: Callable[[Tensor], Tensor] = _same,
    *,
    batch_size: int = 250,
    label: str | None = None,
    name: str = "",
) -> tuple[Components, torch.Size]:
    """The principal components of the tokens of images, and the shape (K, D) of the tokens of an image.

    Args:
        read: what `encode` returns -> tokens (B, K, D).
        label: condition of the encoder, see `conditioning_of`.
        name: for the progress bar.

    Raises:
        InputError: see `Components.of`.
    """
    conditioned, device = ConditionedImages(tokenizer, images, label), next(tokenizer.parameters()).device
    shape = torch.Size()

    def rows() -> Iterator[Tensor]:
        nonlocal shape
        with Bar(len(images), unit="image", name=name) as bar:
            for numbers in ranges(len(images), batch_size):
                x, _, cond = conditioned.batch(numbers)
                tokens = read(tokenizer.encode(x.to(device), cond))
                shape = tokens.shape[1:]
                yield tokens.flatten(1).double()
                bar.update(len(x))

    return Components.of(rows, "--components"), shape


def mean_tokens(reconstructor: Reconstructor) -> Tensor:
    """The mean (K, D) of the tokens of a reconstructor's images, from one pass over them.

    Raises:
        InputError: ids.
    """
    tokenizer = reconstructor.tokenizer
    if tokenizer.spec.vocab_size is not None:
        raise InputError("--partial: ids have no mean that could replace the last ones; leave it out")
    total: Tensor | None = None
    for numbers in ranges(len(reconstructor.images), reconstructor.how.batch_size):
        x, _, cond = reconstructor.conditioned.batch(numbers)
        summed = tokenizer.encode(x.to(reconstructor.device), cond).double().sum(0)
        total = summed if total is None else total + summed
    assert total is not None, "an image set is not empty"
    return total / len(reconstructor.images)


def first_tokens(tokens: Tensor, mean: Tensor, keep: int) -> Tensor:
    """Tokens (B, K, D) of which those after the first `keep` are replaced by their means (K, D)."""
    rest = mean[keep:].to(tokens.dtype).expand(len(tokens), -1, -1)
    return torch.cat([tokens[:, :keep], rest], 1)

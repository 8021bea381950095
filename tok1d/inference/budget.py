"""Budgets: for each image the smallest number of leading tokens that reaches a quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tok1d.config.budget import Budgeting
from tok1d.config.sampling import Decoding
from tok1d.errors import InputError
from tok1d.inference.sampling import DECODER_NOISE, DecoderOptions, decoder_options, noise_of
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.pretrained.quality import PSNR, Quality, load_quality

ROWS = 256  # images that are decoded at once by default


@dataclass(frozen=True, eq=False)
class Budget:
    """Images decoded from as many tokens as each needs.

    Args:
        keep: number of leading tokens of each image, (B,) int64.
        images: (B, C, H, W) in [0, 1], decoded from them.
        tokens: (B, K, D) or ids (B, K), all of them.
        quality: of `images` in dB, (B,); predicted ones if a head chose.
        fixed: mean quality of all images from the first 1, ..., K tokens, (K,), measured or predicted.
    """

    keep: Tensor
    images: Tensor
    tokens: Tensor
    quality: Tensor
    fixed: Tensor

    @property
    def mean(self) -> float:
        """The mean number of tokens."""
        return float(self.keep.double().mean())

    @property
    def fixed_quality(self) -> float:
        """The mean quality of a fixed number of tokens, the mean of `keep`; between two numbers on a line."""
        return at_mean(self.fixed, self.mean)


def at_mean(curve: Tensor, mean: float) -> float:
    """The value of a curve (K,) over 1, ..., K tokens at a mean number of them, on lines between the points."""
    low = min(max(math.floor(mean), 1), len(curve))
    high = min(low + 1, len(curve))
    return float(curve[low - 1] + (mean - low) * (curve[high - 1] - curve[low - 1]))


def smallest(qualities: Tensor, wanted: float) -> Tensor:
    """The smallest number of tokens (B,) int64 with at least the wanted quality; all where there is none.

    0 keeps one token, infinity all, whatever the qualities are, which need not grow with the number of tokens.

    Args:
        qualities: (B, K) in dB, of the first 1, ..., K tokens.
    """
    length = qualities.shape[1]
    if wanted <= 0 or wanted == math.inf:
        return torch.full((len(qualities),), 1 if wanted <= 0 else length, device=qualities.device)
    meets = qualities >= wanted
    return torch.where(meets.any(1), meets.int().argmax(1) + 1, length)


def check_ordered(tokenizer: Tokenizer, what: str) -> None:
    """Raise InputError for a tokenizer of unordered tokens; `what` is the setting."""
    if not tokenizer.spec.ordered:
        raise InputError(f"{what}: these tokens have no order, all of them are needed; leave it out")


def check_budgeting(tokenizer: Tokenizer, how: Budgeting) -> None:
    """Check --quality and the options that only it reads.

    Raises:
        InputError: unordered tokens, or such an option without --quality.
    """
    if how.quality is not None:
        check_ordered(tokenizer, "--quality")
    elif how != Budgeting():
        raise InputError("--quality-metric and --quality-by: only --quality reads them, pass it too")


@torch.no_grad()
def prefix_qualities(
    tokenizer: Tokenizer,
    tokens: Tensor,
    originals: Tensor,
    cond: Tensor | None,
    quality: Quality,
    *,
    noise: Callable[[int], torch.Generator],
    options: DecoderOptions,
    rows: int = ROWS,
) -> tuple[Tensor, Tensor]:
    """Qualities (B, K) of the images decoded from the first 1, ..., K tokens, and these images (B, K, C, H, W).

    All prefixes of an image are decoded in one batch, with the same noise.

    Args:
        tokens: (B, K, ...) of the originals (B, C, H, W).
        noise: the place of an image in the batch -> its generator, newly made in every call.
        options: of `decode`.
        rows: decoded images at once, at least those of one image.
    """
    length, step = tokens.shape[1], max(1, rows // tokens.shape[1])
    counts = torch.arange(1, length + 1, device=tokens.device)
    found, images = [], []
    for start in range(0, len(tokens), step):
        part = slice(start, min(start + step, len(tokens)))
        size = part.stop - start
        each = None if cond is None else cond[part].repeat_interleave(length, 0)
        sources = [noise(i) for i in range(start, part.stop) for _ in range(length)]
        wide = tokens[part].repeat_interleave(length, 0)
        decoded = tokenizer.decode(wide, each, keep=counts.repeat(size), generator=sources, **options)
        found.append(quality(decoded, originals[part].repeat_interleave(length, 0)).view(size, length))
        images.append(decoded.unflatten(0, (size, length)))
    return torch.cat(found), torch.cat(images)


@torch.no_grad()
def budget(
    tokenizer: Tokenizer,
    images: Tensor,
    cond: Tensor | None = None,
    *,
    quality: float,
    metric: str = PSNR,
    by: str = "search",
    numbers: Sequence[int] | None = None,
    seed: int = 0,
    rows: int = ROWS,
    options: DecoderOptions | None = None,
) -> Budget:
    """Decode images from as few leading tokens as reach a quality.

    Args:
        images: (B, C, H, W) in [0, 1] on the tokenizer's device.
        cond: of encoder and decoder.
        quality: in dB, see `smallest`.
        metric: see `load_quality`.
        by: "search" decodes all prefixes; "head" decodes all tokens and asks the tokenizer's head, which predicts from
            their quality that of the prefixes, by the metric that it was trained on.
        numbers: of the images in their set, which decide the decoder's noise; default: 0, 1, ...
        seed: of the decoder's noise.
        rows: decoded images at once.
        options: of `decode`; default: the decoder's own settings.

    Raises:
        InputError: unordered tokens, a negative quality, or no head (of this metric).
    """
    check_ordered(tokenizer, "quality")
    if not quality >= 0:
        raise InputError(f"quality: expected at least 0 dB, got {quality}")
    given = decoder_options(tokenizer, Decoding()) if options is None else options
    places = range(len(images)) if numbers is None else numbers
    tokens = tokenizer.encode(images, cond)

    def noise(i: int) -> torch.Generator:
        return noise_of(seed, DECODER_NOISE, places[i])

    head, length = head_of(tokenizer, metric) if by == "head" else None, tokens.shape[1]
    measure = load_quality(metric)
    if head is not None:
        found, decoded = [], []
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            each, own = None if cond is None else cond[part], range(len(tokens))[part]
            whole = tokenizer.decode(tokens[part], each, keep=length, generator=[noise(i) for i in own], **given)
            predicted = head(tokens[part], measure(whole, images[part]))
            keep, sources = smallest(predicted, quality), [noise(i) for i in own]
            decoded.append(tokenizer.decode(tokens[part], each, keep=keep, generator=sources, **given))
            found.append(predicted)
        predicted = torch.cat(found)
        keep = smallest(predicted, quality)
        chosen = predicted.gather(1, keep[:, None] - 1)[:, 0]
        return Budget(keep, torch.cat(decoded), tokens, chosen, predicted.mean(0))
    qualities, every = prefix_qualities(tokenizer, tokens, images, cond, measure, noise=noise, options=given, rows=rows)
    keep = smallest(qualities, quality)
    row = torch.arange(len(keep), device=keep.device)
    return Budget(keep, every[row, keep - 1], tokens, qualities[row, keep - 1], qualities.mean(0))


def head_of(tokenizer: Tokenizer, metric: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The head that was trained for a tokenizer: tokens (B, K, ...), quality of all (B,) -> predicted qualities (B, K).

    Raises:
        InputError: there is none, or one for another metric.
    """
    heads = getattr(tokenizer, "budget_heads", ())
    if not heads:
        raise InputError(
            "quality_by: this tokenizer has no head that predicts qualities; tok1d train fashion_mnist/budget "
            "init_from=MODEL trains one, or use quality_by=search"
        )
    if heads[0].config.metric != metric:
        raise InputError(f"quality_metric: the head of this tokenizer predicts {heads[0].config.metric}, got {metric}")
    return heads[0].to(next(tokenizer.parameters()).device).qualities


Counter = Callable[[Tensor, Tensor | None, int], Tensor]


def counter(tokenizer: Tokenizer, how: Budgeting, *, seed: int = 0) -> Counter | None:
    """A function from images (B, C, H, W), their condition and the number of the first to numbers of tokens (B,).

    None without a quality.

    Args:
        seed: of the decoder's noise.

    Raises:
        InputError: see `budget`.
    """
    if how.quality is None:
        return None
    wanted = how.quality
    check_ordered(tokenizer, "quality")
    predict = head_of(tokenizer, how.quality_metric) if how.quality_by == "head" else None
    measure = load_quality(how.quality_metric)
    options, device = decoder_options(tokenizer, Decoding()), next(tokenizer.parameters()).device

    @torch.no_grad()
    def count(images: Tensor, cond: Tensor | None, first: int) -> Tensor:
        images = images.to(device)
        tokens = tokenizer.encode(images, cond)

        def noise(i: int) -> torch.Generator:
            return noise_of(seed, DECODER_NOISE, first + i)

        if predict is not None:
            sources = [noise(i) for i in range(len(tokens))]
            whole = tokenizer.decode(tokens, cond, keep=tokens.shape[1], generator=sources, **options)
            return smallest(predict(tokens, measure(whole, images)), wanted)
        found = prefix_qualities(tokenizer, tokens, images, cond, measure, noise=noise, options=options)[0]
        return smallest(found, wanted)

    return count

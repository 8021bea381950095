"""Pictures decoded from every number of leading tokens, for the tabs Reconstruct, Swap and mix, and Look inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tok1d.analyze.spectrum import log_power, radial_power
from tok1d.config.sampling import Decoding
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.images.convert import to_tensor
from tok1d.images.framing import padding_of
from tok1d.inference.sampling import DECODER_NOISE, DecoderOptions, decoder_options, noise_of
from tok1d.losses.pixel import psnr_per_image
from tok1d.pictures import to_uint8
from tok1d.serve.examples import Examples
from tok1d.serve.models import Models, condition_of
from tok1d.serve.request import Look
from tok1d.zoo.loaded import LoadedTokenizer

MOST_COUNTS = 64  # numbers of tokens that are decoded
BATCH = 32  # pictures that are decoded at once


@dataclass(frozen=True)
class Prefixes:
    """A picture and its reconstructions.

    Args:
        look: the settings.
        counts: numbers of leading tokens, ascending.
        original: (1, C, H, W) in [0, 1], on the CPU.
        pictures: (n, C, H, W) uint8, one for each count.
        psnr: dB, one for each count; without the border of the model's training images.
        tokens: (1, K, D) or ids (1, K).
    """

    look: Look
    counts: list[int]
    original: Tensor
    pictures: Tensor
    psnr: list[float]
    tokens: Tensor
    pad: int

    def nearest(self, count: int) -> int:
        """The index of the number of tokens that is nearest to this one."""
        return min(range(len(self.counts)), key=lambda i: abs(self.counts[i] - count))

    def picture(self, index: int) -> Tensor:
        """(C, H, W) in [0, 1]."""
        return self.pictures[index].float() / 255

    def explained(self) -> list[float]:
        """By number of tokens, 1 - squared error / variance of the picture's pixels in each channel; at most 1."""
        x = without_border(self.original, self.pad)
        y = without_border(self.pictures.float() / 255, self.pad)
        variance = (x - x.mean((-2, -1), keepdim=True)).square().sum()
        errors = (y - x).square().flatten(1).sum(1)
        return (1 - errors / variance.clamp_min(1e-12)).tolist()

    def spectra(self) -> tuple[list[float], list[list[float]]]:
        """log10 of the power by frequency, see `tok1d.analyze.spectrum`: of the picture, and by number of tokens."""
        x = without_border(self.original, self.pad)
        y = without_border(self.pictures.float() / 255, self.pad)
        pixels = x.shape[-2:].numel()
        own = log_power(radial_power(x)[0], pixels).tolist()
        return own, [log_power(power, pixels).tolist() for power in radial_power(y)]


def counts_of(tokenizer: LoadedTokenizer) -> list[int]:
    """The numbers of tokens that are decoded: all, or of many tokens evenly spaced ones with the last."""
    spec = tokenizer.spec
    if not spec.ordered:
        return [spec.length]
    step = step_of(spec.length)
    found = list(range(spec.length, 0, -step))[::-1]
    return [0, *found] if spec.needs_label else found


def step_of(length: int) -> int:
    """The distance of the numbers of tokens that are decoded."""
    return -(-length // MOST_COUNTS)


def decoding_of(tokenizer: LoadedTokenizer, look: Look) -> DecoderOptions:
    """The keyword arguments of `decode`; a decoder that is not sampled ignores steps and guidance of the page."""
    if tokenizer.spec.deterministic:
        return {}
    return decoder_options(tokenizer, Decoding(steps=look.steps or None, guidance=look.guidance))


def decoded(
    tokenizer: LoadedTokenizer,
    rows: Tensor,
    cond: Tensor | None,
    look: Look,
    keep: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Decode rows of tokens (n, K, ...) with the same initial noise; yields uint8 (b, C, H, W), batch by batch.

    Args:
        cond: (1, ...) for all rows, or (n, ...).
        keep: number of leading tokens of each row; None: all.
    """
    options = decoding_of(tokenizer, look)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        given = cond
        if cond is not None:
            given = cond.expand(len(part), *cond.shape[1:]) if len(cond) == 1 else cond[start : start + BATCH]
        kept = None if keep is None else torch.tensor(keep[start : start + BATCH], device=part.device)
        noise = [noise_of(look.seed, DECODER_NOISE, 0) for _ in range(len(part))]
        extra: DecoderOptions = {} if tokenizer.spec.deterministic else {"generator": noise}
        with torch.no_grad():
            images = tokenizer.decode(part, given, keep=kept, **extra, **options)
        yield to_uint8(images)


def encoded(tokenizer: LoadedTokenizer, picture: Image.Image, cond: Tensor | None) -> tuple[Tensor, Tensor]:
    """The picture as the model reads it, (1, C, H, W), and its tokens (1, K, ...)."""
    with torch.no_grad():
        x = to_tensor(picture, tokenizer)
        return x, tokenizer.encode(x, cond)


def reconstruct(models: Models, picture: Image.Image, look: Look) -> Iterator[Prefixes | tuple[int, int]]:
    """Encode a picture and decode it from every number of leading tokens.

    Yields (done, all) after each batch, and at last the result.

    Raises:
        InputError: settings that the model does not have.
    """
    tokenizer = models.tokenizer(look.model)
    cond = condition_of(tokenizer, look.condition)
    x, tokens = encoded(tokenizer, picture, cond)
    counts, parts = counts_of(tokenizer), list[Tensor]()
    keep = counts if tokenizer.spec.ordered else None
    rows = tokens.expand(len(counts), *tokens.shape[1:])
    for part in decoded(tokenizer, rows, cond, look, keep):
        parts.append(part)
        yield sum(map(len, parts)), len(counts)
    pictures, pad, x = torch.cat(parts), padding_of(tokenizer), x.cpu()
    y = without_border(pictures.float() / 255, pad)
    psnr = psnr_per_image(y, without_border(x, pad).expand_as(y)).tolist()
    yield Prefixes(look, counts, x, pictures, psnr, tokens, pad)


@dataclass(frozen=True)
class Mixed:
    """Pictures from the first k tokens of A and the other tokens of B.

    Args:
        counts: numbers k of tokens of A, from 0 to all.
        originals: (2, C, H, W) in [0, 1].
        pictures: by the name of the decoder's condition, (n, C, H, W) uint8; one entry, "", without conditions.
    """

    counts: list[int]
    originals: Tensor
    pictures: dict[str, Tensor]


def mix(
    models: Models, pictures: tuple[Image.Image, Image.Image], conditions: tuple[str, str], look: Look
) -> Iterator[Mixed | tuple[int, int]]:
    """Decode the first k tokens of A with the rest of B, for every k, under the condition of A and of B.

    Each picture is encoded with its own condition. Yields (done, all) after each batch, and at last the result.

    Raises:
        InputError: a tokenizer of unordered tokens, or conditions that it does not have.
    """
    tokenizer = models.tokenizer(look.model)
    if not (tokenizer.spec.ordered or tokenizer.spec.needs_label):
        raise InputError(f"model: the tokens of {look.model} have no order; choose another model to mix")
    conds = [condition_of(tokenizer, text) for text in conditions]
    if any(cond is not None for cond in conds):
        conds = [_or_null(tokenizer, cond, conds) for cond in conds]
    (x, a), (y, b) = (encoded(tokenizer, *each) for each in zip(pictures, conds))
    length = a.shape[1]
    counts = sorted({0, *range(length, 0, -step_of(length))})
    rows = torch.cat([torch.cat([a[:, :k], b[:, k:]], 1) for k in counts])
    named = {"": None} if conds[0] is None and conds[1] is None else {"A": conds[0], "B": conds[1]}
    found: dict[str, Tensor] = {}
    done = 0
    for name, cond in named.items():
        parts = []
        for part in decoded(tokenizer, rows, cond, look):
            parts.append(part)
            done += len(part)
            yield done, len(named) * len(counts)
        found[name] = torch.cat(parts)
    yield Mixed(counts, torch.cat([x, y]).cpu(), found)


def _or_null(tokenizer: LoadedTokenizer, cond: Tensor | None, conds: Sequence[Tensor | None]) -> Tensor | None:
    """A condition; where captions are mixed with none, that is a caption of padding."""
    if cond is not None or not tokenizer.spec.reads_captions:
        return cond
    given = next(each for each in conds if each is not None)
    return torch.zeros_like(given)


@dataclass(frozen=True)
class LeftOut:
    """Pictures with one token replaced by its mean (ids: by that of an example picture).

    Args:
        whole: (C, H, W) uint8, from all tokens.
        pictures: (K, C, H, W) uint8, without each token.
        change: mean squared difference to `whole` of each, in [0, 1].
    """

    whole: Tensor
    pictures: Tensor
    change: list[float]


def leave_out(models: Models, examples: Examples, found: Prefixes) -> Iterator[LeftOut | tuple[int, int]]:
    """Decode a picture without each of its tokens in turn.

    Yields (done, all) after each batch, and at last the result.
    """
    tokenizer = models.tokenizer(found.look.model)
    cond, tokens = condition_of(tokenizer, found.look.condition), found.tokens
    mean = examples.mean_tokens(tokenizer)
    if mean is None:
        mean = encoded(tokenizer, examples.of(tokenizer)[0].picture, None)[1][0]
    length = tokens.shape[1]
    rows = tokens.repeat(length + 1, *[1] * (tokens.dim() - 1))
    for k in range(length):
        rows[k + 1, k] = mean[k].to(rows.dtype)
    parts = list[Tensor]()
    for part in decoded(tokenizer, rows, cond, found.look):
        parts.append(part)
        yield sum(map(len, parts)), length + 1
    pictures = torch.cat(parts)
    difference = (pictures[1:].float() - pictures[:1].float()) / 255
    yield LeftOut(pictures[0], pictures[1:], difference.square().flatten(1).mean(1).tolist())

"""What each token of a tokenizer adds: decoding with one token replaced, and its prediction from the earlier tokens.

A token is idle if it can be left out at almost no cost. SMAP (section 3.3) and Semanticist (section 3.2) claim that a
random number of kept tokens in training orders tokens by what they add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.config.sampling import Decoding
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.metrics import Moments
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, decoder_options, noise_of
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

RIDGE = 1e-6  # of the mean variance of a number, so that constant numbers do no harm
IMAGES_PER_NUMBER = 4  # fewest images for each number of a code with which the regression is fitted
IDLE = 0.01  # a token is called idle if leaving it out adds at most this share of the error


@dataclass(frozen=True)
class TokenUse:
    """What one token adds, over all images.

    Args:
        token: position, from 0.
        left_out: mean squared error, in [0, 1], of the images decoded with the mean of this token over the images in
            its place, minus the error with all tokens; None for ids, which have no mean.
        replaced: the same with this token of another image in its place.
        change: mean squared difference of the images decoded with the mean and with the token itself (for ids: with the
            token of another image).
        predicted: R^2, the share of the variance of the token's numbers that a linear regression on all earlier tokens
            explains, fitted on one half of the images and measured on the other, both ways; None for ids, for the first
            token, and with fewer than 4 images for each number in the tokens of an image.
    """

    token: int
    left_out: float | None
    replaced: float
    change: float
    predicted: float | None


@dataclass(frozen=True)
class Uses:
    """The tokens of a tokenizer.

    Args:
        num: number of images.
        error: mean squared error, in [0, 1], with all tokens.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
    """

    num: int
    error: float
    tokens: list[TokenUse]
    label: str | None = None

    @property
    def idle(self) -> list[int]:
        """Tokens without which the error is at most 1 % higher."""
        return [each.token for each in self.tokens if added(each) <= IDLE * self.error]

    def to_json(self) -> dict[str, object]:
        """Return the fields and the idle tokens."""
        return {**asdict(self), "idle": self.idle}

    def describe(self) -> list[str]:
        """Return one line for each token."""
        lines = [f"squared error with all tokens {self.error:.5f}, {self.num} images"]
        for each in self.tokens:
            parts = [] if each.left_out is None else [f"left out {each.left_out:+.5f}"]
            parts.append(f"of another image {each.replaced:+.5f}")
            if each.predicted is not None:
                parts.append(f"predicted from earlier tokens {each.predicted:6.1%}")
            lines.append(f"token {each.token:4d}: {', '.join(parts)}")
        if len(self.tokens) > 1 and self.tokens[-1].predicted is None:
            few = "ids" if self.tokens[-1].left_out is None else f"{self.num} images, too few for the regression"
            lines.append(f"predicted from earlier tokens: not computed ({few})")
        return lines

    def said(self) -> str:
        """What was found, as a clause."""
        most = max(self.tokens, key=added)
        idle = f" ({', '.join(map(str, self.idle))})" if self.idle else ""
        how = "with another image's" if most.left_out is None else "without it"
        known = [each for each in self.tokens if each.predicted is not None]
        best = max(known, key=lambda each: each.predicted or 0.0, default=None)
        predicted = (
            "" if best is None else f"; earlier tokens predict at most {best.predicted:.0%} of one ({best.token})"
        )
        ratio = added(most) / self.error if self.error > 0 else float("inf")
        return (
            f"token {most.token} adds most ({how} the error changes by {ratio:+.0%}), {len(self.idle)} of "
            f"{len(self.tokens)} tokens add at most {IDLE:.0%}{idle}{predicted}"
        )


def added(use: TokenUse) -> float:
    """The error that leaving a token out adds; for ids, that another image's token adds."""
    return use.replaced if use.left_out is None else use.left_out


def predicted_shares(halves: Sequence[Moments], dim: int) -> list[float | None]:
    """Share of each token's variance that all earlier tokens explain linearly.

    A ridge regression is fitted on one half of the images and measured on the other, and the other way round; the mean
    of both is returned, at least 0. A token that is constant counts as explained (1).

    Args:
        halves: moments of the tokens of two halves of the images, (K * dim,); for a meaningful result of several times
            as many images as numbers.

    Returns:
        K shares in [0, 1]; None for the first token.
    """
    scatters = [each.covariance * (each.count - 1) for each in halves]
    whole = Moments(halves[0].dim).merge(halves[0]).merge(halves[1])
    scale = whole.covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    shares: list[float | None] = [None]
    for k in range(1, whole.dim // dim):
        x, y, found = slice(0, k * dim), slice(k * dim, (k + 1) * dim), list[float]()
        for fit, held in ((0, 1), (1, 0)):
            penalty = RIDGE * scale * halves[fit].count * torch.eye(k * dim, dtype=torch.float64)
            weight = torch.linalg.solve(scatters[fit][x, x] + penalty, scatters[fit][x, y])
            shift = halves[held].mean - halves[fit].mean  # the prediction uses the means of the half that was fitted
            there = scatters[held] + halves[held].count * torch.outer(shift, shift)
            rest = there[y, y].trace() - 2 * (weight * there[x, y]).sum() + (weight * (there[x, x] @ weight)).sum()
            total = scatters[held][y, y].trace()
            found.append(1.0 if total <= 0 else max(0.0, 1 - float(rest / total)))
        shares.append(sum(found) / 2)
    return shares


@torch.no_grad()
def token_uses(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    num_images: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
    label: str | None = None,
    name: str | None = None,
) -> Uses:
    """Replace each token in turn and decode.

    A flow decoder gets the same noise for an image in all variants. Images are encoded twice: first for the means and,
    with enough images, the moments of the tokens. Memory: one batch of images, and the moments, 16 F^2 bytes for F
    numbers in the tokens.

    Args:
        num_images: number of images, see `subset`.
        batch_size: images at once; the image whose token replaces another's is the next one of the batch.
        seed: of a diffusion decoder's noise.
        label: see `conditioning_of`.
        name: for the progress bar; None: without one.

    Raises:
        InputError: fewer than two images.
    """
    chosen = subset(images, num_images)
    if len(chosen) < 2:
        raise InputError(f"idle: expected at least 2 images, of which one gives tokens to the other, got {len(chosen)}")
    conditioned = ConditionedImages(tokenizer, chosen, label)
    device, options = next(tokenizer.parameters()).device, decoder_options(tokenizer, Decoding())
    length, continuous = tokenizer.spec.length, tokenizer.spec.vocab_size is None
    parts = list(batches(len(chosen), batch_size))
    mean, shares = _means_and_shares(tokenizer, conditioned, parts) if continuous else (None, [None] * length)
    error = torch.zeros((), dtype=torch.float64)
    sums = torch.zeros(length, 3, dtype=torch.float64)
    with Bar(len(chosen), unit="image", name=name or "", quiet=name is None) as bar:
        for numbers in parts:
            x, _, cond = conditioned.batch(numbers)
            x = x.to(device)

            def decoded(code: Tensor, numbers: range = numbers, cond: Tensor | None = cond) -> Tensor:
                noise = [noise_of(seed, DECODER_NOISE, i) for i in numbers]
                return tokenizer.decode(code, cond, generator=noise, **options).clamp(0, 1)

            base, found = _replaced(decoded, tokenizer.encode(x, cond), mean, x)
            error += base
            sums += found
            bar.update(len(x))
    sums /= len(chosen)
    uses = [
        TokenUse(k, float(sums[k, 0]) if continuous else None, float(sums[k, 1]), float(sums[k, 2]), shares[k])
        for k in range(length)
    ]
    return Uses(len(chosen), float(error) / len(chosen), uses, conditioned.conditioning.label)


def _means_and_shares(
    tokenizer: Tokenizer, conditioned: ConditionedImages, parts: Sequence[range]
) -> tuple[Tensor, list[float | None]]:
    """The mean (K, D) of the tokens, and `predicted_shares`: all None with too few images for the regression."""
    total: Tensor | None = None
    halves: list[Moments] = []
    for numbers in parts:
        x, _, cond = conditioned.batch(numbers)
        tokens = tokenizer.encode(x.to(next(tokenizer.parameters()).device), cond)
        if total is None:
            numbers_of_code = tokens[0].numel()
            enough = len(conditioned.images) >= IMAGES_PER_NUMBER * numbers_of_code
            halves = [Moments(numbers_of_code) for _ in (0, 1)] if enough else []
        summed = tokens.double().sum(0)
        total = summed if total is None else total + summed
        for half, moments in enumerate(halves):
            moments.update(tokens[(numbers.start + half) % 2 :: 2].flatten(1))
    assert total is not None, "there are at least two images"
    mean = (total / len(conditioned.images)).to(tokens.dtype)
    return mean, predicted_shares(halves, mean.shape[1]) if halves else [None] * len(mean)


def _replaced(
    decoded: Callable[[Tensor], Tensor], own: Tensor, mean: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode a batch with each token replaced in turn.

    Args:
        own: tokens (B, K, D) or ids (B, K) of the images `x` (B, C, H, W).
        mean: of the tokens, (K, D); None for ids.

    Returns:
        The summed error with all tokens; and (K, 3), the sums of `TokenUse.left_out`, `replaced` and `change`.
    """
    y = decoded(own)
    base, sums = squared(y, x), torch.zeros(own.shape[1], 3, dtype=torch.float64)
    for k in range(own.shape[1]):
        other = own.clone()
        other[:, k] = own[:, k].roll(1, 0)
        z = decoded(other)
        sums[k, 1] = squared(z, x) - base
        if mean is not None:
            other[:, k] = mean[k]
            z = decoded(other)
            sums[k, 0] = squared(z, x) - base
        sums[k, 2] = squared(z, y)
    return base, sums


def batches(num: int, size: int) -> list[range]:
    """Ranges of about `size` numbers, none of one number: an image alone would give its tokens to itself."""
    starts = list(range(0, num, max(size, 2)))
    if len(starts) > 1 and num - starts[-1] == 1:
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], num], strict=True)]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Sum over images (B, C, H, W) of their mean squared differences, float64 on the CPU."""
    return (a - b).square().flatten(1).mean(1).double().sum().cpu()


def plot_uses(found: Mapping[str, Uses]) -> Image:
    """Plot what each token of several tokenizers adds to the error, and how well earlier tokens predict it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.5, 4.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, each) in enumerate(found.items()):
        places = [use.token for use in each.tokens]
        error = max(each.error, torch.finfo(torch.float64).tiny)
        for style, what in (("-", "left_out"), (":", "replaced")):
            values = [getattr(use, what) for use in each.tokens]
            if None not in values:
                title = f"{name}, {'without it' if what == 'left_out' else 'of another image'}"
                shares = [100 * value / error for value in values]
                left.plot(places, shares, style, marker=".", color=f"C{i}", label=plot_label(title))
        known = [(use.token, use.predicted) for use in each.tokens if use.predicted is not None]
        if known:
            right.plot(*zip(*known, strict=True), marker=".", color=f"C{i}", label=plot_label(name))
    left.set_yscale("symlog", linthresh=1)
    left.axhline(100 * IDLE, color="grey", linewidth=1, linestyle="--", label=f"idle: at most {IDLE:.0%}")
    left.set_ylabel("change of the squared error, %")
    right.set_ylabel("R^2 from the earlier tokens")
    right.set_ylim(0, 1)
    if not right.lines:
        right.text(0.5, 0.5, "ids, or too few images", ha="center", va="center", transform=right.transAxes)
    for axes in (left, right):
        axes.set_xlabel("token, from 0")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure_image(figure)

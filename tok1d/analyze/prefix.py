"""The curve of a tokenizer by number of tokens: the denoising loss of a diffusion decoder, the error of another one.

Semanticist (arXiv 2503.08685), figure 4 left; for one-pass decoders SMAP, figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from torch import Tensor

from tok1d.analyze.first_tokens import FirstTokens, check_order
from tok1d.analyze.plots import keep_axis, ranges
from tok1d.analyze.request import PrefixCurves
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.baselines import reconstruction_records, verdict
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions
from tok1d.inference.conditions import ConditionedImages
from tok1d.losses.pixel import mse_per_image
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.latent_space import LatentSpace
from tok1d.tokenizers.prefix import prefix_lengths, prefix_mask

if TYPE_CHECKING:
    from PIL.Image import Image

JUDGED = 100  # images whose reconstructions are compared with thumbnails
MOST = 0.9  # share of the fall for which the sentence about a curve states the number of tokens
TIMES = 20  # noise levels of a curve
Measure = Literal["denoising loss", "squared error"]


class DiffusionTokenizer(Tokenizer, Protocol):
    """A tokenizer whose decoder denoises latents, such as Semanticist.

    `latents` and `noise` are (B, C, H, W), `tokens` (B, K, D), `t` (B,), and `mask` (B, K) selects the tokens that the
    decoder receives (None: all)."""

    latent_space: LatentSpace

    def uniform_times(self, num: int) -> Tensor:
        """Return the midpoints of `num` equal parts of the time interval."""
        ...

    def prediction_error(
        self, latents: Tensor, tokens: Tensor, mask: Tensor | None = None, *, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Return the unweighted mean squared error of the prediction from `latents` noised to time `t`, (B,)."""
        ...

    def predictions(
        self, latents: Tensor, tokens: Tensor, mask: Tensor | None = None, *, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Return the network's prediction from `latents` with `noise` added for time `t`, (B, C, H, W)."""
        ...

    def prediction_target(self, latents: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        """Return what `predictions` are trained to equal, (B, C, H, W)."""
        ...


def is_diffusion(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has a denoising loss, see `DiffusionTokenizer`."""
    return hasattr(tokenizer, "uniform_times")


def diffusion_tokenizer(tokenizer: Tokenizer, needs: str) -> DiffusionTokenizer:
    """Return the tokenizer, if it has a diffusion decoder.

    Raises:
        InputError: it has none; the message begins with `needs`, such as "the curve needs".
    """
    if not is_diffusion(tokenizer):
        name = type(tokenizer).__name__
        raise InputError(f"{needs} a tokenizer with a diffusion decoder (Semanticist), got {name}")
    return cast(DiffusionTokenizer, tokenizer)


def check_prefix(tokenizer: Tokenizer, partial: bool = False) -> None:
    """Check that a tokenizer has a curve: a denoising loss, or tokens of which the first ones can be decoded.

    Raises:
        InputError: it has none; the message states why and, where it helps, names --partial.
    """
    if not is_diffusion(tokenizer):
        try:
            check_order(tokenizer, partial)
        except InputError as error:
            replaced = tokenizer.spec.vocab_size is None
            raise InputError(f"{error}" + ("; --partial replaces the others by their means" * replaced)) from None


def check_times(tokenizers: Sequence[Tokenizer], times: int | None) -> None:
    """Raise InputError if a number of times is given and none of the tokenizers has a denoising loss."""
    if times is not None and not any(map(is_diffusion, tokenizers)):
        raise InputError(f"--times: only a diffusion decoder (Semanticist) has times, leave it out; got {times}")


@dataclass(frozen=True)
class CurvePoint:
    """The denoising loss, or squared error, with the first `keep` tokens.

    Args:
        share: (L_0 - L_keep) / (L_0 - L_K), the share of the loss reduction by all K tokens; None if they do not
            reduce it (L_K >= L_0).
    """

    keep: int
    loss: float
    share: float | None


@dataclass(frozen=True)
class Prefix:
    """The curve of a tokenizer.

    Args:
        num: number of images.
        measure: of `CurvePoint.loss`: "denoising loss", or "squared error" of images in [0, 1].
        times: number of noise levels; None for a squared error.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
        partial: whether tokens after the first ones were replaced by their means over the images.
    """

    num: int
    measure: Measure
    times: int | None
    label: str | None
    partial: bool
    points: list[CurvePoint]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return one line for each number of tokens."""
        return [
            f"keep {each.keep:4d}: {self.measure} {each.loss:.5f}, "
            + ("no share" if each.share is None else f"share {each.share:7.1%}")
            for each in self.points
        ]

    def said(self) -> str:
        """What was found, as a clause."""
        length, known = self.points[-1].keep, [each for each in self.points if each.share is not None]
        if not known:
            return f"its tokens do not lower the {self.measure}"
        first, share = known[1].keep, known[1].share
        most = next(each.keep for each in known if each.share is not None and each.share >= MOST)
        tokens = "the first token gives" if first == 1 else f"the first {first} tokens give"
        return (
            f"of the fall of the {self.measure} by all {length} tokens, {tokens} {share:.0%}, and {most} "
            f"{'token gives' if most == 1 else 'tokens give'} at least {MOST:.0%}"
        )


@torch.no_grad()
def prefix(
    tokenizer: Tokenizer, images: ImageSet, how: PrefixCurves, *, keep: Sequence[int] | None = None, name: str = ""
) -> Prefix:
    """Measure the curve of a tokenizer: the denoising loss if it has one, else the squared error of reconstructions.

    The squared error is that of the metric mse: of images in [0, 1], clamped, without border. Memory: one batch of
    images, and a sum for each number of tokens.

    Args:
        how: number of images (see `subset`), times, batch, condition and seed; `keep` is that of the command line.
        keep: numbers of tokens, to which 0 and all K are added; default: 0..K, or 0, 1, 2, 4, ..., K if K > 16.
        name: for the progress bar.

    Raises:
        InputError: see `check_prefix`, or a number of tokens out of range.
    """
    check_prefix(tokenizer, how.partial)
    images, length = subset(images, how.num), tokenizer.spec.length
    lengths = check_lengths(default_lengths(length) if keep is None else keep, length)
    if is_diffusion(tokenizer):
        times = TIMES if how.times is None else how.times
        label = ConditionedImages(tokenizer, images, how.label).conditioning.label
        with Bar(len(images), unit="image", name=name) as bar:
            points = explained_curve(
                tokenizer, images, keep=lengths, num_images=len(images), num_times=times,
                batch_size=how.batch_size, seed=how.seed, label=how.label, bar=bar,
            )  # fmt: skip
        return Prefix(len(images), "denoising loss", times, label, False, points)
    decoded = FirstTokens(
        tokenizer, images, label=how.label, partial=how.partial, batch_size=how.batch_size, seed=how.seed
    )
    sums = dict.fromkeys(lengths, 0.0)
    with Bar(len(images), unit="image", name=name) as bar:
        for x, decode in decoded.batches():
            for k in lengths:
                sums[k] += _sum(mse_per_image(decode(k), x))
            bar.update(len(x))
    points = _points({k: value / len(images) for k, value in sums.items()})
    return Prefix(len(images), "squared error", None, decoded.label, decoded.mean is not None, points)


def _points(losses: Mapping[int, float]) -> list[CurvePoint]:
    """The points of losses by number of tokens, from 0 to all."""
    most, none = losses[max(losses)], losses[0]
    gain = none - most
    return [CurvePoint(k, loss, (none - loss) / gain if gain > 0 else None) for k, loss in losses.items()]


@torch.no_grad()
def explained_curve(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    keep: Sequence[int] | None = None,
    num_images: int = 500,
    num_times: int = 20,
    batch_size: int = 100,
    seed: int = 0,
    label: str | None = None,
    bar: Bar | None = None,
) -> list[CurvePoint]:
    """Measure the denoising loss against the number of leading tokens that the decoder receives.

    Semanticist's curve of explained variance (arXiv 2503.08685): no token is 0 %, all tokens are 100 %. The loss is the
    unweighted squared error of the network's prediction, averaged over images and times. The noise depends on seed,
    image and time: it is the same for all prefixes and batch sizes.

    Args:
        keep: prefix lengths, to which 0 and K are added; default: 0..K, or 0, 1, 2, 4, ..., K if K > 16.
        num_images: number of images, see `subset`.
        num_times: number of times, the midpoints of equal parts of the time interval.
        label: condition of the tokenizer, see `conditioning_of`.
        bar: of the images, which is updated.

    Raises:
        InputError: a tokenizer without a diffusion decoder, or a count out of range.
    """
    model = diffusion_tokenizer(tokenizer, "the curve needs")
    length = tokenizer.spec.length
    lengths = check_lengths(default_lengths(length) if keep is None else keep, length)
    images = subset(images, num_images)
    count = len(images)
    for name, value in (("num_images", count), ("num_times", num_times), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    device = next(model.parameters()).device
    times = model.uniform_times(num_times).to(device)
    conditioned, sums = ConditionedImages(tokenizer, images, label), dict.fromkeys(lengths, 0.0)
    for indices in ranges(count, batch_size):
        x, _, cond = conditioned.batch(indices)
        x = x.to(device)
        tokens = tokenizer.encode(x, cond)
        latents, rngs = latents_and_noise(model, x, indices, seed)
        for time in times:
            noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs]).to(device)
            t = time.expand(len(x))
            for k in lengths:
                mask = prefix_mask(torch.full((len(x),), k, device=device), length)
                sums[k] += _sum(model.prediction_error(latents, tokens, mask, t=t, noise=noise))
        if bar is not None:
            bar.update(len(x))
    return _points({k: value / (count * num_times) for k, value in sums.items()})


def judged(
    tokenizer: Tokenizer, images: ImageSet, *, pad: int = 0, num_images: int = JUDGED, batch_size: int, seed: int = 0
) -> str:
    """One sentence if all tokens of a tokenizer reconstruct images worse than thumbnails; "" if not.

    Args:
        pad: width of the images' border, in pixels, that is cut off first.
        num_images: number of images, at most `JUDGED`.
    """
    some = subset(images, min(num_images, JUDGED))
    how = Reconstructions(keep=(tokenizer.spec.length,), batch_size=batch_size, seed=seed)
    records = evaluate_reconstruction(tokenizer, some, how, Measuring(Measures(("mse",), pad=pad)))
    return verdict([*records, *reconstruction_records(some, None, tokenizer.spec, metrics=("mse",), pad=pad)])


def latents_and_noise(
    tokenizer: DiffusionTokenizer, images: Tensor, indices: Sequence[int], seed: int
) -> tuple[Tensor, list[torch.Generator]]:
    """Return the latents (B, C, H, W) of images, and a generator of noise for each image.

    Both depend on the seed and the image's index only, not on the rest of the batch.
    """
    # Constants separate the random numbers of the posterior sample from those of the noise.
    posterior = [_rng(seed * 1_000_003 + index + 500_009) for index in indices]
    space, (height, width) = tokenizer.latent_space, images.shape[2:]
    shape = (space.channels, height // space.factor, width // space.factor)
    noise = torch.stack([torch.randn(shape, generator=rng) for rng in posterior]).to(images)
    rngs = [_rng(seed * 1_000_003 + index) for index in indices]
    return space.encode(images, noise=noise), rngs


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


def _sum(rows: Tensor) -> float:
    return float(rows.double().sum())


def default_lengths(length: int) -> list[int]:
    """Return the prefix lengths of a curve: all up to 16 tokens, else the powers of two and the number of tokens."""
    return list(range(length + 1)) if length <= 16 else prefix_lengths(length)


def check_lengths(keep: Sequence[int], length: int) -> list[int]:
    """Return prefix lengths in ascending order, with 0 and the number of tokens added.

    Raises:
        InputError: a length outside 0..length.
    """
    wrong = [k for k in keep if not 0 <= k <= length]
    if wrong:
        raise InputError(f"keep: expected numbers in 0..{length} (this model has {length} tokens), got {wrong[0]}")
    return sorted({0, *keep, length})


def plot_prefixes(found: Mapping[str, Prefix]) -> Image:
    """Plot the curves of several tokenizers on one axis; the legend states what each curve measures."""
    return plot_curve(
        {
            f"{name} ({each.measure}{', means of the others' if each.partial else ''})": each.points
            for name, each in found.items()
        },
        what="share of the fall by all tokens",
    )


def plot_curve(
    points_by_name: Mapping[str, Sequence[CurvePoint]], *, what: str = "share of the denoising-loss reduction"
) -> Image:
    """Plot the curves of one or more tokenizers by name.

    A curve without shares (its tokens do not reduce the loss) is only named in the legend. The axis of token counts is
    logarithmic if they exceed 16.

    Args:
        what: label of the axis of shares.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for (name, points), marker in zip(points_by_name.items(), "os^Dv*" * len(points_by_name)):
        known = [(point.keep, point.share) for point in points if point.share is not None]
        label = name if known else f"{name}: its tokens do not reduce the loss"
        axes.plot(
            [k for k, _ in known], [share for _, share in known], marker=marker, linewidth=2, label=plot_label(label)
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(what)
    if points_by_name:
        keep_axis(axes, [point.keep for points in points_by_name.values() for point in points])
    return figure_image(figure)

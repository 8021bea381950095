"""Inner products of the changes that the tokens make to the prediction, as for principal components of data.

Semanticist (arXiv 2503.08685), appendix A: the contributions of different tokens are orthogonal in expectation, each is
orthogonal to the final residual in expectation, and their energies add up to the fall of the loss. The same products
are measured for one-pass decoders, whose prediction is the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.analyze.first_tokens import FirstTokens, check_order
from tok1d.analyze.plots import keep_axis, ranges
from tok1d.analyze.prefix import (
    DiffusionTokenizer,
    Measure,
    check_lengths,
    diffusion_tokenizer,
    is_diffusion,
    latents_and_noise,
)
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.inference.conditions import ConditionedImages
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import prefix_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from PIL.Image import Image

TIMES = 10  # noise levels


@dataclass(frozen=True)
class Increments:
    """Mean inner products of increments and final residual.

    Increment i is d_i = prediction(first keep[i] tokens) - prediction(first keep[i - 1] tokens), the first one against
    no token. The final residual is r = target - prediction(all tokens). All means are over images, times and the
    numbers of a prediction, in float64.

    Args:
        keep: the prefix lengths, ascending, from at least 1 to the number of tokens; one increment for each.
        products: (n + 1, n + 1), E<a, b> / numbers for a and b among d_1, ..., d_n, r.
        num: number of images.
        measure: what `losses` are: "denoising loss", or "squared error" of images in [0, 1].
        times: number of noise levels; None for a squared error.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
    """

    keep: tuple[int, ...]
    products: Tensor
    num: int
    measure: Measure
    times: int | None
    label: str | None

    @property
    def energy(self) -> Tensor:
        """(n,), the mean squared value of each increment."""
        return self.products.diagonal()[:-1]

    @property
    def _correlations(self) -> Tensor:
        roots = self.products.diagonal().sqrt()
        scale = roots[:, None] * roots
        return torch.where(scale > 0, self.products / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)

    @property
    def correlation(self) -> Tensor:
        """(n, n), E<d_i, d_j> / sqrt(E|d_i|^2 E|d_j|^2), in [-1, 1]; 0 if one of the increments is 0 everywhere."""
        return self._correlations[:-1, :-1]

    @property
    def residual_correlation(self) -> Tensor:
        """(n,), the same for each increment and the final residual."""
        return self._correlations[:-1, -1]

    @property
    def losses(self) -> Tensor:
        """(n + 1,), the mean squared error of the prediction from 0, keep[0], ..., keep[-1] tokens.

        target - prediction(first keep[i] tokens) is the sum of r and of the increments after i.
        """
        return torch.stack([self.products[i:, i:].sum() for i in range(len(self.products))])

    @property
    def mean_correlation(self) -> float:
        """Mean absolute correlation over all pairs of different increments; 0 if orthogonal in expectation."""
        upper = torch.ones_like(self.correlation).triu(1).bool()
        return float(self.correlation.abs()[upper].mean())

    @property
    def weighted_correlation(self) -> float:
        """The same mean with the weights sqrt(E|d_i|^2 E|d_j|^2), so that tokens of little energy count little."""
        upper, roots = torch.ones_like(self.correlation).triu(1).bool(), self.energy.sqrt()
        weights = (roots[:, None] * roots)[upper]
        total = float(weights.sum())
        return float((self.correlation.abs()[upper] * weights).sum()) / total if total > 0 else 0.0

    @property
    def largest_correlation(self) -> float:
        """The largest absolute correlation of two different increments."""
        return float(self.correlation.abs().triu(1).max())

    @property
    def energy_sum(self) -> float:
        """Sum of the energies."""
        return float(self.energy.sum())

    @property
    def loss_drop(self) -> float:
        """Loss without tokens minus loss with all; equals `energy_sum` if all inner products vanish in expectation."""
        return float(self.losses[0] - self.losses[-1])

    @property
    def energy_ratio(self) -> float | None:
        """`energy_sum` / `loss_drop`; None if the tokens do not lower the loss."""
        return self.energy_sum / self.loss_drop if self.loss_drop > 0 else None

    @property
    def falling(self) -> float:
        """Fraction of successive increments, in [0, 1], with less energy than the one before."""
        return float((self.energy.diff() < 0).float().mean())

    def describe(self) -> list[str]:
        """Return the results as lines of text."""
        total, ratio = self.energy_sum, self.energy_ratio
        shares = (self.energy / total if total > 0 else self.energy).tolist()
        lines = [
            f"to token {k:4d}: {share:6.1%} of the energy of all increments" for k, share in zip(self.keep, shares)
        ]
        residual = float(self.residual_correlation.abs().max())
        return [
            *lines,
            f"correlation of different increments (0 is orthogonal in expectation): mean {self.mean_correlation:.3f}, "
            f"weighted by energy {self.weighted_correlation:.3f}, largest {self.largest_correlation:.3f}",
            f"largest correlation of an increment with the final residual: {residual:.3f}",
            f"sum of the energies {total:.4f}, fall of the {self.measure} {self.loss_drop:.4f}"
            + ("" if ratio is None else f", ratio {ratio:.3f}"),
        ]

    def said(self) -> str:
        """What was found, as a clause."""
        steps = len(self.keep) - 1
        ratio = (
            f"its tokens do not lower the {self.measure}"
            if self.energy_ratio is None
            else f"the energies of {len(self.keep)} increments add up to {self.energy_ratio:.2f} of the fall of the "
            f"{self.measure}"
        )
        return (
            f"{ratio}; the correlation of two increments is {self.mean_correlation:.3f} in the mean, "
            f"{self.weighted_correlation:.3f} weighted by energy and {self.largest_correlation:.3f} at most, with the "
            f"final residual {float(self.residual_correlation.abs().max()):.3f} at most; the energy falls in "
            f"{round(self.falling * steps)} of {steps} steps"
        )

    def to_json(self) -> dict[str, object]:
        """Return all values and summaries as JSON types."""
        tensors = ("energy", "correlation", "residual_correlation", "losses")
        correlations = ("mean_correlation", "weighted_correlation", "largest_correlation")
        energies = ("energy_sum", "loss_drop", "energy_ratio", "falling")
        return {
            **{name: getattr(self, name) for name in ("num", "measure", "times", "label")},
            "keep": list(self.keep),
            **{name: getattr(self, name).tolist() for name in tensors},
            **{name: getattr(self, name) for name in (*correlations, *energies)},
        }


def check_increments(tokenizer: Tokenizer) -> None:
    """Check that a tokenizer has increments: a denoising loss, or tokens with an order, and at least two tokens.

    Raises:
        InputError: it has none; the message states why.
    """
    if not is_diffusion(tokenizer):
        check_order(tokenizer)
    if tokenizer.spec.length < 2:
        raise InputError(f"increments need at least 2 tokens, it has {tokenizer.spec.length}")


@torch.no_grad()
def increments(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    keep: Sequence[int] | None = None,
    num_images: int = 500,
    num_times: int = TIMES,
    batch_size: int = 100,
    seed: int = 0,
    label: str | None = None,
    name: str | None = None,
) -> Increments:
    """Measure the inner products of the prediction increments of tokens (arXiv 2503.08685, appendix A).

    All prefixes of an image receive the same noisy latents. Inner products are summed over images and times, and only
    the sums are normalised, because the paper's statement is about expectations: a mean of the cosines of single images
    does not vanish where the expectation does. The parametrisation of the network (noise, data or velocity) determines
    the weights of the times in the mean. Without a diffusion decoder, the predictions are the decoded images, in [0, 1]
    and without border, and the target is the image.

    Memory: 8 bytes for each number of a batch's predictions and each increment, (n + 1) * batch_size * C * H * W.

    Args:
        keep: prefix lengths, to which the number of tokens K is added; default: 1..K, one increment per token.
        num_images: number of images, see `subset`.
        num_times: number of times, the midpoints of equal parts of the time interval.
        batch_size: images at once.
        seed: of the noise, which depends on the seed and the image, not on the batch size.
        label: condition of the tokenizer, see `conditioning_of`.
        name: for the progress bar; None: without one.

    Raises:
        InputError: see `check_increments`, fewer than two increments, or a count out of range.
    """
    check_increments(tokenizer)
    length, images = tokenizer.spec.length, subset(images, num_images)
    counts = check_lengths(range(1, length + 1) if keep is None else keep, length)
    if len(counts) < 3:
        raise InputError(f"increments need at least 2 numbers of tokens, got {len(counts) - 1} (0 is always one more)")
    for what, value in (("num_images", len(images)), ("num_times", num_times), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{what}: expected at least 1, got {value}")
    if is_diffusion(tokenizer):
        source: _Denoised | _Decoded = _Denoised(tokenizer, images, num_times, batch_size, seed, label)
    else:
        source = _Decoded(FirstTokens(tokenizer, images, label=label, batch_size=batch_size, seed=seed))
    sums, numbers = torch.zeros(len(counts), len(counts), dtype=torch.float64), 0
    with Bar(len(images) * (source.times or 1), unit="prediction", name=name or "", quiet=name is None) as bar:
        for batch, rest in source.rests(counts):
            rows = torch.cat([rest[:-1] - rest[1:], rest[-1:]])
            sums += rows @ rows.T
            numbers += rows.shape[1]
            bar.update(batch)
    about = (source.measure, source.times, source.label)
    return Increments(tuple(counts[1:]), sums / numbers, len(images), *about)


class _Denoised:
    """What the predictions of a diffusion decoder leave of its target."""

    measure: Measure = "denoising loss"

    def __init__(
        self, tokenizer: Tokenizer, images: ImageSet, times: int, batch_size: int, seed: int, label: str | None
    ) -> None:
        self.tokenizer, self.model = tokenizer, diffusion_tokenizer(tokenizer, "increments need")
        self.conditioned = ConditionedImages(tokenizer, images, label)
        self.times, self.batch_size, self.seed = times, batch_size, seed
        self.label = self.conditioned.conditioning.label

    def rests(self, counts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield a number of images, and target - prediction by number of tokens, (len(counts), numbers) float64."""
        device = next(self.model.parameters()).device
        for indices in ranges(len(self.conditioned.images), self.batch_size):
            x, _, cond = self.conditioned.batch(indices)
            x = x.to(device)
            tokens = self.tokenizer.encode(x, cond)
            latents, rngs = latents_and_noise(self.model, x, indices, self.seed)
            for time in self.model.uniform_times(self.times).to(device):
                noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs]).to(device)
                yield len(x), _rest(self.model, latents, tokens, counts, time.expand(len(x)), noise)


class _Decoded:
    """What images decoded from first tokens leave of the images."""

    measure: Measure = "squared error"
    times = None

    def __init__(self, source: FirstTokens) -> None:
        self.source, self.label = source, source.label

    def rests(self, counts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield a number of images, and image - decoded image by number of tokens, (len(counts), numbers) float64."""
        for x, decoded in self.source.batches():
            yield len(x), torch.stack([(x - decoded(k)).flatten().cpu().double() for k in counts])


def _rest(
    model: DiffusionTokenizer, latents: Tensor, tokens: Tensor, counts: Sequence[int], t: Tensor, noise: Tensor
) -> Tensor:
    """(len(counts), B * numbers), float64 on the CPU: target - prediction by number of tokens."""
    target = model.prediction_target(latents, t=t, noise=noise).flatten().cpu().double()
    rest = torch.empty(len(counts), len(target), dtype=torch.float64)
    for row, k in zip(rest, counts):
        mask = prefix_mask(torch.full((len(t),), k, device=t.device), tokens.shape[1])
        row.copy_(target - model.predictions(latents, tokens, mask, t=t, noise=noise).flatten().cpu().double())
    return rest


def plot_increments(found: Mapping[str, Increments]) -> Image:
    """Plot the correlations of each tokenizer, and below the energies of the increments of all on one axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(6.2 * len(found) + 1.0, 13.0), 8.2), dpi=110, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.35, 1))[:, 0]
    panels = upper.subplots(1, len(found), squeeze=False)[0]
    span = max(0.05, *(_largest(each.correlation, each.residual_correlation) for each in found.values()))
    for axes, (name, each) in zip(panels, found.items(), strict=True):
        image = _draw_correlations(axes, each.keep, each.correlation, each.residual_correlation, span)
        axes.set_title(plot_label(name), fontsize=9)
    upper.colorbar(image, ax=list(panels), label="correlation in expectation", shrink=0.8)
    axes = lower.subplots()
    for name, each in found.items():
        total = each.energy_sum
        shares = (100 * each.energy / total if total > 0 else each.energy).tolist()
        ratio = "" if each.energy_ratio is None else f": energies / fall of the {each.measure} {each.energy_ratio:.2f}"
        axes.plot(each.keep, shares, marker="o", label=plot_label(f"{name}{ratio}"))
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylabel("share of the energy of\nall increments, %")
    keep_axis(axes, [k for each in found.values() for k in each.keep])
    axes.set_xlabel("increment up to this number of tokens")
    return figure_image(figure)


def plot_correlations(keep: Sequence[int], correlation: Tensor, residual: Tensor, title: str = "") -> Image:
    """Plot the correlations of all pairs of increments, and of each increment with the final residual (last row).

    Args:
        keep, correlation, residual: `keep`, `correlation` and `residual_correlation` of `Increments`.
    """
    from matplotlib.figure import Figure

    size = min(max(0.42 * len(keep) + 2.2, 4.0), 12.0)
    figure = Figure(figsize=(size + 0.8, size), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    image = _draw_correlations(axes, keep, correlation, residual, max(0.05, _largest(correlation, residual)))
    axes.set_title(plot_label(title), fontsize=10)
    figure.colorbar(image, ax=axes, label="correlation in expectation", shrink=0.8)
    return figure_image(figure)


def _largest(correlation: Tensor, residual: Tensor) -> float:
    """The largest absolute correlation of two different increments, or of one with the residual."""
    return max(float(correlation.abs().triu(1).max()), float(residual.abs().max()))


def _draw_correlations(
    axes: Axes, keep: Sequence[int], correlation: Tensor, residual: Tensor, span: float
) -> AxesImage:
    """Draw the correlations in colours from -span to span, with numbers for up to 16 increments; grey diagonal."""
    names = [str(k) for k in keep]
    values = torch.cat([correlation, residual[None]])
    values.fill_diagonal_(torch.nan)
    axes.set_facecolor("lightgrey")
    image = axes.imshow(values.numpy(), vmin=-span, vmax=span, cmap="RdBu_r")
    if len(names) <= 16:
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                if i != j:
                    colour = "white" if abs(value) > 0.6 * span else "black"
                    text = f"{value:+.2f}".replace("0.", ".")
                    axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=colour)
    every = max(len(names) // 16, 1)
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=8)
    axes.set_yticks([*range(0, len(names), every), len(names)], [*names[::every], "residual"], fontsize=8)
    axes.set_xlabel("increment up to this number of tokens")
    return image

"""Inner products of the changes that the tokens make to the prediction, as for principal components of data.

Semanticist (arXiv 2503.08685), appendix A: the contributions of different tokens are orthogonal in expectation, each is
orthogonal to the final residual in expectation, and their energies add up to the fall of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.analyze.prefix import DiffusionTokenizer, check_lengths, diffusion_tokenizer, latents_and_noise
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.pictures import figure_image
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import prefix_mask

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Increments:
    """Mean inner products of increments and final residual.

    Increment i is d_i = prediction(first keep[i] tokens) - prediction(first keep[i - 1] tokens), the first one against
    no token. The final residual is r = target - prediction(all tokens). All means are over images, times and the
    numbers of a prediction, in float64.

    Args:
        keep: the prefix lengths, ascending, from at least 1 to the number of tokens; one increment for each.
        products: (n + 1, n + 1), E<a, b> / numbers for a and b among d_1, ..., d_n, r.
    """

    keep: tuple[int, ...]
    products: Tensor

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
            f"sum of the energies {total:.4f}, fall of the loss {self.loss_drop:.4f}"
            + ("" if ratio is None else f", ratio {ratio:.3f}"),
        ]

    def to_json(self) -> dict[str, object]:
        """Return all values and summaries as JSON types."""
        tensors = ("energy", "correlation", "residual_correlation", "losses")
        correlations = ("mean_correlation", "weighted_correlation", "largest_correlation")
        energies = ("energy_sum", "loss_drop", "energy_ratio", "falling")
        return {
            "keep": list(self.keep),
            **{name: getattr(self, name).tolist() for name in tensors},
            **{name: getattr(self, name) for name in (*correlations, *energies)},
        }


@torch.no_grad()
def increments(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    keep: Sequence[int] | None = None,
    num_images: int = 500,
    num_times: int = 10,
    batch_size: int = 100,
    seed: int = 0,
) -> Increments:
    """Measure the inner products of the prediction increments of tokens (arXiv 2503.08685, appendix A).

    All prefixes of an image receive the same noisy latents. Inner products are summed over images and times, and only
    the sums are normalised, because the paper's statement is about expectations: a mean of the cosines of single images
    does not vanish where the expectation does. The parametrisation of the network (noise, data or velocity) determines
    the weights of the times in the mean.

    Args:
        keep: prefix lengths, to which the number of tokens K is added; default: 1..K, one increment per token.
        num_images: number of images, see `subset`.
        num_times: number of times, the midpoints of equal parts of the time interval.
        batch_size: images at once; memory grows with its product with the number of lengths.
        seed: of the noise, which depends on the seed and the image, not on the batch size.

    Raises:
        InputError: a tokenizer without a diffusion decoder, fewer than two increments, or a count out of range.
    """
    model = diffusion_tokenizer(tokenizer, "increments need")
    length = tokenizer.spec.length
    counts = check_lengths(range(1, length + 1) if keep is None else keep, length)
    images = subset(images, num_images)
    if len(counts) < 3:
        raise InputError(f"increments need at least 2 numbers of tokens, got {len(counts) - 1} (0 is always one more)")
    for name, value in (("num_images", len(images)), ("num_times", num_times), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    device = next(model.parameters()).device
    sums, numbers = torch.zeros(len(counts), len(counts), dtype=torch.float64), 0
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        x, labels = images.batch(indices)
        x = x.to(device)
        tokens = tokenizer.encode(x, labels.to(device) if tokenizer.spec.needs_label else None)
        latents, rngs = latents_and_noise(model, x, indices, seed)
        for time in model.uniform_times(num_times).to(device):
            noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs]).to(device)
            rows = _increments_and_residual(model, latents, tokens, counts, time.expand(len(x)), noise)
            sums += rows @ rows.T
            numbers += rows.shape[1]
    return Increments(tuple(counts[1:]), sums / numbers)


def _increments_and_residual(
    model: DiffusionTokenizer, latents: Tensor, tokens: Tensor, counts: Sequence[int], t: Tensor, noise: Tensor
) -> Tensor:
    """(n + 1, B * numbers), float64 on the CPU: the increments between successive counts, then the final residual."""
    target = model.prediction_target(latents, t=t, noise=noise).flatten().cpu().double()
    rest = torch.empty(len(counts), len(target), dtype=torch.float64)  # target - prediction, by number of tokens
    for row, k in zip(rest, counts):
        mask = prefix_mask(torch.full((len(t),), k, device=t.device), tokens.shape[1])
        row.copy_(target - model.predictions(latents, tokens, mask, t=t, noise=noise).flatten().cpu().double())
    return torch.cat([rest[:-1] - rest[1:], rest[-1:]])


def plot_correlations(keep: Sequence[int], correlation: Tensor, residual: Tensor, title: str = "") -> Image:
    """Plot the correlations of all pairs of increments, and of each increment with the final residual (last row).

    Args:
        keep, correlation, residual: `keep`, `correlation` and `residual_correlation` of `Increments`.
    """
    from matplotlib.figure import Figure

    names = [str(k) for k in keep]
    values = torch.cat([correlation, residual[None]]).numpy()
    size = min(max(0.42 * len(names) + 2.2, 4.0), 12.0)
    figure = Figure(figsize=(size + 0.8, size), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    if len(names) <= 16:
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=6, color=colour)
    every = max(len(names) // 16, 1)
    axes.set_xticks(range(0, len(names), every), names[::every])
    axes.set_yticks([*range(0, len(names), every), len(names)], [*names[::every], "residual"])
    axes.set_xlabel("increment up to this number of tokens")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="correlation in expectation", shrink=0.8)
    return figure_image(figure)

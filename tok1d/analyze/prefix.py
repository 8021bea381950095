"""The PCA-like curve of a tokenizer with a diffusion decoder: denoising loss against number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.baselines import reconstruction_records, verdict
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions
from tok1d.pictures import figure_image, plot_label
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.latent_space import LatentSpace
from tok1d.tokenizers.prefix import prefix_lengths, prefix_mask

if TYPE_CHECKING:
    from PIL.Image import Image

JUDGED = 100  # images whose reconstructions are compared with thumbnails


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


def diffusion_tokenizer(tokenizer: Tokenizer, needs: str) -> DiffusionTokenizer:
    """Return the tokenizer, if it has a diffusion decoder.

    Raises:
        InputError: it has none; the message begins with `needs`, such as "the curve needs".
    """
    if not hasattr(tokenizer, "uniform_times"):
        name = type(tokenizer).__name__
        raise InputError(f"{needs} a tokenizer with a diffusion decoder (Semanticist), got {name}")
    return cast(DiffusionTokenizer, tokenizer)


@dataclass(frozen=True)
class CurvePoint:
    """The denoising loss with the first `keep` tokens.

    Args:
        share: (L_0 - L_keep) / (L_0 - L_K), the share of the loss reduction by all K tokens; None if they do not
            reduce it (L_K >= L_0).
    """

    keep: int
    loss: float
    share: float | None


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
) -> list[CurvePoint]:
    """Measure the denoising loss against the number of leading tokens that the decoder receives.

    Semanticist's curve of explained variance (arXiv 2503.08685): no token is 0 %, all tokens are 100 %. The loss is the
    unweighted squared error of the network's prediction, averaged over images and times. The noise depends on seed,
    image and time: it is the same for all prefixes and batch sizes.

    Args:
        keep: prefix lengths, to which 0 and K are added; default: 0..K, or 0, 1, 2, 4, ..., K if K > 16.
        num_images: number of images, see `subset`.
        num_times: number of times, the midpoints of equal parts of the time interval.

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
    sums = dict.fromkeys(lengths, 0.0)
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        x, labels = images.batch(indices)
        x, labels = x.to(device), labels.to(device)
        tokens = tokenizer.encode(x, labels if tokenizer.spec.needs_label else None)
        latents, rngs = latents_and_noise(model, x, indices, seed)
        for time in times:
            noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs]).to(device)
            t = time.expand(len(x))
            for k in lengths:
                mask = prefix_mask(torch.full_like(labels, k), length)
                sums[k] += _sum(model.prediction_error(latents, tokens, mask, t=t, noise=noise))
    losses = {k: value / (count * num_times) for k, value in sums.items()}
    gain = losses[0] - losses[length]
    return [CurvePoint(k, losses[k], (losses[0] - losses[k]) / gain if gain > 0 else None) for k in lengths]


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


def plot_curve(points_by_name: Mapping[str, Sequence[CurvePoint]]) -> Image:
    """Plot the curves of one or more tokenizers by name.

    A curve without shares (its tokens do not reduce the loss) is only named in the legend. The axis of token counts is
    logarithmic if they exceed 16.
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
    ticks = sorted({point.keep for points in points_by_name.values() for point in points})
    if ticks and ticks[-1] > 16:
        axes.set_xscale("symlog", base=2, linthresh=1)
        ticks = [0, *prefix_lengths(ticks[-1])]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("tokens kept")
    axes.set_ylabel("share of the denoising-loss reduction")
    axes.grid(alpha=0.3)
    if points_by_name:
        axes.legend(loc="lower right", frameon=False)
    return figure_image(figure)

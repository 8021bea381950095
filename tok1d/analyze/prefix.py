"""What each token is worth: the PCA-like curve of a tokenizer with a diffusion decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.tokenizers.prefix import prefix_lengths, prefix_mask

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class CurvePoint:
    """The denoising loss with the first `keep` tokens.

    Args:
        share: (L_0 - L_keep) / (L_0 - L_K), the share of the loss reduction that all K tokens bring; None where
            they bring none (L_K >= L_0).
    """

    keep: int
    loss: float
    share: float | None


@torch.no_grad()
def explained_curve(
    tokenizer: Any,
    images: ImageSet,
    *,
    keep: Sequence[int] | None = None,
    num_images: int = 500,
    num_times: int = 20,
    batch_size: int = 100,
    seed: int = 0,
) -> list[CurvePoint]:
    """Denoising loss of some images of a set (see `subset`), over uniform times, against the number of tokens kept.

    Semanticist's explained-variance curve (arXiv 2503.08685): no token is 0 %, all tokens are 100 %. The loss is the
    unweighted squared error of what the network predicts, averaged over images and `num_times` midpoints of equal
    parts of time. Noise belongs to (seed, image, time): every prefix meets the same, whatever the batch size.

    Args:
        keep: prefix lengths, to which 0 and K are added (default: 0..K, or 0, 1, 2, 4, ..., K above K = 16).

    Raises:
        InputError: a tokenizer without a diffusion decoder, or a count out of range.
    """
    if not hasattr(tokenizer, "prediction_error"):
        name = type(tokenizer).__name__
        raise InputError(f"the curve needs a tokenizer with a diffusion decoder (Semanticist), got {name}")
    length = tokenizer.spec.length
    lengths = _lengths(keep, length)
    images = subset(images, num_images)
    count = len(images)
    for name, value in (("num_images", count), ("num_times", num_times), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    device = next(tokenizer.parameters()).device
    times = tokenizer.uniform_times(num_times).to(device)
    sums = dict.fromkeys(lengths, 0.0)
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        x, labels = images.batch(indices)
        x, labels = x.to(device), labels.to(device)
        tokens = tokenizer.encode(x, labels if tokenizer.spec.needs_label else None)
        latents, sources = latents_and_noise(tokenizer, x, indices, seed)
        for time in times:
            noise = torch.stack([torch.randn(latents.shape[1:], generator=source) for source in sources]).to(device)
            t = time.expand(len(x))
            for k in lengths:
                mask = prefix_mask(torch.full_like(labels, k), length)
                sums[k] += _sum(tokenizer.prediction_error(latents, tokens, mask, t=t, noise=noise))
    losses = {k: value / (count * num_times) for k, value in sums.items()}
    gain = losses[0] - losses[length]
    return [CurvePoint(k, losses[k], (losses[0] - losses[k]) / gain if gain > 0 else None) for k in lengths]


def latents_and_noise(
    tokenizer: Any, images: Tensor, indices: Sequence[int], seed: int
) -> tuple[Tensor, list[torch.Generator]]:
    """Latents of held-out images and a source of noise for each: both belong to (seed, image), not to the batch."""
    posterior = [_source(seed * 1_000_003 + index + 500_009) for index in indices]
    space, (height, width) = tokenizer.latent_space, images.shape[2:]
    shape = (space.channels, height // space.factor, width // space.factor)
    noise = torch.stack([torch.randn(shape, generator=source) for source in posterior]).to(images)
    sources = [_source(seed * 1_000_003 + index) for index in indices]
    return space.encode(images, noise=noise), sources


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


def _sum(rows: Tensor) -> float:
    return float(rows.double().sum())


def _lengths(keep: Sequence[int] | None, length: int) -> list[int]:
    if keep is None:
        keep = range(length + 1) if length <= 16 else prefix_lengths(length)
    wrong = [k for k in keep if not 0 <= k <= length]
    if wrong:
        raise InputError(f"keep must lie in 0..{length} (this model has {length} tokens), got {wrong[0]}")
    return sorted({0, *keep, length})


def plot_curve(points_by_name: Mapping[str, Sequence[CurvePoint]]) -> Image:
    """The curves of one or more tokenizers in one picture, named in its legend.

    A curve without shares (its tokens lower no loss) is only named. Token counts above 16 stand on a log axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter
    from PIL import Image

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for (name, points), marker in zip(points_by_name.items(), "os^Dv*" * len(points_by_name)):
        known = [(point.keep, point.share) for point in points if point.share is not None]
        label = name if known else f"{name}: its tokens lower no loss"
        axes.plot([k for k, _ in known], [share for _, share in known], marker=marker, linewidth=2, label=label)
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
    canvas.draw()
    return Image.fromarray(_rgb(canvas))


def _rgb(canvas: Any) -> Any:
    import numpy as np

    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""Pictures of tokens that are decoded with the class of another image, see `tok1d.analyze.swap`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tok1d.analyze.swap import MEAN, VARIANTS, Swapped, check_swap, paired, reconstruct
from tok1d.data.images import ImageSet
from tok1d.data.labels import mapped
from tok1d.errors import InputError
from tok1d.pictures import figure_image, grid, plot_label
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.no_grad()
def swap_picture(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    keep: int | None = None,
    num_images: int = 500,
    batch_size: int = 100,
    columns: int = 10,
    zoom: int = 2,
    label: str | None = None,
    means: Tensor | None = None,
) -> Image:
    """Draw a grid: in the first row images in neighbouring pairs (A, B), then one row per variant.

    Every column uses the tokens of the image at its top. The pairs are the first of those that `swap` measures with
    equal `num_images` and `batch_size`.

    Args:
        keep: number of leading tokens that the decoder receives; default: all.
        columns: maximum number of images in a row.
        zoom: see `pictures.grid`.
        label: see `check_swap`.
        means: the mean image of each class, for a last row.

    Raises:
        InputError: as `swap`.
    """
    conditioning = check_swap(tokenizer, images, label)
    num = min(num_images, len(images))
    found = next(paired(images, num, batch_size), None)
    if found is None:
        raise InputError(f"swap needs images of different classes, these {num} have none")
    x, classes, partner = (part.to(next(tokenizer.parameters()).device) for part in found)
    labels = mapped(classes, conditioning.places)
    firsts = [i for i, j in enumerate(partner.tolist()) if i < j][: max(columns // 2, 1)]
    order = torch.tensor([k for i in firsts for k in (i, int(partner[i]))], device=x.device)
    neighbour = torch.arange(len(order), device=x.device).view(-1, 2).flip(1).flatten()
    rows = [x[order]]
    rows += [reconstruct(tokenizer, x[order], labels[order], neighbour, variant, keep) for variant in VARIANTS]
    rows += [] if means is None else [means[classes[order].cpu()].to(x)]
    return grid(torch.cat(rows), len(order), zoom=zoom)


def plot_swaps(found: Mapping[str, Swapped], pictures: Mapping[str, Image]) -> Image:
    """Plot the shares and errors of all variants for several tokenizers, and pictures of `swap_picture` by title."""
    from matplotlib.figure import Figure

    series = [
        (name, k) for name, each in found.items() for k in sorted({one.keep for one in each.variants if one.keep})
    ]
    names = [*VARIANTS, MEAN]
    figure = Figure(figsize=(11.0, 4.0 + 4.6 * -(-len(found) // 2)), dpi=100, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.0, 4.6 * -(-len(found) // 2)))[:, 0]
    left, right = upper.subplots(1, 2, sharey=True)
    height = 0.8 / len(series)
    for i, (name, k) in enumerate(series):
        for axes, what in ((left, "condition"), (right, "error")):
            known = [
                (names.index(one.variant) + (i - (len(series) - 1) / 2) * height, getattr(one, what))
                for one in found[name].variants
                if one.keep in (0, k) and getattr(one, what) is not None
            ]
            if known:
                places, values = zip(*known, strict=True)
                shown = [100 * value for value in values] if what == "condition" else values
                axes.barh(places, shown, height, color=f"C{i}", label=plot_label(f"{name}, {k} token{'s' * (k > 1)}"))
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlim(0, 100)
    left.set_xlabel("classified as the decoder's class, %")
    right.set_xlabel("squared error to the encoded image")
    upper.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    panels = lower.subplots(-(-len(pictures) // 2), min(len(pictures), 2), squeeze=False).flatten()
    for axes in panels[len(pictures) :]:
        axes.axis("off")
    rows = ["originals", *names]
    for axes, (title, picture) in zip(panels, pictures.items(), strict=False):
        axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(plot_label(title), fontsize=9)
        axes.set_yticks([(i + 0.5) * picture.height / len(rows) for i in range(len(rows))], rows, fontsize=7)
        axes.set_xticks([])
    return figure_image(figure)

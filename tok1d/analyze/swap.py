"""What follows the class, what the tokens? Tokens of one image decoded under the label of another (SMAP, figure 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tok1d.data.decoded import whole_set
from tok1d.data.images import ArrayImages, ImageSet
from tok1d.data.order import permutation
from tok1d.data.subset import subset
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.evaluate.networks import CNN
from tok1d.inference.conditions import choose_condition
from tok1d.pictures import grid

if TYPE_CHECKING:
    from PIL.Image import Image

# (whose label the encoder is told, whose the decoder, whether the tokens are used), for tokens of B and the label of A.
# "own" is the label of the image that the tokens come from, "other" that of its partner.
VARIANTS: dict[str, tuple[str, str, bool]] = {
    "matched": ("own", "own", True),
    "swapped": ("own", "other", True),
    "re-encoded": ("other", "other", True),
    "encoded under the other label": ("other", "own", True),
    "condition only": ("own", "own", False),
}


@dataclass(frozen=True)
class Swap:
    """How images of one variant are judged: shares of them, over both directions of all pairs.

    Args:
        condition: put into the class that the decoder was told; None without a judge.
        tokens: put into the class of the image that the tokens come from; None without tokens or judge.
        error: mean squared error to the image that the tokens come from (without tokens, that has the label).
    """

    variant: str
    num: int
    condition: float | None
    tokens: float | None
    error: float

    def to_json(self) -> dict[str, Any]:
        """The fields, and which labels and tokens the variant uses."""
        encoded, decoded, with_tokens = VARIANTS[self.variant]
        how = {"encoder_label": encoded, "decoder_label": decoded, "with_tokens": with_tokens}
        return {**asdict(self), **how}

    def words(self) -> str:
        """One line for people."""
        parts = [f"squared error {self.error:.4f}"]
        if self.condition is not None:
            parts.append(f"judged as the decoder's label {self.condition:6.1%}")
        if self.tokens is not None:
            parts.append(f"as the tokens' {self.tokens:6.1%}")
        return ", ".join(parts)


def partners(labels: Tensor) -> Tensor:
    """For every image another one of another class, (N,) indices: pairs (A, B) in which each is the other's partner.

    Images that are left over are their own partner.
    """
    partner, waiting = torch.arange(len(labels)), list[int]()
    for i, label in enumerate(labels.tolist()):
        match = next((j for j in waiting if labels[j] != label), None)
        if match is None:
            waiting.append(i)
            continue
        waiting.remove(match)
        partner[i], partner[match] = match, i
    return partner


def paired(images: ImageSet, num: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of images, their labels, and the indices of their partners, all of which are in the batch.

    Of `num` images, see `subset`; those that are not in random order as they are come in one, so that a batch has many
    classes.
    """
    chosen = subset(images, num)
    order = np.arange(len(chosen))
    if not isinstance(whole_set(images), ArrayImages):
        order = permutation(len(chosen), 0, 0)
    for start in range(0, len(order), batch_size):
        x, labels = chosen.batch(order[start : start + batch_size])
        partner = partners(labels)
        kept = (partner != torch.arange(len(partner))).nonzero()[:, 0]
        place = torch.full((len(partner),), -1).scatter(0, kept, torch.arange(len(kept)))
        if len(kept):
            yield x[kept], labels[kept], place[partner[kept]]


def paint(tokenizer: Any, x: Tensor, labels: Tensor, partner: Tensor, variant: str) -> Tensor:
    """Images (B, C, H, W) of a variant, from the tokens of each image; see `VARIANTS`."""
    told = {"own": labels, "other": labels[partner]}
    encoded, decoded, with_tokens = VARIANTS[variant]
    tokens = tokenizer.encode(x, told[encoded])
    return tokenizer.decode(tokens, told[decoded], keep=None if with_tokens else 0)


def check_swap(tokenizer: Any, images: ImageSet) -> None:
    """Raise InputError on a tokenizer that reads no class or needs all tokens, or images without its classes."""
    spec = tokenizer.spec
    if not (spec.needs_label and spec.ordered):
        name = type(tokenizer).__name__
        raise InputError(f"swap needs a tokenizer that is told the class and can do without tokens (SMAP), got {name}")
    if spec.reads_captions:
        raise InputError("swap compares classes, this tokenizer is told captions")
    choose_condition(tokenizer, images.num_classes, "true")


@torch.no_grad()
def swap(
    tokenizer: Any,
    images: ImageSet,
    judge: CNN | None = None,
    *,
    num_images: int = 500,
    batch_size: int = 100,
    pad: int = 0,
) -> list[Swap]:
    """Every variant over pairs of images that differ in class, both ways: which class does the judge see?

    If identity follows the label and appearance the tokens, `condition` is high and `tokens` low where they disagree.

    Args:
        judge: a classifier of the images' classes, without their border of `pad` pixels; None measures the error alone.

    Raises:
        InputError: as `check_swap`, or no two images of different classes.
    """
    check_swap(tokenizer, images)
    device, num = next(tokenizer.parameters()).device, min(num_images, len(images))
    sums = {variant: torch.zeros(3, dtype=torch.float64) for variant in VARIANTS}
    count = 0
    for x, labels, partner in paired(images, num, batch_size):
        x, labels, partner = x.to(device), labels.to(device), partner.to(device)
        count += len(x)
        for variant, (_, decoded, _) in VARIANTS.items():
            y = without_border(paint(tokenizer, x, labels, partner, variant), pad)
            told = labels if decoded == "own" else labels[partner]
            error = (y - without_border(x, pad)).square().flatten(1).mean(1).sum()
            seen = torch.full_like(labels, -1) if judge is None else judge(y).argmax(1)
            sums[variant] += torch.stack([(seen == told).sum(), (seen == labels).sum(), error]).double().cpu()
    if not count:
        raise InputError(f"swap needs images of different classes, these {num} have none")
    found = []
    for variant, (_, _, with_tokens) in VARIANTS.items():
        condition, own, error = (sums[variant] / count).tolist()
        by_tokens = own if judge is not None and with_tokens else None
        found.append(Swap(variant, count, None if judge is None else condition, by_tokens, error))
    return found


@torch.no_grad()
def swap_picture(
    tokenizer: Any,
    images: ImageSet,
    *,
    num_images: int = 500,
    batch_size: int = 100,
    columns: int = 10,
    zoom: int = 2,
) -> Image:
    """Images in neighbouring pairs (A, B), and below them a row a variant, each from the tokens of its own column.

    The pairs are the first of those that `swap` measures with the same `num_images` and `batch_size`.

    Raises:
        InputError: as `swap`.
    """

    check_swap(tokenizer, images)
    num = min(num_images, len(images))
    found = next(paired(images, num, batch_size), None)
    if found is None:
        raise InputError(f"swap needs images of different classes, these {num} have none")
    x, labels, partner = (part.to(next(tokenizer.parameters()).device) for part in found)
    firsts = [i for i, j in enumerate(partner.tolist()) if i < j][: max(columns // 2, 1)]
    order = torch.tensor([k for i in firsts for k in (i, int(partner[i]))], device=x.device)
    side_by_side = torch.arange(len(order), device=x.device).view(-1, 2).flip(1).flatten()
    rows = [x[order]]
    rows += [paint(tokenizer, x[order], labels[order], side_by_side, variant) for variant in VARIANTS]
    return grid(torch.cat(rows), len(order), zoom=zoom)

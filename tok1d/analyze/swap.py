"""Tokens decoded with the class of another image: what depends on the class, what on the tokens (SMAP, figure 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tok1d.config.classes import Agreement, agreement, model_classes
from tok1d.data.images import ArrayImages, ImageSet
from tok1d.data.labels import image_classes, mapped
from tok1d.data.order import permutation
from tok1d.data.subset import subset, underlying
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.evaluate.networks import CNN
from tok1d.inference.conditions import Conditioning, conditioning_of
from tok1d.pictures import grid
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

# (class of the encoder, class of the decoder, whether the decoder receives tokens): "own" is the class of the encoded
# image, "other" the class of its partner.
VARIANTS: dict[str, tuple[str, str, bool]] = {
    "matched": ("own", "own", True),
    "swapped": ("own", "other", True),
    "re-encoded": ("other", "other", True),
    "encoded under the other label": ("other", "own", True),
    "condition only": ("own", "own", False),
}


@dataclass(frozen=True)
class Swap:
    """Results of one variant, over both directions of all pairs.

    Args:
        variant: one of `VARIANTS`.
        num: number of images.
        condition: share of the images that the classifier puts into the decoder's class; None without a classifier.
        tokens: share that it puts into the class of the encoded image; None without tokens or without a classifier.
        error: mean squared error to the encoded image.
    """

    variant: str
    num: int
    condition: float | None
    tokens: float | None
    error: float

    def to_json(self) -> dict[str, object]:
        """Return the fields, and the classes and tokens that the variant uses."""
        encoder, decoder, with_tokens = VARIANTS[self.variant]
        return {**asdict(self), "encoder_label": encoder, "decoder_label": decoder, "with_tokens": with_tokens}

    def describe(self) -> str:
        """Return the results as one line of text."""
        parts = [f"squared error {self.error:.4f}"]
        if self.condition is not None:
            parts.append(f"classified as the decoder's class {self.condition:6.1%}")
        if self.tokens is not None:
            parts.append(f"as the tokens' {self.tokens:6.1%}")
        return ", ".join(parts)


def partners(labels: Tensor) -> Tensor:
    """Pair images of different classes.

    Returns:
        For each of the labels (N,) the index of its partner, int64 (N,). Partners are mutual; images for which none is
        left are their own partner.
    """
    partner, unpaired = torch.arange(len(labels)), list[int]()
    for i, label in enumerate(labels.tolist()):
        match = next((j for j in unpaired if labels[j] != label), None)
        if match is None:
            unpaired.append(i)
            continue
        unpaired.remove(match)
        partner[i], partner[match] = match, i
    return partner


def paired(images: ImageSet, num: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of images (B, C, H, W), labels (B,), and the indices (B,) of their partners within the batch.

    The images are `num` of the set, see `subset`. Sets other than arrays may be sorted by class and are permuted, so
    that each batch has many classes. Images without a partner are left out.
    """
    chosen = subset(images, num)
    order = np.arange(len(chosen))
    if not isinstance(underlying(images), ArrayImages):
        order = permutation(len(chosen), 0, 0)
    for start in range(0, len(order), batch_size):
        x, labels = chosen.batch(order[start : start + batch_size])
        partner = partners(labels)
        kept = (partner != torch.arange(len(partner))).nonzero()[:, 0]
        place = torch.full((len(partner),), -1).scatter(0, kept, torch.arange(len(kept)))
        if len(kept):
            yield x[kept], labels[kept], place[partner[kept]]


def reconstruct(tokenizer: Tokenizer, x: Tensor, labels: Tensor, partner: Tensor, variant: str) -> Tensor:
    """Encode and decode images (B, C, H, W) of classes (B,) with the classes and tokens of a variant."""
    classes = {"own": labels, "other": labels[partner]}
    encoder, decoder, with_tokens = VARIANTS[variant]
    tokens = tokenizer.encode(x, classes[encoder])
    return tokenizer.decode(tokens, classes[decoder], keep=None if with_tokens else 0)


def check_swap(tokenizer: Tokenizer, images: ImageSet, label: str | None = None) -> Conditioning:
    """The condition of a tokenizer that is conditioned on the classes of the images and can decode without tokens.

    Args:
        label: "true": the classes are taken by position where their names do not agree.

    Raises:
        InputError: it is not conditioned on these classes, or cannot decode without tokens.
    """
    spec = tokenizer.spec
    if not (spec.needs_label and spec.ordered):
        name = type(tokenizer).__name__
        raise InputError(
            f"swap needs a tokenizer that is conditioned on the class and can decode no tokens (SMAP), got {name}"
        )
    if spec.reads_captions:
        raise InputError("swap needs a tokenizer that is conditioned on the class, got one conditioned on captions")
    classes, known = image_classes(images), model_classes(tokenizer)
    found = conditioning_of(tokenizer, classes, label)
    if found.label != "true":
        advice = "; --label true takes them by position" if classes.num == known.num else ""
        raise InputError(f"swap needs images of the tokenizer's classes; {agreement(classes, known).said}{advice}")
    return found


def judged(classifier: CNN | None, images: ImageSet) -> Agreement:
    """How the classes of images correspond to those of a classifier; raises InputError if they do not."""
    known = model_classes(classifier)
    if not known.num:
        return Agreement(True)
    found = agreement(image_classes(images), known)
    if not found.agrees:
        raise InputError(f"swap needs a classifier of the images' classes; {found.said}")
    return found


@torch.no_grad()
def swap(
    tokenizer: Tokenizer,
    images: ImageSet,
    classifier: CNN | None = None,
    *,
    num_images: int = 500,
    batch_size: int = 100,
    pad: int = 0,
    label: str | None = None,
) -> list[Swap]:
    """Measure all variants over pairs of images of different classes, in both directions.

    If the class determines the identity of the decoded object and the tokens only its appearance, `condition` is high
    and `tokens` low in the variants in which the two classes differ.

    Args:
        classifier: of the images' classes, for images without border; None measures only the error.
        num_images: number of images, see `subset`, of which pairs are formed within each batch.
        pad: width of the images' border in pixels, which is removed before measuring.
        label: see `check_swap`.

    Raises:
        InputError: as `check_swap`, or no two images of different classes.
    """
    conditioning, judge = check_swap(tokenizer, images, label), judged(classifier, images)
    conditioning.say()
    device, num = next(tokenizer.parameters()).device, min(num_images, len(images))
    sums = {variant: torch.zeros(3, dtype=torch.float64) for variant in VARIANTS}
    count = 0
    for x, labels, partner in paired(images, num, batch_size):
        x, labels, partner = x.to(device), labels.to(device), partner.to(device)
        ids, shown = mapped(labels, conditioning.places), mapped(labels, judge.places)
        count += len(x)
        for variant, (_, decoded, _) in VARIANTS.items():
            y = without_border(reconstruct(tokenizer, x, ids, partner, variant), pad)
            expected = shown if decoded == "own" else shown[partner]
            error = (y - without_border(x, pad)).square().flatten(1).mean(1).sum()
            found = torch.full_like(labels, -1) if classifier is None else classifier(y).argmax(1)
            sums[variant] += torch.stack([(found == expected).sum(), (found == shown).sum(), error]).double().cpu()
    if not count:
        raise InputError(f"swap needs images of different classes, these {num} have none")
    results = []
    for variant, (_, _, with_tokens) in VARIANTS.items():
        condition, own, error = (sums[variant] / count).tolist()
        by_tokens = own if classifier is not None and with_tokens else None
        results.append(Swap(variant, count, None if classifier is None else condition, by_tokens, error))
    return results


@torch.no_grad()
def swap_picture(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    num_images: int = 500,
    batch_size: int = 100,
    columns: int = 10,
    zoom: int = 2,
    label: str | None = None,
) -> Image:
    """Draw a grid: in the first row images in neighbouring pairs (A, B), then one row per variant.

    Every column uses the tokens of the image at its top. The pairs are the first of those that `swap` measures with
    equal `num_images` and `batch_size`.

    Args:
        columns: maximum number of images in a row.
        zoom: see `pictures.grid`.
        label: see `check_swap`.

    Raises:
        InputError: as `swap`.
    """
    conditioning = check_swap(tokenizer, images, label)
    num = min(num_images, len(images))
    found = next(paired(images, num, batch_size), None)
    if found is None:
        raise InputError(f"swap needs images of different classes, these {num} have none")
    x, labels, partner = (part.to(next(tokenizer.parameters()).device) for part in found)
    labels = mapped(labels, conditioning.places)
    firsts = [i for i, j in enumerate(partner.tolist()) if i < j][: max(columns // 2, 1)]
    order = torch.tensor([k for i in firsts for k in (i, int(partner[i]))], device=x.device)
    neighbour = torch.arange(len(order), device=x.device).view(-1, 2).flip(1).flatten()
    rows = [x[order]]
    rows += [reconstruct(tokenizer, x[order], labels[order], neighbour, variant) for variant in VARIANTS]
    return grid(torch.cat(rows), len(order), zoom=zoom)

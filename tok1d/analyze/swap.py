"""Tokens decoded with the class of another image: what depends on the class, what on the tokens (SMAP, figure 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from tok1d.analyze.plots import ranges
from tok1d.config.classes import Agreement, agreement, model_classes, stated
from tok1d.config.options import check_counts
from tok1d.data.images import ArrayImages, ImageSet
from tok1d.data.labels import image_classes, mapped
from tok1d.data.order import permutation
from tok1d.data.subset import subset, underlying
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reconstruction import classifier_name
from tok1d.inference.conditions import Conditioning, conditioning_of
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

# (class of the encoder, class of the decoder, whether the decoder receives tokens): "own" is the class of the encoded
# image, "other" the class of its partner, "null" the null class.
VARIANTS: dict[str, tuple[str, str, bool]] = {
    "matched": ("own", "own", True),
    "swapped": ("own", "other", True),
    "re-encoded": ("other", "other", True),
    "encoded under the other label": ("other", "own", True),
    "encoder only": ("own", "null", True),
    "decoder only": ("null", "own", True),
    "condition only": ("own", "own", False),
}
MEAN = "class mean"  # not decoded: the mean training image of the class


@dataclass(frozen=True)
class Swap:
    """Results of one variant, over both directions of all pairs.

    Args:
        variant: one of `VARIANTS`, or "class mean": the mean training image of the class.
        num: number of images.
        condition: share of the images that the classifier puts into the decoder's class; None without a classifier, and
            if the decoder receives the null class.
        tokens: share that it puts into the class of the encoded image; None without tokens or without a classifier.
        error: mean squared error to the encoded image.
        keep: number of tokens that the decoder receives.
        classes: number of classes of the images.
        followed: number of classes of the decoder into which most of their images are classified; None as `condition`.
        better: number of classes of the encoded images whose mean error is below that of their mean training image;
            None without such means.
    """

    variant: str
    num: int
    condition: float | None
    tokens: float | None
    error: float
    keep: int
    classes: int
    followed: int | None
    better: int | None

    def to_json(self) -> dict[str, object]:
        """Return the fields, and the classes and tokens that the variant uses."""
        encoder, decoder, with_tokens = VARIANTS.get(self.variant, (None, "own", False))
        return {**asdict(self), "encoder_label": encoder, "decoder_label": decoder, "with_tokens": with_tokens}

    def describe(self) -> str:
        """Return the results as one line of text."""
        parts = [f"squared error {self.error:.4f}"]
        if self.better is not None and self.variant != MEAN:
            parts.append(f"below that of the mean image for {self.better} of {self.classes} classes")
        if self.condition is not None:
            parts.append(f"classified as the decoder's class {self.condition:6.1%}")
            parts.append(f"most images of {self.followed} of {self.classes} classes")
        if self.tokens is not None:
            parts.append(f"as the tokens' {self.tokens:6.1%}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Swapped:
    """The results of a tokenizer.

    Args:
        num: number of images in pairs of different classes.
        judge: name of the classifier; None without one.
        class_names: of the images, as records state them; None if they have no names.
        variants: for each variant with tokens and each number of tokens one entry, then those without tokens.
    """

    num: int
    judge: str | None
    class_names: str | None
    variants: list[Swap]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return {**asdict(self), "variants": [each.to_json() for each in self.variants]}

    def of(self, variant: str) -> Swap | None:
        """The result of a variant with the most tokens; None if it was not measured."""
        return next((each for each in reversed(self.variants) if each.variant == variant), None)

    def describe(self) -> list[str]:
        """Return one line for each variant."""
        lines = [f"{self.num} images in pairs of different classes"]
        return [*lines, *(f"{each.variant:30s} keep {each.keep:4d}: {each.describe()}" for each in self.variants)]

    def said(self) -> str:
        """What was found, as a clause."""
        swapped, alone, mean = (self.of(variant) for variant in ("swapped", "condition only", MEAN))
        assert swapped is not None and alone is not None
        if swapped.condition is None or swapped.tokens is None:
            first = f"with the class of another image the squared error is {swapped.error:.4f}"
        else:
            first = (
                f"decoded with the class of another image, {swapped.condition:.0%} of the images are classified as it "
                f"(most images for {swapped.followed} of {swapped.classes} classes) and {swapped.tokens:.0%} as "
                "their own"
            )
        against = ""
        if mean is not None:
            against = (
                f", against {mean.error:.4f} of the mean image of the class (lower for {alone.better} of "
                f"{alone.classes} classes)"
            )
        return f"{first}; from the class alone the squared error is {alone.error:.4f}{against}"


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


def reconstruct(
    tokenizer: Tokenizer, x: Tensor, labels: Tensor, partner: Tensor, variant: str, keep: int | None = None
) -> Tensor:
    """Encode and decode images (B, C, H, W) of classes (B,) with the classes and tokens of a variant.

    Args:
        keep: number of leading tokens that the decoder receives, if the variant has tokens; default: all.
    """
    classes = {"own": labels, "other": labels[partner], "null": None}
    encoder, decoder, with_tokens = VARIANTS[variant]
    tokens = tokenizer.encode(x, classes[encoder])
    return tokenizer.decode(tokens, classes[decoder], keep=keep if with_tokens else 0)


def class_means(images: ImageSet, num: int, batch_size: int = 250, *, name: str | None = None) -> Tensor:
    """The mean image of each class, (num_classes, C, H, W); of a class without images that of all.

    Memory: an image in float64 for each class, and one batch.

    Args:
        num: number of images, see `subset`.
        name: for the progress bar; None: without one.
    """
    chosen = subset(images, num)
    sums, counts = torch.zeros(()), torch.zeros(images.num_classes, dtype=torch.float64)
    with Bar(len(chosen), unit="image", name=name or "", quiet=name is None) as bar:
        for numbers in ranges(len(chosen), batch_size):
            x, labels = chosen.batch(numbers)
            if not sums.shape:
                sums = torch.zeros(len(counts), *x.shape[1:], dtype=torch.float64)
            sums.index_add_(0, labels, x.double())
            counts += torch.bincount(labels, minlength=len(counts))
            bar.update(len(x))
    means = sums / counts.clamp_min(1).view(-1, 1, 1, 1)
    means[counts == 0] = sums.sum(0) / counts.sum()
    return means.float()


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
    keep: Sequence[int] = (),
    num_images: int = 500,
    batch_size: int = 100,
    pad: int = 0,
    label: str | None = None,
    means: Tensor | None = None,
    name: str | None = None,
) -> Swapped:
    """Measure all variants over pairs of images of different classes, in both directions.

    If the class determines the identity of the decoded object and the tokens only its appearance, `condition` is high
    and `tokens` low in the variants in which the two classes differ. Memory: one batch of images, sums for each class,
    and `means`.

    Args:
        classifier: of the images' classes, for images without border; None measures only the error.
        keep: numbers of leading tokens that the decoder receives; default: all.
        num_images: number of images, see `subset`, of which pairs are formed within each batch.
        pad: width of the images' border in pixels, which is removed before measuring.
        label: see `check_swap`.
        means: the mean image of each class, see `class_means`; None: without this baseline.
        name: for the progress bar; None: without one.

    Raises:
        InputError: as `check_swap`, a number of tokens out of range, or no two images of different classes.
    """
    conditioning, judge = check_swap(tokenizer, images, label), judged(classifier, images)
    lengths = sorted(set(check_counts(list(keep), "--keep", 1, tokenizer.spec.length) or [tokenizer.spec.length]))
    device, num = next(tokenizer.parameters()).device, min(num_images, len(images))
    cases = [(variant, k) for variant, (_, _, tokens) in VARIANTS.items() for k in (lengths if tokens else [0])]
    cases += [] if means is None else [(MEAN, 0)]
    tallies = {case: _Tally(images.num_classes) for case in cases}
    with Bar(num, unit="image", name=name or "", quiet=name is None) as bar:
        for x, labels, partner in paired(images, num, batch_size):
            x, labels, partner = x.to(device), labels.to(device), partner.to(device)
            ids = mapped(labels, conditioning.places)
            for (variant, k), tally in tallies.items():
                if variant == MEAN and means is not None:
                    y, given = means[labels.cpu()].to(device), labels
                else:
                    y = reconstruct(tokenizer, x, ids, partner, variant, k)
                    given = labels[partner] if VARIANTS[variant][1] == "other" else labels
                y = without_border(y, pad)
                error = (y - without_border(x, pad)).square().flatten(1).mean(1)
                found = None if classifier is None else classifier(y).argmax(1)
                right = [None if found is None else found == mapped(each, judge.places) for each in (given, labels)]
                tally.add(labels, given, error, *right)
            bar.update(len(x))
    if not tallies[cases[0]].num:
        raise InputError(f"swap needs images of different classes, these {num} have none")
    baseline = None if means is None else tallies[MEAN, 0]
    results = [tally.result(variant, k, baseline) for (variant, k), tally in tallies.items()]
    names = stated(images.class_names)
    return Swapped(results[0].num, None if classifier is None else classifier_name(classifier), names, results)


class _Tally:
    """Sums over the images of one variant, by class."""

    def __init__(self, classes: int) -> None:
        self.encoded, self.given, self.errors, self.right = (
            torch.zeros(classes, dtype=torch.float64) for _ in range(4)
        )
        self.own, self.num, self.judged = 0, 0, False

    def add(self, labels: Tensor, given: Tensor, error: Tensor, as_given: Tensor | None, as_own: Tensor | None) -> None:
        """Add images of classes `labels` (B,) that were decoded with the classes `given` (B,).

        Args:
            error: squared errors (B,).
            as_given, as_own: whether the classifier puts each image (B,) into either class; None without one.
        """
        labels, given, classes = labels.cpu(), given.cpu(), len(self.errors)
        self.encoded += torch.bincount(labels, minlength=classes)
        self.given += torch.bincount(given, minlength=classes)
        self.errors.index_add_(0, labels, error.double().cpu())
        self.num += len(labels)
        if as_given is not None and as_own is not None:
            self.judged = True
            self.right.index_add_(0, given, as_given.double().cpu())
            self.own += int(as_own.sum())

    def result(self, variant: str, keep: int, baseline: _Tally | None) -> Swap:
        """The results; `baseline` is the tally of the class means."""
        _, decoder, with_tokens = VARIANTS.get(variant, (None, "own", False))
        followed = self.judged and decoder != "null"
        present = self.encoded > 0
        return Swap(
            variant,
            self.num,
            float(self.right.sum()) / self.num if followed else None,
            self.own / self.num if self.judged and with_tokens else None,
            float(self.errors.sum()) / self.num,
            keep,
            int(present.sum()),
            int((2 * self.right > self.given).sum()) if followed else None,
            None if baseline is None else int((self.errors < baseline.errors)[present].sum()),
        )

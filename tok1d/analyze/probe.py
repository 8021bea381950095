"""Linear probes of tokens by their number (Semanticist, arXiv 2503.08685, figure 4; MAETok, arXiv 2502.03444, 4.1).

A probe is a ridge regression to one-hot classes in closed form, from sums over the training images. Both papers leave
the pooling of several tokens open, so tokens are concatenated and averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tok1d.analyze.codes import Codes
from tok1d.analyze.judged import prefix_counts
from tok1d.analyze.plots import keep_axis
from tok1d.analyze.request import Probes
from tok1d.config.options import check_counts
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # of the ridge penalty, in units of the variance of a standardised number
EVERY = 5  # one in so many training images is held out while the strength is chosen
CONSTANT = 1e-12  # share of the largest variance up to which a number counts as constant


@dataclass(frozen=True)
class Sums:
    """Sums over images with features x (F,) and one-hot classes y (C,), float64; all that ridge regression needs.

    Args:
        num: number of images.
        x, y, xx, xy: (F,), (C,), (F, F) and (F, C).
    """

    num: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Sums:
        """The sums of rows x (B, F) and y (B, C)."""
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.num + other.num, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy)

    def first(self, num: int) -> Sums:
        """The sums of the first `num` features."""
        return Sums(self.num, self.x[:num], self.y, self.xx[:num, :num], self.xy[:num])

    def projected(self, basis: Tensor) -> Sums:
        """The sums of the features x @ basis, for a basis (F, G)."""
        return Sums(self.num, self.x @ basis, self.y, basis.T @ self.xx @ basis, basis.T @ self.xy)

    def components(self) -> Tensor:
        """The principal components of the features in columns (F, F), by decreasing variance."""
        mean = self.x / self.num
        return torch.linalg.eigh(self.xx / self.num - torch.outer(mean, mean))[1].flip(1)


@dataclass(frozen=True)
class Linear:
    """A linear classifier: scores x @ weight + bias of the classes.

    Args:
        weight, bias: (F, C) and (C,).
    """

    weight: Tensor
    bias: Tensor

    def correct(self, x: Tensor, labels: Tensor) -> int:
        """How many of the rows x (B, at least F), of which the first F features count, get their label (B,)."""
        return int(((x[:, : len(self.weight)] @ self.weight + self.bias).argmax(1) == labels).sum())

    def error(self, sums: Sums) -> float:
        """Mean squared error of the scores to one-hot classes over the images of the sums."""
        w, b, num = self.weight, self.bias, sums.num
        cross = (w * sums.xy).sum() + b @ sums.y
        square = (w * (sums.xx @ w)).sum() + 2 * (sums.x @ w) @ b + num * b @ b
        return float(sums.y.sum() - 2 * cross + square) / num  # the squares of one-hot classes add up to their sum


def ridge(sums: Sums, strength: float) -> Linear:
    """The ridge regression of one-hot classes on standardised features; constant features get weight 0."""
    mean, shares = sums.x / sums.num, sums.y / sums.num
    covariance = sums.xx / sums.num - torch.outer(mean, mean)
    cross = sums.xy / sums.num - torch.outer(mean, shares)
    variance = covariance.diagonal()
    scale = torch.where(variance > CONSTANT * variance.max(), variance.clamp_min(1e-300).rsqrt(), 0.0)
    correlation = scale[:, None] * covariance * scale
    correlation.diagonal().add_(strength)
    weight = scale[:, None] * torch.cholesky_solve(scale[:, None] * cross, torch.linalg.cholesky(correlation))
    return Linear(weight, shares - mean @ weight)


def fitted(parts: tuple[Sums, Sums]) -> Linear:
    """The ridge regression on two parts together, with the strength whose fit of the first predicts the second best."""
    first, held = parts
    strength = min(STRENGTHS, key=lambda each: ridge(first, each).error(held))
    return ridge(first + held, strength)


@dataclass(frozen=True)
class ProbePoint:
    """Test accuracies, in [0, 1], of linear probes on the first `keep` tokens.

    Args:
        numbers: numbers in these tokens.
        concatenated, averaged: of the tokens, concatenated or averaged.
        pca: of as many principal components of the pixels (at most all).
    """

    keep: int
    numbers: int
    concatenated: float
    averaged: float
    pca: float


@dataclass(frozen=True)
class Probe:
    """The probes of a tokenizer.

    Args:
        num_train, num: numbers of training and of test images.
        num_classes: number of classes.
        label: the encoder's condition: "null", "true", or None without a condition.
        pixels: test accuracy of a probe on the pixels, reduced to at most 32 x 32.
        frequent: share of the test images in the most frequent class of the training images.
    """

    num_train: int
    num: int
    num_classes: int
    label: str | None
    pixels: float
    frequent: float
    points: list[ProbePoint]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return one line for each number of tokens, and one for the pixels."""
        return [
            *(
                f"keep {each.keep:4d}: concatenated {each.concatenated:6.1%}, averaged {each.averaged:6.1%}, "
                f"as many principal components of the pixels {each.pca:6.1%}"
                for each in self.points
            ),
            f"pixels {self.pixels:6.1%}, most frequent class {self.frequent:6.1%}",
        ]

    def said(self) -> str:
        """What was found, as a clause."""
        best = max(self.points, key=lambda each: each.concatenated)
        mean = max(self.points, key=lambda each: each.averaged)
        return (
            f"a linear probe is most accurate on {best.keep} tokens concatenated ({best.concatenated:.1%}) and on "
            f"{mean.keep} averaged ({mean.averaged:.1%}), against {self.pixels:.1%} on pixels and {best.pca:.1%} on as "
            f"many principal components as the {best.keep} tokens have numbers"
        )


def probe(tokenizer: Tokenizer, train: ImageSet, test: ImageSet, how: Probes, *, name: str = "") -> Probe:
    """Fit linear probes on training images and measure their accuracy on test images.

    Memory: float64 sums of F^2 numbers for F numbers in all tokens and for F pixels (at most 3,072), twice; weights of
    F x C for C classes and each probe; one batch of images. Nothing is random.

    Args:
        how: `num_train` and `num` images, see `subset`.
        name: for the progress bar.

    Raises:
        InputError: images without classes or of different ones, fewer than 10 training images, numbers of tokens that
            the tokenizer does not have, or tokens that are not finite.
    """
    classes = image_classes(train)
    if classes.num < 2:
        raise InputError(f"probe needs images of at least two classes, these have {classes.num}")
    if train.class_names != test.class_names:
        raise InputError("probe needs training and test images of the same classes, in the same order")
    codes, tests = (
        Codes(tokenizer, subset(images, num), how.label) for images, num in ((train, how.num_train), (test, how.num))
    )
    if len(codes.images) < 2 * EVERY:
        raise InputError(f"probe needs at least {2 * EVERY} training images, got {len(codes.images)}")
    with Bar(len(codes.images) + len(tests.images), unit="image", name=name) as bar:
        tokens, pixels, shape = training_sums(codes, classes.num, how.batch_size, bar)
        keep = prefix_counts(check_counts(list(how.keep), "--keep", 1, shape[0]), shape[0])
        on_tokens, on_pixels = probes(tokens, pixels, keep, shape)
        right, frequent = torch.zeros(len(on_tokens) + len(on_pixels)), int((tokens[0] + tokens[1]).y.argmax())
        common = 0
        for numbers, x, y, labels in tests.batches(how.batch_size):
            found = [each.correct(x.flatten(1), labels) for each in on_tokens]
            right += torch.tensor(found + [each.correct(y, labels) for each in on_pixels])
            common += int((labels == frequent).sum())
            bar.update(len(numbers))
    num = len(tests.images)
    values = (right.double() / num).tolist()
    joined, averaged, (raw, *reduced) = values[: len(keep)], values[len(keep) : 2 * len(keep)], values[2 * len(keep) :]
    points = [ProbePoint(k, k * shape[1], *each) for k, each in zip(keep, zip(joined, averaged, reduced, strict=True))]
    return Probe(len(codes.images), num, classes.num, codes.label, raw, common / num, points)


Parts = tuple[Sums, Sums]  # of the images that fit, and of those that choose the strength


def training_sums(codes: Codes, num_classes: int, batch_size: int, bar: Bar) -> tuple[Parts, Parts, tuple[int, int]]:
    """The sums of tokens and of pixels over the training images, and the shape (K, D) of an image's tokens."""
    sums: dict[tuple[str, bool], Sums] = {}
    shape = (0, 0)
    for numbers, tokens, pixels, labels in codes.batches(batch_size):
        shape = (tokens.shape[1], tokens.shape[2])
        held = torch.arange(numbers.start, numbers.stop, device=labels.device) % EVERY == EVERY - 1
        y = one_hot(labels, num_classes).double()
        for name, x in (("tokens", tokens.flatten(1)), ("pixels", pixels)):
            for of in (False, True):
                found = Sums.of(x[held == of], y[held == of])
                sums[name, of] = sums[name, of] + found if (name, of) in sums else found
        bar.update(len(numbers))
    tokens_, pixels_ = ((sums[name, False], sums[name, True]) for name in ("tokens", "pixels"))
    return tokens_, pixels_, shape


def probes(
    tokens: Parts, pixels: Parts, keep: Sequence[int], shape: tuple[int, int]
) -> tuple[list[Linear], list[Linear]]:
    """The probes: on tokens, concatenated and then averaged for each of `keep`; on pixels, all and then PCA.

    Args:
        shape: (K, D) of an image's tokens.
    """
    length, dim = shape
    on_tokens = [fitted((tokens[0].first(k * dim), tokens[1].first(k * dim))) for k in keep]
    identity = torch.eye(dim, dtype=torch.float64, device=tokens[0].x.device)
    on_tokens += [_projected(tokens, torch.cat([identity / k] * k + [identity * 0] * (length - k))) for k in keep]
    components = (pixels[0] + pixels[1]).components()
    return on_tokens, [fitted(pixels), *(_projected(pixels, components[:, : k * dim]) for k in keep)]


def _projected(parts: Parts, basis: Tensor) -> Linear:
    """The probe on x @ basis, as one on x."""
    found = fitted((parts[0].projected(basis), parts[1].projected(basis)))
    return Linear(basis @ found.weight, found.bias)


def plot_probes(found: Mapping[str, Probe]) -> Image:
    """Plot the accuracies of each model by number of tokens, with those of the pixels and of principal components."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.6), dpi=120, layout="constrained")
    axes, shown = figure.add_subplot(), set[tuple[float, ...]]()
    for i, (name, each) in enumerate(found.items()):
        keep = [point.keep for point in each.points]
        for style, what in (("-", "concatenated"), ("--", "averaged")):
            values = [100 * getattr(point, what) for point in each.points]
            axes.plot(keep, values, style, marker="o", color=f"C{i}", label=plot_label(f"{name}, {what}"))
        beside = tuple(100 * value for value in (each.pixels, *(point.pca for point in each.points)))
        if beside in shown:  # models of equal images and numbers have the same
            continue
        shown.add(beside)
        axes.plot(keep, beside[1:], ":", marker=".", color="grey", label=plot_label(f"PCA, numbers of {name}"))
        axes.axhline(beside[0], color="grey", linewidth=1, label=plot_label(f"pixels of {name}"))
    axes.set_ylabel("test accuracy of a linear probe, %")
    keep_axis(axes, [point.keep for each in found.values() for point in each.points], beside=True)
    return figure_image(figure)

"""Budgets of tokens: what numbers chosen for each image gain over the same number for all, and which images need many.

The smallest prefix that reaches a quality is chosen by search, and by the tokenizer's head if it has one for that
quality. The error at a mean number of tokens that is no whole number lies on the line between the two fixed numbers
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.analyze.plots import keep_axis
from tok1d.analyze.request import Budgets
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.data.subset import subset
from tok1d.evaluate.budgets import measured_qualities
from tok1d.inference.budget import at_mean, check_ordered, smallest
from tok1d.inference.conditions import conditioning_of
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 100.0  # dB, in place of the infinite quality of an equal image
SHARES = (0.25, 0.5, 0.75)  # of the tokens; their mean quality is what budgets are chosen for by default


@dataclass(frozen=True)
class Choice:
    """Numbers of tokens chosen for a quality.

    Args:
        quality: wanted, in dB.
        by: search or head.
        tokens: mean number.
        error, fixed_error: mean of 10^(-quality / 10) with the chosen numbers, and with the same number for all; for
            PSNR the mean squared error.
        reached: mean quality with the chosen numbers in dB.
        within_one: of the head, the share of images whose number is within one of the search's.
        counts: images with 1, ..., K tokens.
        by_class: mean number of tokens of each class, by name or number.
    """

    quality: float
    by: str
    tokens: float
    error: float
    fixed_error: float
    reached: float
    within_one: float | None
    counts: list[int]
    by_class: dict[str, float]

    @property
    def gain(self) -> float:
        """The share of the fixed number's error that the choice saves."""
        return 1 - self.error / self.fixed_error if self.fixed_error > 0 else 0.0


@dataclass(frozen=True)
class BudgetCurve:
    """The budgets of a tokenizer.

    Args:
        num: number of images.
        metric: of the quality.
        errors: with the same number of tokens for all images, 1, ..., K.
        choices: for each quality by search and, with a head, by head.
        most, least: numbers of the images that need most and fewest tokens by search for the middle quality.
    """

    num: int
    metric: str
    errors: list[float]
    choices: list[Choice]
    most: list[int]
    least: list[int]
    label: str | None = None

    def to_json(self) -> dict[str, object]:
        """The fields, with the gain of each choice."""
        choices = [{**asdict(each), "gain": each.gain} for each in self.choices]
        return {**asdict(self), "choices": choices}

    def describe(self) -> list[str]:
        """A line for each choice."""
        lines = []
        for each in self.choices:
            near = "" if each.within_one is None else f", within one token of the search for {each.within_one:.1%}"
            lines.append(
                f"{self.metric} {each.quality:.2f} dB by {each.by}: {each.tokens:.2f} tokens on average, error "
                f"{each.error:.5f}, as many for every image {each.fixed_error:.5f} ({-each.gain:+.1%}){near}"
            )
        return lines

    def said(self) -> str:
        """What was found, as a clause."""
        best = max((each for each in self.choices if each.by == "search"), key=lambda each: each.gain)
        ranked = sorted(best.by_class.items(), key=lambda item: item[1])
        classes = (
            f"; {ranked[-1][0]} needs most ({ranked[-1][1]:.1f}), {ranked[0][0]} fewest ({ranked[0][1]:.1f})"
            if len(ranked) > 1
            else ""
        )
        return (
            f"with {best.tokens:.1f} tokens on average the error is {abs(best.gain):.0%} "
            f"{'lower' if best.gain >= 0 else 'higher'} than with as many for every image{classes}"
        )


def check_budget(tokenizer: Tokenizer) -> None:
    """Raise InputError for a tokenizer of unordered tokens."""
    check_ordered(tokenizer, "budget")


@torch.no_grad()
def budgets(tokenizer: Tokenizer, images: ImageSet, how: Budgets, *, name: str | None = None) -> BudgetCurve:
    """The budgets of a tokenizer for some qualities.

    Args:
        name: for the progress bar; None: without one.

    Raises:
        InputError: unordered tokens, or another metric than those of `load_quality`.
    """
    check_budget(tokenizer)
    chosen = subset(images, how.num)
    heads = [each for each in getattr(tokenizer, "budget_heads", ()) if each.config.metric == how.quality_metric]
    batches = measured_qualities(
        tokenizer, chosen, metric=how.quality_metric, label=how.label, seed=how.seed, rows=how.batch_size
    )
    found, labels, predicted = [], [], []
    with Bar(len(chosen), unit="image", name=name or "", quiet=name is None) as bar:
        for numbers, classes, tokens, qualities in batches:
            found.append(qualities.clamp(max=MOST).cpu())
            labels.append(classes)
            predicted += [head.qualities(tokens, qualities[:, -1]).cpu() for head in heads]
            bar.update(len(numbers))
    measured, classes = torch.cat(found), torch.cat(labels)
    length, errors = measured.shape[1], 10 ** (-measured.double() / 10)
    names = list(images.class_names) if len(images.class_names) > 1 else []
    wanted = how.quality or tuple(float(measured.mean(0)[max(round(share * length), 1) - 1]) for share in SHARES)
    choices = []
    for quality in wanted:
        searched = smallest(measured, quality)
        choices.append(_choice(searched, quality, "search", measured, errors, classes, names))
        if predicted:
            own = smallest(torch.cat(predicted), quality)
            near = float(((own - searched).abs() <= 1).double().mean())
            choices.append(_choice(own, quality, "head", measured, errors, classes, names, near))
    order = smallest(measured, sorted(wanted)[len(wanted) // 2]).argsort(descending=True, stable=True)
    used = conditioning_of(tokenizer, image_classes(images), how.label, captioned=any(images.captions)).label
    return BudgetCurve(
        len(chosen),
        how.quality_metric,
        errors.mean(0).tolist(),
        choices,
        order[:SHOWN].tolist(),
        order.flip(0)[:SHOWN].tolist(),
        used,
    )


SHOWN = 8  # images that need most, and fewest, tokens


def _choice(
    keep: Tensor,
    quality: float,
    by: str,
    measured: Tensor,
    errors: Tensor,
    classes: Tensor,
    names: Sequence[str],
    near: float | None = None,
) -> Choice:
    length, mean = errors.shape[1], float(keep.double().mean())
    shown = {
        names[label]: float(keep[classes == label].double().mean())
        for label in (classes.unique().tolist() if names else [])
    }
    return Choice(
        quality=quality,
        by=by,
        tokens=mean,
        error=float(errors.gather(1, keep[:, None] - 1).mean()),
        fixed_error=at_mean(errors.mean(0), mean),
        reached=float(measured.gather(1, keep[:, None] - 1).mean()),
        within_one=near,
        counts=torch.bincount(keep, minlength=length + 1)[1:].tolist(),
        by_class=shown,
    )


def plot_budgets(found: Mapping[str, BudgetCurve]) -> Image:
    """Error against the mean number of tokens, fixed and chosen, and how many images need how many tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, each) in enumerate(found.items()):
        counts = range(1, len(each.errors) + 1)
        left.plot(counts, each.errors, "-", color=f"C{i}", label=plot_label(f"{name}, the same for all images"))
        for by, marker in (("search", "o"), ("head", "x")):
            own = [(one.tokens, one.error) for one in each.choices if one.by == by]
            if own:
                left.plot(*zip(*sorted(own), strict=True), marker, color=f"C{i}", label=plot_label(f"{name}, by {by}"))
        searched = [one for one in each.choices if one.by == "search"]
        middle = sorted(searched, key=lambda one: one.quality)[len(searched) // 2]
        title = plot_label(f"{name}, {middle.quality:.1f} dB")
        right.plot(counts, [100 * one / each.num for one in middle.counts], marker=".", color=f"C{i}", label=title)
    left.set_yscale("log")
    left.set_ylabel("mean error")
    right.set_ylabel("images, %")
    longest = max(len(each.errors) for each in found.values())
    for axes in (left, right):
        keep_axis(axes, range(1, longest + 1))
    left.set_xlabel("tokens, mean over images")
    right.set_xlabel("tokens that an image needs")
    return figure_image(figure)

"""Whether a causal generator learns tokens more easily in their order (SMAP, arXiv 2603.25249, section 3.3).

A small CARD (for ids a small LlamaGen) is trained on the tokens in their order, reversed, and in one fixed random
order, each time from the same initial weights and with the same batches. Its held-out loss is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.config.fields import to_mapping
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.pictures import figure_image, plot_label
from tok1d.studies.learner import (
    GeneratorConfig,
    LossPoint,
    TokenSet,
    num_parameters,
    small_generator,
    token_set,
    train_config,
    train_generator,
)
from tok1d.studies.request import Ordering
from tok1d.tokenizers.base import Tokenizer, TokenSpec

if TYPE_CHECKING:
    from PIL.Image import Image

ORDERS = ("in order", "reversed", "shuffled")


@dataclass(frozen=True)
class OrderPoint:
    """The held-out loss of generators that were trained on tokens in one order.

    Args:
        order: one of `ORDERS`.
        places: the place in the tokenizer's order of each token.
        loss: at the end, the mean of `losses`.
        losses: of each training.
        curve: of the first training.
    """

    order: str
    places: list[int]
    loss: float
    losses: list[float]
    curve: list[LossPoint]


@dataclass(frozen=True)
class Orders:
    """The results of a tokenizer.

    Args:
        num: test images of the held-out loss.
        num_train: training images whose tokens were learned.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
        ordered: whether prefixes of the tokens can be decoded.
        unit: of the loss.
        generator: settings of the generator.
        parameters: of the generator.
    """

    num: int
    num_train: int
    label: str | None
    ordered: bool
    unit: str
    generator: dict[str, object]
    parameters: int
    points: list[OrderPoint]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    @property
    def spread(self) -> float | None:
        """The largest difference of two trainings in the same order; None of single trainings."""
        if len(self.points[0].losses) < 2:
            return None
        return max(max(each.losses) - min(each.losses) for each in self.points)

    def describe(self) -> list[str]:
        """Return one line for each order."""
        lines = []
        for each in self.points:
            all_losses = ", ".join(f"{loss:.4f}" for loss in each.losses)
            of = f" ({all_losses})" if len(each.losses) > 1 else ""
            lines.append(f"{each.order:8}: held-out loss {each.loss:.4f}{of}")
        return lines

    def said(self) -> str:
        """What was found, as a clause."""
        losses = ", ".join(f"{each.loss:.4f} {each.order}" for each in self.points)
        tail = "" if self.spread is None else f" (largest difference of two trainings in one order {self.spread:.4f})"
        return f"the held-out loss is {losses}{tail}"


def order_places(length: int, seed: int) -> dict[str, Tensor]:
    """The places (K,) of the tokens for each of `ORDERS`; the random order depends on the seed alone."""
    forward = torch.arange(length)
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return dict(zip(ORDERS, (forward, forward.flip(0), shuffled), strict=True))


def order_generator(spec: TokenSpec, classes: int, how: Ordering) -> GeneratorConfig:
    """The configuration of the causal generator for these tokens."""
    return small_generator("card" if spec.vocab_size is None else "llamagen", spec, classes, how)


def check_order(tokenizer: Tokenizer, name: str, how: Ordering, classes: int) -> None:
    """Raise InputError for a single token, which has no order, or a width that the generator's heads do not divide."""
    if tokenizer.spec.length < 2:
        raise InputError(f"{name}: order needs at least two tokens, this makes 1; leave it out")
    order_generator(tokenizer.spec, classes, how)


def order(tokenizer: Tokenizer, train: ImageSet, test: ImageSet, how: Ordering, *, name: str = "") -> Orders:
    """Train a causal generator on tokens in each order, and measure its held-out loss.

    Memory: the tokens of the chosen images in float32.

    Args:
        train, test: all images of the splits; `num_train` and `num` are chosen from them, see `subset`.
        name: for the progress bar.

    Raises:
        InputError: see `check_order`; or tokens that are not finite.
        DataError: tokens that do not vary.
    """
    check_order(tokenizer, name, how, train.num_classes)
    tokens = token_set(tokenizer, subset(train, how.num_train), subset(test, how.num), how.batch_size, name=name)
    return orders_of(tokens, tokenizer.spec, how)


def orders_of(tokens: TokenSet, spec: TokenSpec, how: Ordering, orders: Sequence[str] = ORDERS) -> Orders:
    """The held-out losses on tokens of a tokenizer in each of some orders."""
    config = order_generator(spec, tokens.classes.num, how)
    points, parameters = [], 0
    known = order_places(spec.length, how.seed)
    for which in orders:
        places, curves = known[which], list[list[LossPoint]]()
        for repeat in range(how.repeats):
            model, curve = train_generator(
                config,
                tokens.ordered(places),
                train_config(how.steps, how.train_batch),
                seed=how.seed + repeat,
                curve=not repeat,
            )
            curves.append(curve)
            parameters = num_parameters(model)
        losses = [each[-1].loss for each in curves]
        points.append(OrderPoint(which, places.tolist(), sum(losses) / len(losses), losses, curves[0]))
    return Orders(
        len(tokens.test),
        len(tokens.train),
        tokens.label,
        spec.ordered,
        "nats per id" if spec.vocab_size is not None else "squared error of the velocity",
        to_mapping(config),
        parameters,
        points,
    )


def plot_orders(found: Mapping[str, Orders]) -> Image:
    """Plot the held-out loss of each model over the training steps, one line for each order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, 4.6 * len(found)), 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, each) in zip(panels, found.items(), strict=True):
        for point, style in zip(each.points, ("-o", "--s", ":^"), strict=True):
            curve = point.curve[1:] or point.curve
            steps, losses = [at.step for at in curve], [at.loss for at in curve]
            line = axes.plot(steps, losses, style, markersize=4, label=f"{point.order}: {point.loss:.4f}")[0]
            if len(point.losses) > 1:
                last = [curve[-1].step] * len(point.losses)
                axes.plot(last, point.losses, "_", color=line.get_color(), markersize=12)
        kind = "ordered" if each.ordered else "unordered"
        axes.set_title(f"{plot_label(name)}\n({kind} tokens)", fontsize=9)
        axes.set_xlabel("training steps")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        axes.set_ylabel(f"held-out loss, {each.unit}", fontsize=9)
    return figure_image(figure)

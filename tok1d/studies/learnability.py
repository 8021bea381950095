"""How easily a small generator learns the tokens of tokenizers (MAETok, arXiv 2502.03444, figures 2b and 5).

The distance of samples to images has two parts: that of the samples to reconstructions of training images, which is of
the tokens and the generator, and that of these reconstructions to the images, which is the decoder's and which no
generator of the tokens can lower. A lower loss alone does not show that tokens are easier to learn: tokens that hold
less of the image have a lower loss too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from tok1d.analyze.plots import ranges
from tok1d.config.fields import to_mapping
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.enough import few_images, too_few
from tok1d.evaluate.generation import Sampler
from tok1d.evaluate.measures import Gathered, Measures, Measuring, strip
from tok1d.evaluate.metrics import frechet_distance
from tok1d.evaluate.request import Samples
from tok1d.generators.base import Generator
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.studies.learner import (
    LossPoint,
    num_parameters,
    small_generator,
    token_set,
    train_config,
    train_generator,
)
from tok1d.studies.request import Learning
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

PARTS = ("latent", "floor", "both")


@dataclass(frozen=True)
class Distances:
    """Fréchet distances in the features of one network, each of `num` images.

    Args:
        latent: of samples to reconstructions of training images.
        floor: of these reconstructions to the training images.
        both: of samples to the training images.
        note: that the images are few; "" if they are not.
    """

    network: str
    num: int
    latent: float
    floor: float
    both: float
    note: str = ""


@dataclass(frozen=True)
class Learnability:
    """The results of a tokenizer.

    Args:
        num: test images of the held-out loss.
        num_train: training images whose tokens were learned.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
        generator: settings of the generator.
        parameters: of the generator.
        losses: held-out loss before, during and after the training; squared error of the velocity of tokens with mean 0
            and variance 1, so that a generator that predicts 0 has about 2.
        distances: by network; empty without one.
    """

    num: int
    num_train: int
    label: str | None
    generator: dict[str, object]
    parameters: int
    losses: list[LossPoint]
    distances: list[Distances]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return one line for the loss and one for each network."""
        last = self.losses[-1]
        lines = [f"held-out loss {last.loss:.4f} after {last.step} steps ({self.parameters:,} parameters)"]
        for each in self.distances:
            note = f" ({each.note})" if each.note else ""
            lines.append(
                f"fd@{each.network.partition('@')[0]}: samples to reconstructions {each.latent:.3f}, reconstructions "
                f"to images {each.floor:.3f}, samples to images {each.both:.3f}{note}"
            )
        return lines

    def said(self) -> str:
        """What was found, as a clause; of several networks the first."""
        last = self.losses[-1]
        found = f"held-out loss {last.loss:.3f} after {last.step} steps"
        if not self.distances:
            return found
        each = self.distances[0]
        return (
            f"{found}, fd of samples {each.latent:.2f} to reconstructions of training images and {each.both:.2f} to "
            f"the images, with a floor of {each.floor:.2f}"
        )


def check_learnable(tokenizer: Tokenizer, name: str, how: Learning, classes: int) -> None:
    """Raise InputError if the generator does not model the tokens, or has a width that its heads do not divide."""
    if tokenizer.spec.vocab_size is not None:
        raise InputError(
            f"{name}: learnability compares losses on continuous tokens, this makes ids of a codebook; leave it out"
        )
    small_generator(how.generator, tokenizer.spec, classes, how)


def learnability(
    tokenizer: Tokenizer, train: ImageSet, test: ImageSet, how: Learning, measures: Measures, *, name: str = ""
) -> Learnability:
    """Train a small generator on the tokens of training images, and measure its loss and its samples.

    Memory: the tokens of the chosen images in float32, a batch of images, and F^2 numbers of 8 bytes for features of F
    numbers.

    Args:
        train, test: all images of the splits; `num_train` and `num` are chosen from them, see `subset`.
        measures: networks of the distances, with the metric "fd"; without one they are left out.
        name: for the progress bar.

    Raises:
        InputError: see `check_learnable`; or tokens that are not finite.
        DataError: tokens that do not vary.
    """
    check_learnable(tokenizer, name, how, train.num_classes)
    chosen = subset(train, how.num_train)
    tokens = token_set(tokenizer, chosen, subset(test, how.num), how.batch_size, name=name)
    config = small_generator(how.generator, tokenizer.spec, tokens.classes.num, how)
    model, losses = train_generator(config, tokens, train_config(how.steps, how.train_batch), seed=how.seed)
    place = next(tokenizer.parameters()).device
    distances = [] if not measures.networks else measured(model.to(place), tokenizer, train, how, measures, name=name)
    return Learnability(
        len(tokens.test),
        len(tokens.train),
        tokens.label,
        to_mapping(config),
        num_parameters(model),
        losses,
        distances,
    )


@torch.no_grad()
def measured(
    generator: Generator, tokenizer: Tokenizer, train: ImageSet, how: Learning, measures: Measures, *, name: str = ""
) -> list[Distances]:
    """The distances between samples, reconstructions and training images, `num` of each, by network.

    Samples have the classes of training images, drawn at random, and are decoded as the tokenizer decodes by default.
    """
    images = subset(train, how.num)
    num = len(images)
    conditional = bool(generator.config.num_classes)
    samples = Samples(
        num_samples=num,
        guidance=how.guidance,
        classes="train" if conditional else "balanced",
        batch_size=how.batch_size,
        seed=how.seed,
    )
    sampler = Sampler(generator, tokenizer, train if conditional else None, samples)
    measuring, (keep,) = Measuring(measures), sampler.keep
    made, decoded, real = (Gathered(measures) for _ in range(3))
    with Bar(num, unit="sample", name=name) as bar:
        for numbers in ranges(num, how.batch_size):
            columns = sampler.columns(numbers, measuring)
            made.update(strip(columns, f"{keep} "), numbers)
            decoded.update(measures.features(sampler.reconstruct(images, numbers, keep)), numbers)
            real.update(measures.features(images.batch(numbers)[0].to(sampler.device)), numbers)
            bar.update(len(numbers))
    return list(_distances(measures, made, decoded, real, num))


def _distances(measures: Measures, made: Gathered, decoded: Gathered, real: Gathered, num: int) -> Iterator[Distances]:
    """The distances by network; none of fewer images than a distance needs."""
    if too_few("fd", num, num):
        return
    for i, network in enumerate(measures.networks):
        a, b, c = (each.tallies[i].pooled for each in (made, decoded, real))
        yield Distances(
            network.label,
            num,
            frechet_distance(a, b),
            frechet_distance(b, c),
            frechet_distance(a, c),
            few_images("fd", num, network.dim, num),
        )


def plot_learnability(found: Mapping[str, Learnability]) -> Image:
    """Plot the held-out loss of each model over the steps, and the three distances of the first network beside it."""
    from matplotlib.figure import Figure

    measured = {name: each.distances[0] for name, each in found.items() if each.distances}
    figure = Figure(figsize=(10.4 if measured else 6.4, 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    left: Axes = panels[0]
    for name, each in found.items():
        points = each.losses[1:] or each.losses  # before the training it is about 2 for all
        left.plot([point.step for point in points], [point.loss for point in points], "-o", label=plot_label(name))
    left.set_xlabel("training steps")
    left.set_ylabel("held-out loss")
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    if measured:
        right: Axes = panels[1]
        titles = ("samples to\nreconstructions", "reconstructions\nto images", "samples to\nimages")
        width = 0.8 / len(measured)
        for i, (name, of) in enumerate(measured.items()):
            values = [getattr(of, part) for part in PARTS]
            places = [j + (i - (len(measured) - 1) / 2) * width for j in range(len(PARTS))]
            bars = right.bar(places, values, 0.9 * width, color=f"C{list(found).index(name)}", label=plot_label(name))
            right.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=7, padding=2)
        right.set_xticks(range(len(PARTS)), titles)
        network = next(iter(measured.values())).network.partition("@")[0]
        right.set_ylabel(plot_label(f"Fréchet distance, {network}"))
        right.margins(y=0.12)
        right.grid(alpha=0.3, axis="y")
    return figure_image(figure)

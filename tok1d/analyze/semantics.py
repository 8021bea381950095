"""Accuracy of networks on reconstructions by number of tokens (Semanticist, arXiv 2503.08685, figure 9 and D.2).

The measures are those of `tok1d evaluate reconstruction`: judge_accuracy, the share of the images that a classifier
puts into their class, and semantic_agreement, the share whose most likely class is that of their original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from tok1d.analyze.judged import flow_settings
from tok1d.analyze.plots import keep_axis
from tok1d.analyze.request import JudgedReconstructions
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.pictures import figure_image, plot_label
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

METRICS = ("labels", "semantic", "semantic5")
NAMES = {"judge_accuracy": "accuracy", "semantic_agreement": "agreement", "semantic_agreement_top5": "agreement_top5"}


@dataclass(frozen=True)
class SemanticPoint:
    """Shares of the images, in [0, 1], for one network and the first `keep` tokens; None for what it does not give.

    Args:
        accuracy: share in whose class the network puts the reconstruction.
        agreement: share whose most likely class is that of the original.
        agreement_top5: share whose five most likely classes include that of the original.
    """

    network: str
    keep: int
    accuracy: float | None = None
    agreement: float | None = None
    agreement_top5: float | None = None


@dataclass(frozen=True)
class Semantics:
    """The results of a tokenizer.

    Args:
        num: number of images.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
        decoding: settings of a diffusion decoder, with temperature and shift of a flow; None for a deterministic one.
        originals: accuracy on the originals by network, for the networks that classify into the images' classes.
    """

    num: int
    label: str | None
    decoding: dict[str, object] | None
    originals: dict[str, float]
    points: list[SemanticPoint]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return one line for each network and number of tokens, and one for the accuracy on the originals."""
        lines = []
        for each in self.points:
            known = {name: getattr(each, name) for name in ("accuracy", "agreement", "agreement_top5")}
            values = (f"{name} {value:6.1%}" for name, value in known.items() if value is not None)
            lines.append(f"{each.network}, keep {each.keep:4d}: {', '.join(values)}")
        return [*lines, *(f"{network}, originals: accuracy {value:6.1%}" for network, value in self.originals.items())]

    def said(self) -> str:
        """What was found, as a clause; of several networks the first."""
        network = self.points[0].network
        mine = [each for each in self.points if each.network == network]
        what = "agreement" if mine[0].accuracy is None else "accuracy"
        values = [f"{getattr(each, what):.1%}" for each in (mine[0], mine[-1])]
        span = f"is {values[0]} with {mine[0].keep} tokens"
        if len(mine) > 1:
            span = f"goes from {values[0]} with {mine[0].keep} to {values[1]} with {mine[-1].keep} tokens"
        against = f", against {self.originals[network]:.1%} on the originals" if network in self.originals else ""
        return f"the {what} of {network.partition('@')[0]} {span}{against}"


def semantics(tokenizer: Tokenizer, images: ImageSet, how: JudgedReconstructions, measures: Measures) -> Semantics:
    """Measure the accuracy and the agreement of networks on reconstructions.

    Memory: one batch of images, and sums.

    Args:
        how: the numbers of tokens, by default the powers of two and all, and the decoding; `num` images, see `subset`.
        measures: networks with the metrics `METRICS`.

    Raises:
        InputError: no network has classes, or settings that the tokenizer does not have.
    """
    check_networks(measures)
    with flow_settings(tokenizer, how) as flow:
        records = evaluate_reconstruction(tokenizer, subset(images, how.num), how, Measuring(measures))
    return gathered(records, flow)


def check_networks(measures: Measures) -> None:
    """Raise InputError if no network is available."""
    if not measures.networks:
        reasons = "; ".join(measures.missing.values()) or "none is bundled for these images"
        raise InputError(f"semantics needs a network with classes: {reasons}; choose one with --network")


def gathered(records: list[Record], flow: dict[str, float]) -> Semantics:
    """The results in the records of an evaluation.

    Raises:
        InputError: no network has classes.
    """
    points: dict[tuple[str, int], dict[str, float]] = {}
    originals = {}
    for record in records:
        name = NAMES.get(record.name.partition("@")[0])
        if name is None or record.value is None or record.network is None:
            continue
        if record.keep is None:
            originals[record.network] = record.value
        else:
            points.setdefault((record.network, record.keep), {})[name] = record.value
    if not points:
        reasons = "; ".join(dict.fromkeys(record.note for record in records if record.value is None and record.note))
        raise InputError(f"semantics needs a network with classes: {reasons}; choose another with --network")
    first = records[0]
    decoding = None if first.decoding is None else {**first.decoding, **flow}
    found = [SemanticPoint(network, keep, **values) for (network, keep), values in sorted(points.items())]
    return Semantics(first.num_images, first.label, decoding, originals, found)


def plot_semantics(found: Mapping[str, Semantics]) -> Image:
    """Plot accuracy and agreement of each model and network by number of tokens, with the accuracy on the originals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.6), dpi=120, layout="constrained")
    axes, colours = figure.add_subplot(), 0
    for name, each in found.items():
        for network in dict.fromkeys(point.network for point in each.points):
            mine = [point for point in each.points if point.network == network]
            title = f"{name}, {network.partition('@')[0]}"
            for style, what in (("-", "accuracy"), ("--", "agreement")):
                known = [(point.keep, 100 * value) for point in mine if (value := getattr(point, what)) is not None]
                if known:
                    label = plot_label(f"{title}, {what}")
                    axes.plot(*zip(*known, strict=True), style, marker="o", color=f"C{colours}", label=label)
            colours += 1
    originals = {(network, value) for each in found.values() for network, value in each.originals.items()}
    for (network, value), style in zip(sorted(originals), cycle(("-", ":", "-.")), strict=False):
        label = plot_label(f"originals, {network.partition('@')[0]}")
        axes.axhline(100 * value, linestyle=style, color="grey", linewidth=1, label=label)
    axes.set_ylabel("share of the images, %")
    keep_axis(axes, [point.keep for each in found.values() for point in each.points], beside=True)
    return figure_image(figure)

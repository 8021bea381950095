"""The metrics of an evaluation and their feature networks: values of a batch of images, and numbers of a set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Unpack

from torch import Tensor

from tok1d.data.broken import replaced_text
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.evaluate.feature_networks import OwnNetwork
from tok1d.evaluate.features import Features, FrozenNetwork, metric_name
from tok1d.evaluate.job import Columns, Job, Measure
from tok1d.evaluate.kernel import kernel_distance_subsets
from tok1d.evaluate.manifold import Manifold, manifold
from tok1d.evaluate.metrics import Moments, frechet_distance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.pairs import SSIM_VARIANT, lpips_per_image, lpips_variant, ssim_per_image
from tok1d.evaluate.request import Kind
from tok1d.evaluate.samples import Save
from tok1d.evaluate.tally import Tally
from tok1d.losses.perceptual import LPIPS
from tok1d.losses.pixel import mse_per_image, psnr_per_image
from tok1d.zoo.record import ModelProtocol, Record, Stated, column_names

PAIRS = ("psnr", "mse", "ssim", "lpips")
MANIFOLD = ("precision", "recall", "density", "coverage")
ON_FEATURES = ("labels", "fd", "sfd", "kid", "score", *MANIFOLD)
METRICS = (*PAIRS, *ON_FEATURES)
TODAY = ("psnr", "mse", "labels", "fd")  # metrics of a run's report
BUNDLED_CLASSIFIER = "fashion-mnist-cnn"  # which classifiers without a label of their own are
SUBSET, NUM_SUBSETS = 1000, 100  # of KID
K_MANIFOLD, K_DENSITY = 3, 5
LOW = ("mse", "lpips", "fd", "fid", "rfid", "gfid", "sfd", "sfid", "kd", "kid")  # names of records, without networks
HIGH = ("psnr", "ssim", "label_agreement", "judge_accuracy", "score", "inception_score", *MANIFOLD)


@dataclass(frozen=True)
class Number:
    """The value of a metric on a set of images, by a network or without one, or the reason why there is none."""

    metric: str
    value: float | None
    network: str | None = None
    unit: str = ""
    note: str = ""
    compared: bool = False  # with a reference


@dataclass
class Measures:
    """What is measured of images.

    Args:
        metrics: of `METRICS`, in their order.
        networks: for the metrics on features.
        pad: width of the images' border, in pixels, that is cut off first.
        lpips: the network of LPIPS if it is measured.
        missing: reasons why metrics or networks are not available: {"lpips": "..."}.
        asked: metrics that were asked for by name; if one is not available, a record states the reason.
    """

    metrics: tuple[str, ...] = TODAY
    networks: Sequence[FrozenNetwork] = ()
    pad: int = 0
    lpips: LPIPS | None = None
    missing: dict[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise InputError(f"metrics: expected some of {', '.join(METRICS)}, got {name!r}")
        self.metrics = tuple(name for name in METRICS if name in self.metrics)
        for network in self.networks:
            assert network.pad == self.pad, "networks are opened with the images' border"

    def __str__(self) -> str:
        """For the fingerprint of a protocol."""
        networks = [f"{each.label} {'8bit' if each.eight_bit else 'float'}" for each in self.networks]
        return f"{', '.join(self.metrics)}; {', '.join(networks)}; border {self.pad}; {sorted(self.missing)}"

    @cached_property
    def variants(self) -> dict[str, str]:
        """The variants of SSIM and LPIPS, as a record's note states them."""
        return {"ssim": SSIM_VARIANT} | ({} if self.lpips is None else {"lpips": lpips_variant(self.lpips)})

    @property
    def of_pairs(self) -> tuple[str, ...]:
        return tuple(name for name in self.metrics if name in PAIRS)

    @property
    def of_features(self) -> tuple[str, ...]:
        return tuple(name for name in self.metrics if name in ON_FEATURES)

    def pairs(self, y: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Values (B,) of images and the originals (B, C, H, W), by metric."""
        y, x = without_border(y, self.pad), without_border(x, self.pad)
        found = {}
        for name in self.of_pairs:
            if name == "psnr":
                found[name] = psnr_per_image(y, x)
            elif name == "mse":
                found[name] = mse_per_image(y, x)
            elif name == "ssim" and name not in self.missing:
                found[name] = ssim_per_image(y, x)
            elif name == "lpips" and self.lpips is not None:
                found[name] = lpips_per_image(self.lpips, y, x)
        return found

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What the metrics need of the networks' features of images (B, C, H, W), a row an image."""
        found = {}
        for i, network in enumerate(self.networks):
            features = network(images)
            found[f"{i} pooled"] = features.pooled
            if self._spatial(network) and features.spatial is not None:
                found[f"{i} spatial"] = features.spatial
            if self._classes(network) and features.logits is not None:
                found[f"{i} logits"] = features.logits
        return found

    def _spatial(self, network: FrozenNetwork) -> int:
        return network.spatial_dim if "sfd" in self.metrics else 0

    def _classes(self, network: FrozenNetwork) -> int:
        wanted = "score" in self.metrics or ("labels" in self.metrics and network.classifies)
        return network.num_classes if wanted else 0

    def tallies(self) -> list[Tally]:
        """An empty tally for each network, of what the metrics need."""
        keep = any(name in self.metrics for name in ("kid", *MANIFOLD))
        return [
            Tally(each.dim, spatial_dim=self._spatial(each), num_classes=self._classes(each), keep_features=keep)
            for each in self.networks
        ]


@dataclass(frozen=True)
class Measuring:
    """What is measured of reconstructions or samples, and how the work is done.

    Args:
        measures: the metrics by their networks.
        references: one for each network of `measures`, or a function that gives them; default: the images evaluated on.
        protocol: what every record states besides (weights, weights_hash, ...).
        job: how the images are shared by processes and resumed; default: at once, in this process.
        save: writes the images decoded from the most tokens.
        of: of reconstructions, which images these are, of `reference.OF`; default: see `split_of`.
    """

    measures: Measures
    references: Sequence[Compared] | Callable[[], Sequence[Compared]] | None = None
    protocol: ModelProtocol = field(default_factory=ModelProtocol)
    job: Job = field(default_factory=Job)
    save: Save | None = None
    of: str = ""

    def columns(self, images: Tensor, numbers: range, *, last: bool) -> dict[str, Tensor]:
        """Features of decoded images, and with `last` (the most tokens) what is saved of them."""
        saved = self.save.columns(images, numbers) if self.save is not None and last else {}
        return self.measures.features(images) | saved

    def batches(
        self, about: Mapping[str, object], num: int, batch_size: int, measure: Measure
    ) -> AbstractContextManager[Iterator[tuple[range, Columns]] | None]:
        """See `Job.run`."""
        return self.job.run(about, num, batch_size, measure, self.save.begin if self.save is not None else None)

    def finish(self, records: list[Record]) -> list[Record]:
        """The same records, after the job has been given them, such as to write them."""
        if self.job.finish is not None:
            self.job.finish(records)
        return records


@dataclass(frozen=True)
class Compared:
    """A reference set under one network; `replaced` of its images could not be read, and others stood in for them."""

    pooled: Moments
    spatial: Moments | None
    features: Tensor | None
    fingerprint: str
    replaced: int = 0


class Gathered:
    """Everything of one set of images: sums of their values, and a tally a network."""

    def __init__(self, measures: Measures) -> None:
        self.measures, self.tallies = measures, measures.tallies()
        self.sums: dict[str, float] = {}
        self.count = 0

    def update(self, columns: Mapping[str, Tensor], indices: range, labels: Tensor | None = None) -> None:
        """Add a batch: what `Measures.pairs` and `Measures.features` gave.

        Args:
            labels: (B,) classes that the images should show.
        """
        self.count += len(indices)
        for name in PAIRS:
            if name in columns:
                self.sums[name] = self.sums.get(name, 0.0) + float(columns[name].double().sum())
        for i, (network, tally) in enumerate(zip(self.measures.networks, self.tallies)):
            spatial, logits = columns.get(f"{i} spatial"), columns.get(f"{i} logits")
            shown = labels if network.classifies and logits is not None else None
            tally.update(Features(columns[f"{i} pooled"], spatial, logits), indices, shown)

    def compared(self, fingerprint: str, replaced: int = 0) -> list[Compared]:
        """This set as the reference of others, for each network; `replaced` as in `Compared`."""
        return [
            Compared(each.pooled, each.spatial, each.features if each.keep_features else None, fingerprint, replaced)
            for each in self.tallies
        ]

    def numbers(self, references: Sequence[Compared]) -> Iterator[Number]:
        """All metrics: of pairs first, then of each network against its reference."""
        for name in self.measures.of_pairs:
            unit, note = "dB" if name == "psnr" else "", self.measures.variants.get(name, "")
            if name in self.sums:
                yield Number(name, self.sums[name] / self.count, unit=unit, note=note)
            else:
                yield Number(name, None, unit=unit, note=self.measures.missing.get(name, "not measured"))
        for network, tally, reference in zip(self.measures.networks, self.tallies, references):
            yield from self._on_features(network, tally, reference)
        for name, reason in self.measures.missing.items():
            if name not in METRICS:  # a network
                for metric in [each for each in ON_FEATURES if each in self.measures.asked] or ["fd"]:
                    yield Number(metric, None, network=name, note=reason)

    def agreement(self) -> Iterator[Number]:
        """Label agreement alone, of networks that know the labels."""
        for network, tally in zip(self.measures.networks, self.tallies):
            if "labels" in self.measures.metrics and tally.agreement is not None:
                yield Number("labels", tally.agreement, network.label)

    def _on_features(self, network: FrozenNetwork, tally: Tally, reference: Compared) -> Iterator[Number]:
        shape: Manifold | None = None
        for name in self.measures.of_features:
            if name == "labels":
                if tally.agreement is not None:
                    yield Number(name, tally.agreement, network.label)
                elif name in self.measures.asked:
                    yield Number(name, None, network.label, note=_no_labels(network))
                continue
            reason = self._impossible(name, network, tally, reference)
            compared = name != "score"
            if reason:
                yield Number(name, None, network.label, note=reason, compared=compared)
                continue
            note = ""
            if name == "fd":
                value = frechet_distance(tally.pooled, reference.pooled)
            elif name == "sfd":
                assert tally.spatial is not None and reference.spatial is not None
                value = frechet_distance(tally.spatial, reference.spatial)
            elif name == "score":
                score = tally.score
                value, note = score.mean, f"mean of {score.num_chunks} chunks, spread {score.std:.3g}"
            elif name == "kid":
                assert reference.features is not None
                size = min(SUBSET, tally.num_images, len(reference.features))
                kid = kernel_distance_subsets(
                    reference.features, tally.features, num_subsets=NUM_SUBSETS, subset_size=size
                )
                value, note = kid.mean, f"{NUM_SUBSETS} subsets of {size}, spread {kid.std:.2g}"
            else:
                assert reference.features is not None
                shape = shape or manifold(reference.features, tally.features, k=K_MANIFOLD, k_density=K_DENSITY)
                value = getattr(shape, name)
                k = K_MANIFOLD if name in ("precision", "recall") else K_DENSITY
                note = f"{k} neighbours, {len(reference.features)} reference images"
            yield Number(name, value, network.label, note=note, compared=compared)

    def _impossible(self, name: str, network: FrozenNetwork, tally: Tally, reference: Compared) -> str:
        """Why a metric cannot be measured; "" where it can."""
        if name == "score":
            return "" if tally.scores is not None else f"{network.name} is no classifier"
        if name == "sfd":
            if not network.spatial_dim:
                return f"{network.name} has no maps of places; sFID is Inception's"
            return "" if reference.spatial is not None else "the reference holds no statistics of places"
        if name in ("kid", *MANIFOLD):
            least = (2 if name == "kid" else max(K_MANIFOLD, K_DENSITY) + 1, "images of either set")
            if reference.features is None:
                return "the reference holds no features; make one with tok1d reference --features N"
            if min(tally.num_images, len(reference.features)) < least[0]:
                return f"needs {least[0]} {least[1]}, got {min(tally.num_images, len(reference.features))}"
        return ""


def _no_labels(network: FrozenNetwork) -> str:
    if network.classifies:
        return "the images were made without labels to agree with"
    return f"{network.name} does not know the labels of the images"


def called(number: Number, kind: str) -> str:
    """The name of a metric in records; `kind` is "reconstruction" or "generation"."""
    if number.metric in PAIRS:
        return number.metric
    if number.metric == "labels":
        return "judge_accuracy" if kind == "reconstruction" else "label_agreement"
    ours = {"fd": "rfid" if kind == "reconstruction" else "gfid", "sfd": "sfid", "score": "inception_score"}
    return metric_name(ours.get(number.metric, number.metric), number.network or "")


def names_of(measures: Measures, kind: str) -> list[str]:
    """The names of the records that a measurement may give, `kind` as in `called`."""
    pairs = [Number(metric, None) for metric in measures.of_pairs if kind == "reconstruction"]
    on_features = [Number(metric, None, each.label) for each in measures.networks for metric in measures.of_features]
    return list(column_names((called(each, kind), each.network) for each in pairs + on_features).values())


def lower_is_better(name: str) -> bool:
    """Whether the best value of a record of that name is the lowest: distances and errors, not shares and scores."""
    metric = name.partition("@")[0]
    assert metric in LOW or metric in HIGH, name
    return metric in LOW


def own_networks(classifier: CNN | None, pad: int = 0) -> list[FrozenNetwork]:
    """A classifier as the only feature network, on images that are not rounded to 8 bits; none for None.

    Args:
        pad: width of the images' border, in pixels, that is cut off first.
    """
    if classifier is None:
        return []
    return [OwnNetwork(classifier, getattr(classifier, "label", BUNDLED_CLASSIFIER), pad=pad, eight_bit=False)]


def by_classifier(classifier: CNN | None, kind: Kind, pad: int = 0) -> Measures:
    """What the report of a run holds: label agreement and Frechet distance by a classifier, of reconstructions also
    PSNR and squared error, which need none."""
    metrics = TODAY if kind == "reconstruction" else ("labels", "fd")
    return Measures(metrics, own_networks(classifier, pad), pad)


def strip(columns: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The columns whose names start so, without that."""
    return {key[len(prefix) :]: value for key, value in columns.items() if key.startswith(prefix)}


def record_of(
    number: Number,
    kind: Kind,
    measures: Measures,
    references: Sequence[Compared],
    *,
    keep: int | None = None,
    note: str = "",
    **stated: Unpack[Stated],
) -> Record:
    """The record of a number, with its network and its reference.

    Args:
        keep, note, stated: fields of the record.
    """
    by = {network.label: i for i, network in enumerate(measures.networks)}
    index, replaced = by.get(number.network or ""), ""
    if number.compared:
        reference = references[by[number.network or ""]]
        stated["reference"], replaced = reference.fingerprint, replaced_text(reference.replaced, "reference image")
    return Record(
        name=called(number, kind),
        value=number.value,
        unit=number.unit,
        network=number.network,
        rounding=None if index is None else measures.networks[index].rounding,
        keep=keep,
        note="; ".join(filter(None, (note, number.note, replaced))),
        **stated,
    )

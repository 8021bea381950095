"""The metrics of an evaluation and their feature networks: values for a batch of images, and results for a set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Unpack

from torch import Tensor

from tok1d.config.classes import UNSTATED, Classes
from tok1d.data.broken import replaced_text
from tok1d.data.labels import mapped
from tok1d.data.transforms import without_border
from tok1d.errors import InputError
from tok1d.evaluate.enough import DISTANCES, K_DENSITY, K_MANIFOLD, NUM_SUBSETS, SUBSET, few_images, say_few, too_few
from tok1d.evaluate.feature_networks import OwnNetwork
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.evaluate.job import Columns, Job, Measure
from tok1d.evaluate.kernel import kernel_distance_subsets
from tok1d.evaluate.manifold import Manifold, manifold
from tok1d.evaluate.metric_names import (
    BY_NETWORK,
    MANIFOLD,
    METRICS,
    OF_SAMPLES,
    PAIRS,
    REPORT_METRICS,
    SEMANTIC,
    Number,
    record_name,
)
from tok1d.evaluate.metrics import Moments, frechet_distance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.pairs import SSIM_VARIANT, lpips_per_image, lpips_variant, ssim_per_image
from tok1d.evaluate.request import Kind
from tok1d.evaluate.samples import Save
from tok1d.evaluate.tally import Tally
from tok1d.losses.perceptual import LPIPS
from tok1d.losses.pixel import mse_per_image, psnr_per_image
from tok1d.zoo.record import ModelProtocol, Record, ReferenceSet, Stated, column_names

TOP = 5  # classes of semantic5
BUNDLED_CLASSIFIER = "fashion-mnist-cnn"  # name of a classifier without the attribute `label`


@dataclass
class Measures:
    """The metrics of an evaluation, and the networks that they need.

    Args:
        metrics: names in `METRICS`; they are sorted in its order.
        networks: feature networks, each for all metrics that are computed from features.
        pad: width of the images' border, in pixels, that is cut off first.
        lpips: the network of LPIPS if LPIPS is measured.
        missing: reasons why metrics or networks are not available, such as {"lpips": "..."}.
        requested: metrics that the user named; a record states the reason if one of them is not available.
    """

    metrics: tuple[str, ...] = REPORT_METRICS
    networks: Sequence[FrozenNetwork] = ()
    pad: int = 0
    lpips: LPIPS | None = None
    missing: dict[str, str] = field(default_factory=dict)
    requested: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise InputError(f"metrics: expected some of {', '.join(METRICS)}, got {name!r}")
        self.metrics = tuple(name for name in METRICS if name in self.metrics)
        for network in self.networks:
            assert network.pad == self.pad, "networks are opened with the images' border"

    def __str__(self) -> str:
        """A description that is part of a job's hash."""
        networks = [f"{each.label} {'8bit' if each.eight_bit else 'float'}" for each in self.networks]
        return f"{', '.join(self.metrics)}; {', '.join(networks)}; border {self.pad}; {sorted(self.missing)}"

    @cached_property
    def variants(self) -> dict[str, str]:
        """The variants of SSIM and LPIPS, for the note of a record."""
        return {"ssim": SSIM_VARIANT} | ({} if self.lpips is None else {"lpips": lpips_variant(self.lpips)})

    @property
    def pair_metrics(self) -> tuple[str, ...]:
        """The metrics of an image and its original."""
        return tuple(name for name in self.metrics if name in PAIRS)

    @property
    def feature_metrics(self) -> tuple[str, ...]:
        """The metrics that are computed from features."""
        return tuple(name for name in self.metrics if name in BY_NETWORK)

    def pairs(self, y: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Values (B,) for reconstructions y and originals x, both (B, C, H, W) in [0, 1], by metric."""
        y, x = without_border(y, self.pad), without_border(x, self.pad)
        found = {}
        for name in self.pair_metrics:
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
        """The features of images (B, C, H, W) that the metrics need, one row for each image.

        The names are "I pooled", "I spatial" and "I logits" for the network with index I; for semantic agreement also
        "I top", the ids (B, 5) of the most likely classes.
        """
        found = {}
        for i, network in enumerate(self.networks):
            features = network(images)
            found[f"{i} pooled"] = features.pooled
            if self._spatial(network) and features.spatial is not None:
                found[f"{i} spatial"] = features.spatial
            if self._classes(network) and features.logits is not None:
                found[f"{i} logits"] = features.logits
            if any(name in SEMANTIC for name in self.metrics) and features.logits is not None:
                found[f"{i} top"] = features.logits.topk(min(TOP, features.logits.shape[1])).indices
        return found

    def agreements(self, found: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Semantic agreement (B,), 0 or 1, of images and their originals, given what `features` returns for both."""
        columns: dict[str, Tensor] = {}
        for i in range(len(self.networks)):
            if f"{i} top" in found:
                top, wanted = found[f"{i} top"], original[f"{i} top"][:, :1]
                columns |= {f"{i} semantic": top[:, :1] == wanted, f"{i} semantic5": top == wanted}
        return {key: value.any(1).float() for key, value in columns.items()}

    def _spatial(self, network: FrozenNetwork) -> int:
        return network.spatial_dim if "sfd" in self.metrics else 0

    def _classes(self, network: FrozenNetwork) -> int:
        wanted = "score" in self.metrics or ("labels" in self.metrics and network.classifies)
        return network.num_classes if wanted else 0

    def tallies(self) -> list[Tally]:
        """An empty tally for each network."""
        keep = any(name in self.metrics for name in ("kid", *MANIFOLD))
        return [
            Tally(each.dim, spatial_dim=self._spatial(each), num_classes=self._classes(each), keep_features=keep)
            for each in self.networks
        ]


@dataclass(frozen=True)
class Measuring:
    """What is measured of reconstructions or samples, and the job that does it.

    Args:
        measures: the metrics and their networks.
        references: one for each network of `measures`, or a function that returns them; default: the images that are
            evaluated.
        protocol: fields of every record that depend on the model (weights, weights_hash, ...).
        job: how images are divided between processes and stored; default: all in this process, not stored.
        save: where to write the images decoded from the most tokens; default: nowhere.
        of: for reconstructions, the kind of the images, one of `reference.OF`; default: see `split_of`.
        baselines: the records of baselines, which follow those of the model; called with the job's `quiet`.
    """

    measures: Measures
    references: Sequence[Compared] | Callable[[], Sequence[Compared]] | None = None
    protocol: ModelProtocol = field(default_factory=ModelProtocol)
    job: Job = field(default_factory=Job)
    save: Save | None = None
    of: str = ""
    baselines: Callable[[bool], list[Record]] | None = None

    def columns(self, images: Tensor, numbers: range, *, last: bool) -> dict[str, Tensor]:
        """Features of decoded images; with `last` (decoded from the most tokens) also the pixels to save."""
        saved = self.save.columns(images, numbers) if self.save is not None and last else {}
        return self.measures.features(images) | saved

    def batches(
        self, about: Mapping[str, object], num: int, batch_size: int, measure: Measure
    ) -> AbstractContextManager[Iterator[tuple[range, Columns]] | None]:
        """Run the job, see `Job.run`."""
        return self.job.run(about, num, batch_size, measure, self.save.begin if self.save is not None else None)

    def finish(self, records: list[Record]) -> list[Record]:
        """Pass the records to the job, which may write them, and return them; those of few images are said."""
        say_few(records)
        if self.baselines is not None:
            records = [*records, *self.baselines(self.job.quiet)]
        if self.job.finish is not None:
            self.job.finish(records)
        return records


@dataclass(frozen=True)
class Compared:
    """A reference set as measured by one network; `replaced` images could not be read and were replaced by others."""

    pooled: Moments
    spatial: Moments | None
    features: Tensor | None
    stated: ReferenceSet
    replaced: int = 0


class Gathered:
    """The sums and tallies of a set of images; its `classes` are compared with those of a classifier by name."""

    def __init__(self, measures: Measures, classes: Classes = UNSTATED) -> None:
        self.measures, self.tallies = measures, measures.tallies()
        self.agreements = [network.agreement(classes) for network in measures.networks]
        self.sums: dict[str, float] = {}
        self.count = 0

    def update(self, columns: Mapping[str, Tensor], indices: range, labels: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            columns: from `Measures.pairs` and `Measures.features`.
            indices: numbers of the images in the set.
            labels: class ids (B,) of the images, for label agreement.
        """
        self.count += len(indices)
        for name in PAIRS:
            if name in columns:
                self.sums[name] = self.sums.get(name, 0.0) + float(columns[name].double().sum())
        for key in columns:
            if key.partition(" ")[2] in SEMANTIC:
                self.sums[key] = self.sums.get(key, 0.0) + float(columns[key].double().sum())
        for i, (found, tally) in enumerate(zip(self.agreements, self.tallies)):
            spatial, logits = columns.get(f"{i} spatial"), columns.get(f"{i} logits")
            known = labels if logits is not None and found.agrees else None
            shown = None if known is None else mapped(known, found.places)
            tally.update(Features(columns[f"{i} pooled"], spatial, logits), indices, shown)

    def compared(self, stated: ReferenceSet, replaced: int = 0) -> list[Compared]:
        """This set, as a record states it, as a reference for each network; `replaced` as in `Compared`."""
        return [
            Compared(each.pooled, each.spatial, each.features if each.keep_features else None, stated, replaced)
            for each in self.tallies
        ]

    def numbers(self, references: Sequence[Compared]) -> Iterator[Number]:
        """Yield all results: metrics of pairs first, then those of each network and its reference."""
        for name in self.measures.pair_metrics:
            unit, note = "dB" if name == "psnr" else "", self.measures.variants.get(name, "")
            if name in self.sums:
                yield Number(name, self.sums[name] / self.count, unit=unit, note=note)
            else:
                yield Number(name, None, unit=unit, note=self.measures.missing.get(name, "not measured"))
        for i, (_, reference) in enumerate(zip(self.tallies, references)):
            yield from self._on_features(i, reference)
        requested = self.measures.requested or ("fd",)
        for name, reason in self.measures.missing.items():
            if name not in METRICS:  # a network
                for metric in [each for each in BY_NETWORK if each in requested]:
                    yield Number(metric, None, network=name, note=reason)

    def agreement(self) -> Iterator[Number]:
        """Yield the label agreement for each network that classifies the images."""
        for network, tally in zip(self.measures.networks, self.tallies):
            if "labels" in self.measures.metrics and tally.agreement is not None:
                yield Number("labels", tally.agreement, network.label)

    def _on_features(self, index: int, reference: Compared) -> Iterator[Number]:
        network, tally = self.measures.networks[index], self.tallies[index]
        shape: Manifold | None = None
        for name in self.measures.feature_metrics:
            if name == "labels":
                if tally.agreement is not None:
                    yield Number(name, tally.agreement, network.label)
                elif said := network.no_labels(self.agreements[index], asked=name in self.measures.requested):
                    yield Number(name, None, network.label, note=said)
                continue
            if name in SEMANTIC:
                if f"{index} {name}" in self.sums:
                    yield Number(name, self.sums[f"{index} {name}"] / self.count, network.label)
                else:
                    yield Number(name, None, network.label, note=f"{network.name} has no classes")
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
            width = network.spatial_dim if name == "sfd" else network.dim
            few = few_images(name, tally.num_images, width, reference.stated.count)
            note = "; ".join(filter(None, (note, few)))
            yield Number(name, value, network.label, note=note, compared=compared)

    def _impossible(self, name: str, network: FrozenNetwork, tally: Tally, reference: Compared) -> str:
        """Why a metric cannot be measured; "" if it can."""
        if name == "score":
            return "" if tally.scores is not None else f"{network.name} is not a classifier"
        if name == "sfd" and not network.spatial_dim:
            return f"{network.name} has no spatial features; only Inception gives sFID"
        if name == "sfd" and reference.spatial is None:
            return "the reference has no statistics of spatial features"
        if name in DISTANCES:
            return too_few(name, tally.num_images, reference.stated.count)
        if reference.features is None:
            return "the reference has no features; compute one with tok1d reference --features N"
        return too_few(name, tally.num_images, len(reference.features))


def names_of(measures: Measures, kind: Kind) -> list[str]:
    """The names of the records that an evaluation may return."""
    pairs = [Number(metric, None) for metric in measures.pair_metrics if kind == "reconstruction"]
    on_features = [Number(name, None, each.label) for each in measures.networks for name in measures.feature_metrics]
    on_features += [Number(name, None) for name in OF_SAMPLES if name in measures.metrics and kind == "generation"]
    return list(column_names((record_name(each, kind), each.network) for each in pairs + on_features).values())


def own_networks(classifier: CNN | None, pad: int = 0) -> list[FrozenNetwork]:
    """A classifier as the only feature network, without rounding to 8 bits; an empty list for None.

    Args:
        pad: width of the images' border, in pixels, that is cut off first.
    """
    if classifier is None:
        return []
    return [OwnNetwork(classifier, getattr(classifier, "label", BUNDLED_CLASSIFIER), pad=pad, eight_bit=False)]


def by_classifier(classifier: CNN | None, kind: Kind, pad: int = 0) -> Measures:
    """The metrics of a run's report: label agreement and Frechet distance, measured with a classifier.

    For reconstructions also PSNR and squared error, which need no classifier.
    """
    metrics = REPORT_METRICS if kind == "reconstruction" else ("labels", "fd")
    return Measures(metrics, own_networks(classifier, pad), pad)


def strip(columns: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The columns whose names begin with a prefix, under names without it."""
    return {key[len(prefix) :]: value for key, value in columns.items() if key.startswith(prefix)}


def record_of(
    number: Number,
    kind: Kind,
    measures: Measures,
    references: Sequence[Compared],
    *,
    keep: int | None = None,
    budget: dict[str, object] | None = None,
    note: str = "",
    **stated: Unpack[Stated],
) -> Record:
    """The record of a number, with its network and its reference.

    Args:
        keep, budget, note, stated: fields of the record.
    """
    by = {network.label: i for i, network in enumerate(measures.networks)}
    index, replaced = by.get(number.network or ""), ""
    if number.compared:
        reference = references[by[number.network or ""]]
        stated["reference"], replaced = reference.stated, replaced_text(reference.replaced, "reference image")
    return Record(
        name=record_name(number, kind),
        value=number.value,
        unit=number.unit,
        network=number.network,
        rounding=None if index is None else measures.networks[index].rounding,
        keep=keep,
        budget=budget,
        note="; ".join(filter(None, (note, number.note, replaced))),
        **stated,
    )

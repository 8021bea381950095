"""Opens the metrics with their feature networks, the references and the job of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tok1d.data.broken import report_broken
from tok1d.data.images import ImageSet
from tok1d.devices import pick_device as pick
from tok1d.devices import process_device, process_part
from tok1d.errors import DataError, InputError, WeightsError, reason_of
from tok1d.evaluate.feature_networks import open_network
from tok1d.evaluate.features import INCEPTION, FrozenNetwork
from tok1d.evaluate.job import Job
from tok1d.evaluate.measures import Compared, Measures, own_networks
from tok1d.evaluate.metric_names import BY_NETWORK, MANIFOLD, METRICS, OF_ORIGINALS, OF_SAMPLES, SEMANTIC
from tok1d.evaluate.pairs import SSIM_WINDOW, open_lpips
from tok1d.evaluate.protocol import CLASSIFIER, ImageConfig, classifier_for
from tok1d.evaluate.reference import Reference, cached_reference, check_reference, load_reference
from tok1d.evaluate.request import Kind, Request
from tok1d.evaluate.training_networks import why_not
from tok1d.inference.cache import parse_part
from tok1d.zoo.pretrained.lpips import lpips_missing
from tok1d.zoo.pretrained.networks import parse_network
from tok1d.zoo.record import Record

NUM_FEATURES = (
    10_000  # images of a reference whose features are stored for KID, precision and recall, as in ADM's files
)


@dataclass(frozen=True)
class Place:
    """The device of the feature networks, and the images that they measure.

    Args:
        data: name of the data.
        config: configuration of the tokenizer, with `image_size` and `channels` of its images.
        pad: width of the images' border, in pixels, that is cut off first.
        trained: networks that trained the models, from `training_networks`; they do not measure.
    """

    data: str
    config: ImageConfig
    device: str | torch.device
    pad: int = 0
    trained: Mapping[str, str] = field(default_factory=dict)


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the chosen metrics; ("all",) stands for all of them.

    Raises:
        InputError: a name that is not a metric.
    """
    if tuple(names) == ("all",):
        return METRICS
    for name in names:
        if name not in METRICS:
            raise InputError(f"--metrics: expected all, or some of {','.join(METRICS)}, got {name!r}")
    return tuple(names)


def open_measures(request: Request, place: Place) -> Measures:
    """Open the metrics of a request with their networks.

    If the request names no metrics, all are chosen whose networks and weights are available. If it names no network,
    it is the classifier bundled for the data, else Inception if its weights are available.

    Raises:
        InputError: nothing can be measured.
        WeightsError: a classifier that does not exist.
    """
    wanted, missing = chosen_metrics(request.metrics), dict[str, str]()
    alone = bool(wanted) and set(wanted) <= set(OF_SAMPLES) and request.kind == "generation"
    opened = [] if alone else _networks(request, missing, place)
    left_out = OF_SAMPLES if request.kind == "reconstruction" else OF_ORIGINALS
    possible = [name for name in METRICS if name not in left_out]
    metrics = [name for name in wanted or possible if name in possible]
    if wanted and not metrics:
        what = "samples have no originals" if request.kind == "generation" else "reconstructions are no samples"
        raise InputError(f"--metrics: {what}; expected some of {','.join(possible)}")
    lpips = None
    if "lpips" in metrics:
        if reason := lpips_missing():
            missing["lpips"] = reason
        else:
            lpips = open_lpips(device=place.device, download=False)
    if "ssim" in metrics and place.config.image_size - 2 * place.pad < SSIM_WINDOW:
        missing["ssim"] = f"SSIM needs images of at least {SSIM_WINDOW} pixels a side"
    if not wanted:
        metrics = [name for name in metrics if name not in missing and _measurable(name, opened)]
        metrics = [name for name in metrics if name not in OF_SAMPLES or place.data]
    if request.kind == "generation" and not opened and not alone:
        reasons = "; ".join(missing.values())
        if request.network:
            raise InputError(f"--network: none of the networks asked for is available: {reasons}")
        if CLASSIFIER in missing:
            raise InputError(f"--network: expected another network than the bundled classifier; {reasons}")
        raise InputError(
            f"no classifier is bundled for {place.data or 'these images'} at this size, and "
            f"{reasons or 'none is given'}; --metrics memorised needs none"
        )
    chosen = tuple(name for name in metrics if opened or name not in BY_NETWORK)
    requested = tuple(name for name in wanted if name in possible)
    return Measures(chosen, opened, place.pad, lpips, missing, requested=requested)


def _measurable(metric: str, networks: Sequence[FrozenNetwork]) -> bool:
    """Whether one of the networks gives the metric."""
    if metric == "sfd":
        return any(network.spatial_dim for network in networks)
    if metric in SEMANTIC:  # the classes of a classifier for the images' labels give label agreement
        return any(network.num_classes and not network.classifies for network in networks)
    return metric not in ("labels", "score") or any(network.num_classes for network in networks)


def _networks(request: Request, missing: dict[str, str], place: Place) -> list[FrozenNetwork]:
    """The feature networks of a request; adds to `missing` why a network is not available."""
    texts, device, pad = request.network, place.device, place.pad
    if not texts:
        classifier = classifier_for(place.data, place.config, device, pad=pad)
        if classifier is not None and (reason := why_not(CLASSIFIER, place.trained)):
            missing[CLASSIFIER] = reason
            return []
        if classifier is not None:
            (network,) = own_networks(classifier, pad)
            network.eight_bit = bool(request.eight_bit)
            return [network]
    found = []
    for text in texts or [INCEPTION]:
        if reason := why_not(text, place.trained):
            missing[_short(text)] = reason
            continue
        try:
            eight_bit, download = request.eight_bit, bool(texts)
            found.append(open_network(text, device=device, pad=pad, eight_bit=eight_bit, download=download))
        except WeightsError as error:
            if not text.startswith((INCEPTION, "timm:")) and parse_network(text) is None:
                raise
            missing[_short(text)] = str(error)
    return found


def _short(text: str) -> str:
    """The name of a network that is not available, for a record."""
    return text.split(":")[1] if text.startswith(("timm:", "model:")) else text.partition(":")[0]


def compared_with(reference: Reference) -> Compared:
    """A `Reference` as metrics use it."""
    return Compared(reference.pooled, reference.spatial, reference.features, reference.stated, reference.replaced)


def open_references(
    kind: Kind, files: Sequence[str], networks: Sequence[FrozenNetwork], *, allow_other: bool = False
) -> list[Compared] | None:
    """Read the reference of each network from files; None without files.

    Raises:
        DataError: a file without statistics, or no file with the statistics of a network.
        InputError: a reference of training images for reconstructions, or of test images for samples, unless
            `allow_other` is true.
    """
    if not files:
        return None
    loaded = [load_reference(file) for file in files]
    for each in loaded:
        check_reference(kind, each, allow_other=allow_other)
    found = []
    for network in networks:
        errors = []
        for each in loaded:
            try:
                each.check_network(network)
                found.append(compared_with(each))
                break
            except DataError as error:
                errors.append(error)
        else:
            raise errors[0]
    return found


def image_references(
    images: ImageSet, measures: Measures, *, of: str, about: str = "", batch_size: int = 250
) -> list[Compared]:
    """Statistics of a set of images for each network, cached, with features of `NUM_FEATURES` images if needed.

    Unreadable images are named on stderr.
    """
    num = NUM_FEATURES if any(name in measures.metrics for name in ("kid", *MANIFOLD)) else 0
    found = [
        compared_with(cached_reference(images, network, of=of, num_features=num, about=about, batch_size=batch_size)[0])
        for network in measures.networks
    ]
    report_broken(images)
    return found


def open_job(
    out: Path | None,
    shard: str = "",
    *,
    quiet: bool = False,
    label: str = "evaluate",
    finish: Callable[[list[Record]], None] | None = None,
    fallback: Path | None = None,
    overwrite: bool = False,
) -> Job:
    """The job of an evaluation, whose finished blocks are stored in OUT.parts.

    Args:
        out: the file of the records; None: `fallback` is used instead, and without it blocks are not stored.
        shard: "I/N"; default: the part of this process under torchrun, else all images.
        quiet, label, finish: see `Job`.
        fallback: path whose .parts folder is used without `out`.
        overwrite: replace an existing file `out` (or `fallback`).

    Raises:
        ConfigError: a shard of another form, or a file that exists.
        InputError: several processes without a shared folder, or a folder as `out`.
        DataError: the folder of `out` cannot be created.
    """

    part = parse_part(shard) if shard else process_part()
    place = out or fallback
    if place is not None and place.is_dir() and place == out:
        raise InputError(f"--out: expected the name of a file, {out} is a folder")
    if place is not None:
        place = place if place.name not in ("", "..") else place.resolve()  # the path "." has no name
        if not place.name:
            raise InputError(f"--save-images: expected a folder with a name, got {place}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{place}: its folder cannot be created: {reason_of(error)}; choose another --out"
            ) from None
    folder = None if place is None else place.with_name(f"{place.name}.parts")
    target = place if place is not None and not place.is_dir() else None
    return Job(folder, part, quiet, label, finish, target, overwrite)


def pick_device(device: str | None) -> str:
    """The given device; default: this process's GPU under torchrun, else a GPU if there is one, else the CPU."""

    return process_device() if device is None and "LOCAL_RANK" in os.environ else pick(device)

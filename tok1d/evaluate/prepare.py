"""Prepares an evaluation: opens the models, images, metrics and references of a request."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from tok1d.config.options import check_counts
from tok1d.data.images import ImageSet, kind_of
from tok1d.data.labels import image_classes
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate import protocol, setup
from tok1d.evaluate.baselines import distance_records, reconstruction_records
from tok1d.evaluate.enough import check_number
from tok1d.evaluate.generation import NUM, evaluate_generation, images_of, sample_conditioning, sampled_ids
from tok1d.evaluate.job import Job
from tok1d.evaluate.measures import Compared, Measures, Measuring
from tok1d.evaluate.memorised import Memorisation
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Generation, Reconstruction, Request
from tok1d.evaluate.samples import Save
from tok1d.evaluate.training_networks import training_networks
from tok1d.images.framing import padding_of
from tok1d.inference import images as sources
from tok1d.inference.budget import check_budgeting
from tok1d.inference.cache import inputs_fingerprint
from tok1d.inference.conditions import Conditioning, conditioning_of
from tok1d.inference.sampling import guidance_of
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.card import Card
from tok1d.zoo.checkpoints import load_model, load_pair
from tok1d.zoo.record import Record
from tok1d.zoo.store import model_identity
from tok1d.zoo.weights import HasWeights

T = TypeVar("T")


class Opened:
    """A cache of what the last request opened, such as its model, for a next request that uses the same."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Hashable, Any]] = {}

    def once(self, purpose: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the last result for this purpose if its key was the same, else the result of `make`."""
        held = self._held.get(purpose)
        if held is None or held[0] != key:
            self._held.pop(purpose, None)
            held = None  # frees the memory of a model before the next one is loaded
            held = self._held[purpose] = (key, make())
        return held[1]


class Run(Protocol):
    """A function that measures all images, or with `trial` only one."""

    def __call__(self, measuring: Measuring, *, trial: bool = False) -> list[Record]: ...


@dataclass
class Prepared:
    """A request whose models, images and metrics are opened.

    Args:
        identity: what the results depend on besides the settings of the request.
        baselines: see `Measuring`; None for requests without any.
        all_tokens: whether images from all tokens are measured, not only from fewer.
    """

    run: Run
    measuring: Measuring
    identity: Mapping[str, object]
    baselines: Callable[[bool], list[Record]] | None = None
    all_tokens: bool = True

    @property
    def measures(self) -> Measures:
        """The metrics with their networks."""
        return self.measuring.measures

    def measure(
        self, *, job: Job | None = None, save: Save | None = None, with_baselines: bool = False
    ) -> list[Record]:
        """The records; none if other processes have not finished their part.

        Args:
            job, save: see `Measuring`; default: all images in this process, none of them saved.
            with_baselines: add the records of `evaluate.baselines`.
        """
        baselines = self.baselines if with_baselines else None
        return self.run(replace(self.measuring, job=Job() if job is None else job, save=save, baselines=baselines))

    def attempt(self) -> None:
        """Decode one image with these settings and measure nothing, to find wrong settings before a long job.

        Raises:
            InputError: settings that the models do not have.
        """
        nothing = Measures(metrics=(), pad=self.measures.pad)
        self.run(replace(self.measuring, measures=nothing, references=()), trial=True)


def prepare(request: Request, opened: Opened | None = None) -> Prepared:
    """Open all that a request needs.

    Raises:
        Tok1dError: models, images, metrics or references are missing or do not fit together.
    """
    opened = opened or Opened()
    if isinstance(request, Reconstruction):
        return _reconstruction(request, opened)
    assert isinstance(request, Generation)
    return _generation(request, opened)


def _reconstruction(request: Reconstruction, opened: Opened) -> Prepared:
    device = setup.pick_device(request.device)
    tokenizer = opened.once("model", (request.model, device), lambda: load_model(request.model, device=device))
    if not hasattr(tokenizer, "spec"):
        raise InputError(f"{request.model}: expected a tokenizer, this is the model {tokenizer.config.name}")
    if not request.data:
        raise InputError(f"{request.model}: expected DATA, the images to reconstruct")
    check_counts(list(request.keep), "--keep", 0, tokenizer.spec.length)
    check_budgeting(tokenizer, request.budgeting)
    measures, known = _measures(request, opened, tokenizer, request.data, tokenizer)
    images = opened.once(
        "images",
        (request.model, request.data, request.split, request.data_root),
        lambda: sources.open_data(request.data, tokenizer, split=request.split, data_root=request.data_root),
    )
    wanted = subset(images, request.num)
    _say(opened, conditioning_of(tokenizer, image_classes(images), request.label, captioned=any(images.captions)))
    check_number(measures.metrics if measures.networks else (), len(wanted), "images")
    identity = {
        "weights": opened.once("weights", (request.model, device), lambda: model_identity(tokenizer)),
        "images": inputs_fingerprint(wanted),
        "measures": str(measures),
        "references": _fingerprints(known),
    }

    def run(measuring: Measuring, *, trial: bool = False) -> list[Record]:
        chosen = subset(images, 1) if trial else wanted
        return evaluate_reconstruction(tokenizer, chosen, request, measuring, request.budgeting)

    stated = protocol.protocol_of(tokenizer)

    def train() -> ImageSet:
        split = request.split or sources.measured_split(request.data, kind_of(request.data), tokenizer)[0]
        if split != "test":
            raise InputError("the measured images are not the test images of data with training images")
        return sources.open_data(request.data, tokenizer, split="train", data_root=request.data_root, report=False)

    def baselines(quiet: bool) -> list[Record]:
        names, crop = measures.metrics, stated["crop"]
        return reconstruction_records(
            wanted, train, tokenizer.spec, metrics=names, pad=measures.pad, crop=crop, quiet=quiet
        )

    length = tokenizer.spec.length
    whole = max(request.keep, default=length if request.quality is None else 0) == length
    return Prepared(run, Measuring(measures, known, stated), identity, baselines, all_tokens=whole)


def _generation(request: Generation, opened: Opened) -> Prepared:
    device = setup.pick_device(request.device)
    pair = opened.once("model", (request.model, device), lambda: load_pair(request.model, device=device))
    generator, tokenizer = pair
    data = request.data or ("fashion_mnist" if generator.card.data == "fashion_mnist" else "")
    measures, known = _measures(request, opened, tokenizer, data, generator)
    if not data and known is None:
        raise InputError(
            f"{request.model}: expected DATA, a folder of images, or --reference FILE to compare its samples with"
        )
    guidance = guidance_of(generator, request.sampling)
    _say(opened, sample_conditioning(generator, tokenizer, request))
    images: ImageSet | None = None
    whole = images  # of all classes

    def split_of(split: str) -> ImageSet:
        if split == request.split and whole is not None:
            return whole
        return sources.open_data(data, tokenizer, split=split, data_root=request.data_root, generator=generator)

    if data:
        key = (request.model, data, request.split, request.data_root)
        images = opened.once("images", key, lambda: split_of(request.split))
    whole = images
    if (ids := sampled_ids(generator, request)) is not None and images is not None:
        images = images_of(images, generator, ids)
    check_counts(list(request.keep), "--keep", 1, generator.config.num_tokens)
    compared = measures.metrics if measures.networks else ()
    check_number(compared, NUM if request.num_samples is None else request.num_samples, "samples")
    if images is not None and known is None:
        check_number(compared, len(images), "reference images")

    def memorisation() -> Memorisation:
        return Memorisation(lambda: split_of("train"), lambda: split_of("test"), measures.pad, device)

    def of_images() -> list[Compared]:
        assert images is not None, "data was checked above"
        key = (images.fingerprint(), str(measures), request.split)
        of, about = request.split, f"{data}, {request.split}"
        return opened.once("references", key, lambda: setup.image_references(images, measures, of=of, about=about))

    def run(measuring: Measuring, *, trial: bool = False) -> list[Record]:
        how = replace(request, num_samples=1) if trial else request
        where = (request.model, data, request.data_root, device)
        memory = None if trial or not data else opened.once("memory", where, memorisation)
        return evaluate_generation(generator, tokenizer, images, how, measuring, guidance=guidance, memorisation=memory)

    weak = guidance.weak_model
    identity = {
        "weights": opened.once("weights", (request.model, device), lambda: [model_identity(each) for each in pair]),
        "weak": None if weak is None else model_identity(weak),
        "images": None if images is None else inputs_fingerprint(images),
        "measures": str(measures),
        "references": _fingerprints(known),
    }
    measuring = Measuring(measures, known or of_images, protocol.protocol_of(generator))
    wanted = bool(data) and ids is None and "fd" in measures.metrics
    baselines = partial(_real_distances, request, tokenizer, measures, split_of) if wanted else None
    return Prepared(run, measuring, identity, baselines)


def _real_distances(
    request: Generation, tokenizer: Tokenizer, measures: Measures, split_of: Callable[[str], ImageSet], quiet: bool
) -> list[Record]:
    """The distances of as many training images as samples to the test images."""
    num = NUM if request.num_samples is None else request.num_samples
    train, test = (partial(split_of, each) for each in ("train", "test"))
    crop = protocol.protocol_of(tokenizer)["crop"]
    return distance_records(train, test, num, measures.networks, crop=crop)


def _say(opened: Opened, conditioning: Conditioning) -> None:
    """Print the line about the tokenizer's condition, once for several equal requests."""
    opened.once("condition", conditioning, conditioning.say)


def _measures(
    request: Request, opened: Opened, tokenizer: Tokenizer, data: str, model: HasWeights
) -> tuple[Measures, list[Compared] | None]:
    """The metrics with their networks, and the references from files.

    Args:
        model: the model that is measured: the tokenizer, or a generator of its tokens.
    """
    place, pad, config = next(tokenizer.parameters()).device, padding_of(tokenizer), tokenizer.config
    sizes = (config.image_size, config.channels, pad, str(place))
    trained = training_networks(*(getattr(each, "card", Card()).recipe for each in (model, tokenizer)))
    key = (request.kind, request.metrics, request.network, data, request.eight_bit, *sizes, *trained.items())
    where = setup.Place(data, config, place, pad, trained)
    measures = opened.once("measures", key, lambda: setup.open_measures(request, where))
    files = (request.reference, request.allow_other_reference)
    return measures, opened.once(
        "files",
        (key, files),
        lambda: setup.open_references(
            request.kind, request.reference, measures.networks, allow_other=request.allow_other_reference
        ),
    )


def _fingerprints(references: Sequence[Compared] | None) -> list[str] | None:
    return None if references is None else [str(each.stated) for each in references]

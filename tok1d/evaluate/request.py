"""One evaluation as a command words it: its settings, and what is opened for them before anything is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

from tok1d.config.condition import is_conditional
from tok1d.data.subset import subset
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate import protocol, setup
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.job import Job
from tok1d.evaluate.measures import Compared, Measures
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.reference import Kind
from tok1d.evaluate.samples import Save
from tok1d.inference import images as sources
from tok1d.inference import parse
from tok1d.zoo.card import padding_of
from tok1d.zoo.checkpoints import load_model, load_pair
from tok1d.zoo.record import Record
from tok1d.zoo.store import model_identity

T = TypeVar("T")


class Opened:
    """What the last request opened, by its purpose; the next one finds there what it shares with it."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Hashable, Any]] = {}

    def once(self, purpose: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, or gave the last time if the key was the same."""
        held = self._held.get(purpose)
        if held is None or held[0] != key:
            self._held.pop(purpose, None)
            held = None  # a model's memory is free before the next one is read
            held = self._held[purpose] = (key, make())
        return held[1]


@dataclass
class Prepared:
    """A request whose models, images and metrics are there.

    Args:
        call: measures, given measures, references, job and save.
        one: arguments of a `call` on one image. identity: all that the numbers depend on beside the request's words.
    """

    call: Callable[..., list[Record]]
    one: dict[str, Any]
    measures: Measures
    references: Any
    identity: dict[str, Any]

    def measure(self, job: Job, save: Save | None = None) -> list[Record]:
        """The records; none where other processes have not finished their part."""
        return self.call(measures=self.measures, references=self.references, job=job, save=save)

    def attempt(self) -> None:
        """Make one image in just that way and measure nothing of it.

        Raises:
            InputError: whatever the models cannot do.
        """
        self.call(**self.one, measures=Measures(metrics=(), pad=self.measures.pad), references=())


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """What an evaluation is asked to measure, in the words of its command's options; "" and None are defaults."""

    kind: ClassVar[Kind]

    model: str
    data: str = ""
    keep: str = ""
    num: int | None = None
    metrics: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    allow_other_reference: bool = False
    eight_bit: bool | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: str = ""
    batch_size: int = 250
    seed: int = 0
    data_root: str | None = None
    device: str | None = None

    @abstractmethod
    def prepare(self, opened: Opened | None = None) -> Prepared:
        """Open all that the request needs.

        Raises:
            Tok1dError: whatever is missing, or does not fit together.
        """

    def _measures(self, opened: Opened, tokenizer: Any, data: str) -> tuple[Measures, list[Compared] | None]:
        """Metrics with their networks, and the references that files hold."""
        place, pad, config = next(tokenizer.parameters()).device, padding_of(tokenizer), tokenizer.config
        sizes = (config.image_size, config.channels, pad, str(place))
        key = (self.kind, self.metrics, self.network, data, self.eight_bit, *sizes)
        measures = opened.once(
            "measures",
            key,
            lambda: setup.open_measures(
                self.kind,
                self.metrics,
                self.network,
                data=data,
                config=config,
                device=place,
                pad=pad,
                eight_bit=self.eight_bit,
            ),
        )
        files = (self.reference, self.allow_other_reference)
        return measures, opened.once(
            "files",
            (key, files),
            lambda: setup.open_references(
                self.kind, self.reference, measures.networks, allow_other=self.allow_other_reference
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Request):
    """What `tok1d evaluate reconstruction` is asked."""

    kind = "reconstruction"

    solver: str = ""
    label: str = ""

    def prepare(self, opened: Opened | None = None) -> Prepared:
        """See `Request.prepare`."""
        opened = opened or Opened()
        device = setup.pick_device(self.device)
        tokenizer = opened.once("model", (self.model, device), lambda: load_model(self.model, device=device))
        if not hasattr(tokenizer, "spec"):
            raise InputError(f"{self.model}: expected a tokenizer, this is the model {tokenizer.config.name}")
        if not self.data:
            raise InputError(f"{self.model}: expected DATA, the images that this tokenizer is to give back")
        counts = parse.parse_counts(self.keep, "--keep", 0, tokenizer.spec.length) if self.keep else []
        interval = parse.parse_interval(self.guidance_interval, "--guidance-interval")
        measures, known = self._measures(opened, tokenizer, self.data)
        images = opened.once(
            "images",
            (self.model, self.data, self.data_root),
            lambda: sources.open_data(self.data, tokenizer, data_root=self.data_root),
        )
        wanted, pad = subset(images, self.num), measures.pad
        call = partial(
            evaluate_reconstruction,
            tokenizer,
            keep=counts,
            steps=self.steps,
            guidance=Guidance(1.0 if self.guidance is None else self.guidance, interval=interval),
            solver=self.solver or None,
            batch_size=self.batch_size,
            seed=self.seed,
            pad=pad,
            label=self.label or None,
            protocol=protocol.protocol_of(tokenizer, pad=pad),
        )
        identity = {
            "weights": opened.once("weights", (self.model, device), lambda: model_identity(tokenizer)),
            "images": wanted.fingerprint(),
            "measures": str(measures),
            "references": _fingerprints(known),
        }

        def measure(images: Any = wanted, **how: Any) -> list[Record]:
            return call(images, **how)

        return Prepared(measure, {"images": subset(images, 1)}, measures, known, identity)


@dataclass(frozen=True, kw_only=True)
class Generation(Request):
    """What `tok1d evaluate generation` is asked."""

    kind = "generation"

    classes: str = "balanced"
    split: str = "train"
    unconditional: bool = False
    guidance_schedule: str = ""
    weak_model: str = ""
    temperature: float = 1.0
    sampler: str = ""
    top_k: int | None = None
    top_p: float | None = None
    decoder_guidance: float = 1.0
    decoder_solver: str = ""
    decoder_steps: int | None = None

    def prepare(self, opened: Opened | None = None) -> Prepared:
        """See `Request.prepare`."""
        opened = opened or Opened()
        device = setup.pick_device(self.device)
        pair = opened.once("model", (self.model, device), lambda: load_pair(self.model, device=device))
        generator, tokenizer = pair
        data = self.data or ("fashion_mnist" if generator.card.data == "fashion_mnist" else "")
        measures, known = self._measures(opened, tokenizer, data)
        if not data and known is None:
            raise InputError(
                f"{self.model}: expected DATA, a folder of images, or --reference FILE to compare its samples with"
            )
        guidance = self._guided(generator)
        images: Any = None
        if data:
            images = opened.once(
                "images",
                (self.model, data, self.split, self.data_root),
                lambda: sources.open_data(
                    data, tokenizer, split=self.split, data_root=self.data_root, generator=generator
                ),
            )
        weights = opened.once("weights", (self.model, device), lambda: [model_identity(model) for model in pair])
        call = partial(
            evaluate_generation,
            generator,
            tokenizer,
            images,
            keep=parse.parse_counts(self.keep, "--keep", 1, generator.config.num_tokens) if self.keep else [],
            unconditional=self.unconditional,
            classes=self.classes,
            guidance=guidance,
            temperature=self.temperature,
            steps=self.steps,
            sampler=self.sampler or None,
            top_k=self.top_k,
            top_p=self.top_p,
            decoder_steps=self.decoder_steps,
            decoder_solver=self.decoder_solver or None,
            decoder_guidance=self.decoder_guidance,
            batch_size=self.batch_size,
            seed=self.seed,
            pad=measures.pad,
            protocol=protocol.protocol_of(generator),
        )

        def of_images() -> list[Compared]:
            key = (images.fingerprint(), str(measures), self.split)
            about = f"{data}, {self.split}"
            return opened.once(
                "references", key, lambda: setup.image_references(images, measures, of=self.split, about=about)
            )

        def measure(num: int = 1000 if self.num is None else self.num, **how: Any) -> list[Record]:
            return call(num=num, **how)

        weak = guidance.weak_model
        identity = {
            "weights": weights,
            "weak": None if weak is None else model_identity(weak),
            "images": None if images is None else images.fingerprint(),
            "measures": str(measures),
            "references": _fingerprints(known),
        }
        return Prepared(measure, {"num": 1}, measures, known or of_images, identity)

    def _guided(self, generator: Any) -> Guidance:
        return parse.guidance_for(
            generator,
            self.guidance,
            schedule=self.guidance_schedule,
            interval=self.guidance_interval,
            weak_model=self.weak_model,
            conditional=not self.unconditional and is_conditional(generator.config),
        )


def _fingerprints(references: Sequence[Compared] | None) -> list[str] | None:
    return None if references is None else [each.fingerprint for each in references]

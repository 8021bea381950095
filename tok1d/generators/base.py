"""The base class of all generators: the signature of `sample`, checks of its arguments, and what other code uses."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from tok1d.config.pretrained import Pretrained
from tok1d.config.registry import attribute
from tok1d.config.sampling import EVERYWHERE, Kind, SampleSettings, Schedule
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import Generators, NoiseSource, exponential_from, randn_from, uniform_from
from tok1d.errors import InputError
from tok1d.nn.embed import Condition, checked_cond, training_cond

# The unit of a guidance interval: time of the diffusion, share of the steps, share of the tokens.
IntervalOf = Literal["time", "steps", "sequence"]

# The random numbers that a generator of each kind samples with.
NOISE: dict[Kind, Callable[[Generators], NoiseSource]] = {
    "diffusion": randn_from,
    "categorical": exponential_from,
    "masked": uniform_from,
}


class Samples(Protocol):
    """What `Generator.generate` returns; see `tok1d.inference.draw.Samples`."""

    @property
    def images(self) -> Tensor: ...

    @property
    def tokens(self) -> Tensor: ...

    @property
    def labels(self) -> list[str | int | None]: ...

    def to_pil(self) -> list[Image]: ...


class GeneratorConfig(Protocol):
    """The fields that the configurations of all generators have."""

    name: str
    num_tokens: int
    num_classes: int


class Generator(Pretrained, nn.Module):
    """A model of token sequences (B, K, D) or (B, K) int64, conditioned on class ids, captions or nothing.

    A subclass sets the class attributes, makes `config` and `label_embed`, and implements `losses`, `make_tokens`,
    `evaluated_networks` and `resolved_settings`.

    Attributes:
        kind: how it samples; `SampleSettings` says which settings that kind reads.
        parallel: all tokens are generated together, so `length` cannot be chosen; else one after the other.
        guidance_interval_of: the unit of a guidance interval; None: it takes no interval. With "time" it takes no
            guidance schedule.
        own_options: further keyword arguments of `sample`, passed on to `make_tokens`.
        config: its configuration.
        label_embed: the embedding of its condition.
    """

    kind: ClassVar[Kind]
    parallel: ClassVar[bool]
    guidance_interval_of: ClassVar[IntervalOf | None]
    own_options: ClassVar[tuple[str, ...]] = ()

    config: GeneratorConfig
    label_embed: Condition
    partner: tuple[nn.Module, ...] = ()  # the tokenizer that was loaded with it; no submodule, so not among the weights

    @property
    def guidance_schedule(self) -> Schedule:
        """The schedule of a guidance scale that `sample` receives as a plain number."""
        return "constant"

    @property
    def guidance_power(self) -> float:
        """The exponent of `guidance_schedule` if it is "power_cosine"; see `Guidance.power`."""
        return 1.0

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @abstractmethod
    def losses(self, batch: tuple[Tensor, Tensor | None], progress: float) -> dict[str, Tensor]:
        """Scalars of one training step.

        Args:
            batch: tokens as the tokenizer encodes them, and the condition: class ids (B,), captions (B, T, E) or None.
            progress: fraction of the training completed, in [0, 1].

        Returns:
            Entries named "loss..." are summed and minimised, others are logged.
        """

    @abstractmethod
    def make_tokens(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> Tensor:
        """Tokens (B, length, D) or (B, length) from arguments that `sample` has checked.

        Args:
            cond: class ids (B,), the null class included, or captions (B, T, E).
            own: the keyword arguments of `own_options` that the caller passed.
        """

    @abstractmethod
    def evaluated_networks(self, guidance: Guidance) -> list[nn.Module]:
        """The modules whose calls count as network evaluations in sampling, one evaluation per input row."""

    @abstractmethod
    def resolved_settings(self, settings: SampleSettings) -> dict[str, object]:
        """The settings that records state: "sampler", and others of the model, with defaults filled in.

        Raises:
            InputError: an unknown sampler.
        """

    def generate(
        self,
        conditions: Sequence[str | int] | str | int | None = None,
        *,
        num: int = 8,
        guidance: float | None = None,
        seed: int = 0,
        keep: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        tokenizer: str | Path | nn.Module | None = None,
        verifier: str | Callable[..., object] = "",
        **settings: object,
    ) -> Samples:
        """Images of classes or captions: tokens of this model, decoded by its tokenizer.

            >>> import tok1d
            >>> generator = tok1d.load("fashion-mnist-epsilon-llamagen")
            >>> samples = generator.generate(["Sneaker", 3], num=2, seed=1)
            >>> samples.images.shape, samples.labels
            (torch.Size([4, 1, 28, 28]), ['Sneaker', 'Sneaker', 'Dress', 'Dress'])
            >>> samples.to_pil()[0].size
            (28, 28)

        With the same seed the images are those of `tok1d generate`. An image depends on its seed, class or caption,
        and number, not on the others or on `batch_size`.

        Args:
            conditions: names or numbers of classes, or captions of a model that reads captions; None: all classes.
            num: images of each class or caption, or in all without classes and captions.
            guidance: scale; default: 2, or 1 without classes and captions. 1 is off.
            seed: of all random numbers.
            keep: number of leading tokens to generate, or to decode; default: all.
            batch_size: images at once; default: 100, or fewer if the memory does not suffice.
            progress: called with the number of finished images and that of all images, after each batch.
            tokenizer: the tokenizer or its name; default: the one that `tok1d.load_pair` loaded, or that the card
                names.
            verifier: what scores the candidates of a search (`search="best-of=8"` or "beam=4"): a text as for
                `--verifier`, or a function of images (N, C, H, W) in [0, 1] and a list of their classes or captions
                that returns N scores. Default: the classifier bundled for the data.
            settings: further settings of `tok1d generate`, such as temperature=0.9, steps=25, unconditional=True,
                decoder_steps=8 or search="best-of=8".

        Returns:
            An object with `images` (N, C, H, W) in [0, 1] and `tokens`, both on the CPU, `labels`, and `to_pil()`;
            after a search also `scores` and `calls`.

        Raises:
            InputError: classes, captions or settings that the model does not have.
            WeightsError: no tokenizer, or another one than the model was trained on.
        """
        given = {"num": num, "guidance": guidance, "seed": seed, "keep": keep, **settings}
        made, how = attribute("tok1d.api.generation:generate"), {"batch_size": batch_size, "progress": progress}
        return made(self, conditions, tokenizer=tokenizer, verifier=verifier, **how, **given)

    def stream(
        self,
        conditions: Sequence[str | int] | str | int | None = None,
        *,
        num: int = 1,
        guidance: float | None = None,
        seed: int = 0,
        tokenizer: str | Path | nn.Module | None = None,
        **settings: object,
    ) -> Iterator[Tensor]:
        """The images (N, C, H, W) of `generate` as they grow: from the first token, the first two, ..., all tokens.

            >>> import tok1d
            >>> generator = tok1d.load("fashion-mnist-epsilon-llamagen")
            >>> len([images.shape for images in generator.stream("Bag", num=2)])
            16

        All images are made in one batch; arguments are as for `generate`.

        Raises:
            InputError: a generator that makes all tokens at once, or a tokenizer of unordered tokens; also as
                `generate`.
        """
        given = {"num": num, "guidance": guidance, "seed": seed, **settings}
        return attribute("tok1d.inference.draw:stream")(self, conditions, tokenizer=tokenizer, **given)

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor | Sequence[int] | None = None,
        *,
        num: int | None = None,
        length: int | None = None,
        guidance: float | Guidance = 1.0,
        settings: SampleSettings | None = None,
        generator: Generators | None = None,
        seed: int | None = None,
        noise: NoiseSource | None = None,
        **changes: object,
    ) -> Tensor:
        """Tokens that the tokenizer can decode: (B, length, D), or ids (B, length).

        Args:
            cond: class ids (B,), also as a list, or captions (B, T, E) for a model of captions; None with `num`: the
                unconditional model, or the null condition of a conditional one.
            num: number of sequences if `cond` is None.
            length: number of tokens, 1..K; default and, for parallel generators, only value: K.
            guidance: a scale, which follows the model's `guidance_schedule`, or a Guidance. 1 is off; 0 with a constant
                schedule is the null condition; values between them are allowed.
            settings: the options of sampling; default: the model's own.
            generator: source of all random numbers; default: one seeded with 0. With a single one a sample depends on
                the size of its batch; with a sequence of them, one a row, it depends on its own alone.
            seed: of all random numbers, in place of `generator`.
            noise: source of all random numbers instead of `generator`, such as recorded ones: normal (diffusion),
                exponential with mean 1 (categorical) or uniform in [0, 1] (masked); see `make_tokens` for their order.
            changes: single settings, such as temperature=0.9, that replace those of `settings`; and `own_options`.

        Raises:
            InputError: a condition, length, guidance or setting that this model cannot use.
        """
        args, own = self.checked_arguments(
            cond,
            num=num,
            length=length,
            guidance=guidance,
            settings=settings,
            generator=generator,
            seed=seed,
            noise=noise,
            **changes,
        )
        return self.make_tokens(*args, **own)

    def sample_ragged(
        self, cond: Tensor | Sequence[int] | None = None, **options: object
    ) -> tuple[Tensor, Tensor | None]:
        """As `sample`, and the number of tokens of each sequence (B,) int64 of a generator that stops by itself.

        The numbers are what `decode` takes as `keep`; None: every sequence has all tokens.
        """
        return self.sample(cond, **options), None  # type: ignore[arg-type]

    def checked_arguments(
        self,
        cond: Tensor | Sequence[int] | None = None,
        *,
        num: int | None = None,
        length: int | None = None,
        guidance: float | Guidance = 1.0,
        settings: SampleSettings | None = None,
        generator: Generators | None = None,
        seed: int | None = None,
        noise: NoiseSource | None = None,
        **changes: object,
    ) -> tuple[tuple[Tensor, int, Guidance, SampleSettings, NoiseSource], dict[str, Any]]:
        """The arguments of `make_tokens` from those of `sample`; raises InputError as `sample`."""
        if seed is not None:
            if generator is not None or noise is not None:
                raise InputError("seed: expected either seed, generator or noise, got two of them")
            generator = torch.Generator(self.device).manual_seed(seed)
        if cond is not None and not isinstance(cond, Tensor):
            if not all(isinstance(each, int) for each in cond):
                raise InputError("sample: expected class ids as numbers; generate takes names and captions, too")
            cond = torch.tensor(cond, dtype=torch.int64)
        if cond is None and (num is None or num < 1):
            raise InputError(f"sample: expected a condition, or num for the number of sequences, got num {num}")
        own = {name: changes.pop(name) for name in self.own_options if name in changes}
        settings = dataclasses.replace(settings or SampleSettings(), **changes)  # type: ignore[arg-type]
        settings.check_read_by(self.kind, self.config.name)
        length = self.check_length(length)
        guidance = self.guidance_of(guidance)
        self.check_guidance(guidance)
        cond = self.check_cond(cond, num or 0)
        noise = noise or NOISE[self.kind](generator or torch.Generator(cond.device).manual_seed(0))
        return (cond, length, guidance, settings, noise), own

    def check_cond(self, cond: Tensor | None, batch: int) -> Tensor:
        """Class ids (B,) or captions (B, T, E) on the model's device; None gives `batch` null conditions.

        Raises:
            InputError: another kind of condition, class ids out of range, or None for a model without a null condition.
        """
        return checked_cond(self.label_embed, cond, batch, self.device)

    def training_cond(self, cond: Tensor | None, batch: int) -> Tensor:
        """As `check_cond` for a training step: some conditions, chosen at random, become the null condition."""
        return training_cond(self.label_embed, cond, batch, self.device)

    def check_length(self, length: int | None) -> int:
        """The number of tokens to generate, by default all.

        Raises:
            InputError: out of range, or fewer than all of a parallel generator.
        """
        full = self.config.num_tokens
        length = full if length is None else length
        if self.parallel and length != full:
            raise InputError(
                f"length: expected {full}, because this generator makes all tokens at once, got {length}; "
                "leave length out and decode a prefix of the tokens"
            )
        if not 1 <= length <= full:
            raise InputError(f"length: expected 1..{full}, got {length}")
        return length

    def guidance_of(self, guidance: float | Guidance) -> Guidance:
        """A plain scale with this model's schedule; a Guidance is returned unchanged."""
        if isinstance(guidance, Guidance):
            return guidance
        return Guidance(float(guidance), schedule=self.guidance_schedule, power=self.guidance_power)

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise InputError on parts of `guidance` that this model does not support.

        Raises:
            InputError: a weak model, or an interval where `guidance_interval_of` is None.
        """
        takes_interval = self.guidance_interval_of is not None
        if guidance.weak_model is None and (takes_interval or guidance.interval == EVERYWHERE):
            return
        has = "a scale, a schedule and an interval" if takes_interval else "a scale and a schedule"
        lacks = "no weak_model" if takes_interval else "no interval and no weak_model"
        raise InputError(f"guidance: this generator takes {has}, but {lacks}")

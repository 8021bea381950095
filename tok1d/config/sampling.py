"""The options of sampling and decoding, declared once.

The options of the commands, the axes of `evaluate grid`, the `evaluate` section of recipes and the settings in a record
are made from these classes by `tok1d.config.options`. To add an option, add a field here and the code that reads it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from tok1d.config.fields import bounds_of, option, within
from tok1d.config.options import fields_from, flag_of, null_is
from tok1d.errors import InputError

# How a generator samples: a diffusion head or a diffusion over the whole sequence, ids one by one from logits, or ids
# in a few parallel steps (MaskGIT).
Kind = Literal["diffusion", "categorical", "masked"]
Schedule = Literal["constant", "linear", "power_cosine"]
OF = "of"  # key of a field's metadata: the kinds of generators that use it; default: all
EVERYWHERE = (0.0, 1.0)  # the interval in which guidance always acts


@dataclass(frozen=True)
class SampleSettings:
    """The arguments of `Generator.sample` other than guidance. The defaults leave its sampling unchanged.

    Raises:
        InputError: see `check`.
    """

    steps: int | None = option(
        None,
        "sampling steps, for a token or a whole sequence; default: the model's own",
        ge=1,
        of=("diffusion", "masked"),
    )
    sampler: str | None = option(
        None, "sde, euler or heun (flow), ancestral or ddim (DDPM); default: the model's own", of=("diffusion",)
    )
    temperature: float = option(
        1.0,
        "scale of the sampling noise (sde, ancestral, MaskGIT; CARD: of the initial noise too), or the temperature of "
        "LlamaGen's probabilities",
        ge=0,
    )
    top_k: int = option(
        0, "LlamaGen: sample from the k most likely ids; 0: from all", ge=0, of=("categorical",), build=null_is(0, int)
    )
    top_p: float = option(
        1.0,
        "LlamaGen: sample from the fewest most likely ids that reach this total probability; 1: from all",
        gt=0,
        le=1,
        of=("categorical",),
        build=null_is(1.0, float),
    )
    min_p: float = option(
        0.0,
        "LlamaGen: sample from the ids with at least this fraction of the highest probability; 0: from all",
        ge=0,
        le=1,
        of=("categorical",),
    )

    def given(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def read_by(self, kind: Kind) -> dict[str, Any]:
        """The settings that a kind of generator reads, defaults included."""
        names = [field.name for field in dataclasses.fields(self) if kind in field.metadata.get(OF, (kind,))]
        return {name: getattr(self, name) for name in names}

    def check_read_by(self, kind: Kind, model: str, prefix: str = "") -> None:
        """Raise InputError on settings that a generator does not use, and on numbers out of range.

        Args:
            model: its name.
            prefix: of the names in messages, such as "--" or "evaluate.".

        Raises:
            InputError: naming the first one.
        """
        read = self.read_by(kind)
        for field in dataclasses.fields(self):
            value, bounds = getattr(self, field.name), bounds_of(field)
            shown = flag_of(field.name) if prefix == "--" else prefix + field.name
            if value != field.default and field.name not in read:
                raise InputError(f"{shown}: {model} does not use it, leave it out; got {value}")
            if isinstance(value, int | float) and not (math.isfinite(value) and within(value, bounds)):
                ranged = " and ".join(f"{sign} {limit}" for sign, limit in bounds.items())
                raise InputError(f"{shown}: expected a finite number {ranged}, got {value:g}")


@dataclass(frozen=True)
class Sampling(SampleSettings):
    """How a generator samples, with guidance."""

    guidance: float | None = option(
        None,
        "guidance scale of the generator: unconditional + scale (conditional - unconditional); 1 is no guidance, 0 the "
        "prediction without class or caption, as --unconditional (but a tokenizer conditioned on the class still "
        "receives it); default: 2, without classes or captions, or where few_step.guidance includes it, 1",
        ge=0,
    )
    guidance_schedule: Schedule | None = option(
        None,
        "guidance scale over the tokens sampled one by one, or over MaskGIT's steps: constant, or going from 1 to the "
        "scale (linear, power_cosine); default: the model's own, for scale 0 constant",
    )
    guidance_interval: tuple[float, float] = option(
        EVERYWHERE,
        "where the generator is guided: SiT, LightningDiT and USiT from time 0 (noise) to 1 (tokens), such as 0.25,1; "
        "LlamaGen and MaskGIT: share of the tokens or steps; default: everywhere",
    )
    weak_model: str = option(
        "",
        "SiT, LightningDiT and USiT: guide away from this earlier or smaller model (a model, "
        "or a checkpoint RUN/checkpoints/step-...pt), not from the null class",
        axis=False,
        path="path",
    )
    unconditional: bool = option(False, "sample without classes or captions", axis=False)

    @property
    def settings(self) -> SampleSettings:
        """The part without guidance."""
        return fields_from(SampleSettings, self)


@dataclass(frozen=True)
class Decoding:
    """How a diffusion decoder of a tokenizer samples. Deterministic decoders read none of it."""

    steps: int | None = option(None, "steps of a diffusion decoder; default: the model's own", ge=1)
    sampler: str | None = option(
        None, "of a diffusion decoder: euler or heun (flow), ancestral or ddim (DDPM); default: the model's own"
    )
    guidance: float = option(
        1.0, "guidance scale of a diffusion decoder; 1 is no guidance, 0 the prediction without tokens", ge=0
    )
    guidance_interval: tuple[float, float] = option(
        EVERYWHERE,
        "where a diffusion decoder is guided, from time 0 (noise) to 1 (image), such as 0.2,0.8; default: everywhere",
    )

"""The options of sampling and decoding, declared once.

The options of the commands, the axes of `evaluate grid`, the `evaluate` section of recipes and the settings of a record
are made from these classes. A new option is a field here and the line that uses it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.errors import InputError

# How a generator samples: a diffusion head or a diffusion over the whole sequence, ids one by one from logits, or ids
# in a few parallel steps (MaskGIT).
Kind = Literal["diffusion", "categorical", "masked"]
OF = "of"  # key of a field's metadata: the kinds of generators that read it; without it all do


@dataclass(frozen=True)
class SampleSettings:
    """What `Generator.sample` takes beside guidance. Defaults change nothing.

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
    top_k: int = option(0, "sample from so many most likely ids; 0: all", ge=0, of=("categorical",))
    top_p: float = option(
        1.0, "sample from the most likely ids of this total probability; 1: all", gt=0, le=1, of=("categorical",)
    )

    def given(self) -> dict[str, object]:
        """The settings that differ from their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def check(self, kind: Kind, model: str, prefix: str = "") -> None:
        """Refuse settings that a generator does not read.

        Args:
            model: its name. prefix: of the names in messages, such as "--" or "evaluate.".

        Raises:
            InputError: naming the first one.
        """
        readers = {field.name: field.metadata.get(OF) for field in dataclasses.fields(self)}
        for name, value in self.given().items():
            kinds = readers[name]
            if kinds is not None and kind not in kinds:
                shown = prefix + (name.replace("_", "-") if prefix == "--" else name)
                raise InputError(f"{shown}: {model} has none, leave it out; got {value}")

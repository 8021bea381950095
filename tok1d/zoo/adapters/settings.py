"""The options of conversions: settings of a model that its weight file does not state, each declared once.

A conversion's keyword-only parameters that are annotated with a `Setting` are its options; their defaults are those of
the published models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tok1d.config.text import show, type_name


@dataclass(frozen=True)
class Setting:
    """What an option of a conversion sets.

    Args:
        help: what it is.
        field: dotted key in the configuration of the converted model; "" for one that is not in it.
        published: the default as text, where the parameter's default None stands for it.
        told: the key of config.json, at any depth, that states the value; "" if it never does.
        ge, gt, le, lt: range of a number.
    """

    help: str
    field: str = ""
    published: str = ""
    told: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


@dataclass(frozen=True)
class Declared:
    """An option of a conversion: its key, type, default value and `Setting`."""

    key: str
    hint: Any
    default: object
    setting: Setting

    @property
    def default_text(self) -> str:
        """The published default, for help texts."""
        return self.setting.published or (self.default if isinstance(self.default, str) else show(self.default))

    @property
    def kind(self) -> str:
        """The type of its values and their range, for help texts."""
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        limits = {signs[name]: limit for name, limit in self.bounds.items() if limit is not None}
        return type_name(self.hint, limits).removesuffix(" or null")

    @property
    def bounds(self) -> dict[str, Any]:
        """The range, as keyword arguments of `config.fields.option`."""
        return {sign: getattr(self.setting, sign) for sign in ("ge", "gt", "le", "lt")}


def declared(function: Callable[..., object]) -> list[Declared]:
    """The options of a conversion, in the order of its signature."""
    hints, found = get_type_hints(function, include_extras=True), []
    for each in inspect.signature(function).parameters.values():
        hint = hints.get(each.name)
        if get_origin(hint) is Annotated:
            kind, setting = get_args(hint)
            found.append(Declared(each.name, kind, each.default, setting))
    return found


Sampler = Annotated[Literal["sde", "euler", "heun"], Setting("default sampler", "sampler")]
Steps = Annotated[int, Setting("default sampling steps", "steps", ge=1)]
LastStep = Annotated[float, Setting("length in time of the SDE sampler's last step", "last_step", gt=0, lt=1)]
TimeShift = Annotated[
    float, Setting("shift of the ODE samplers' times; above 1: more steps near the noise", "time_shift", gt=0)
]
NormEps = Annotated[float, Setting("epsilon of the norms", "norm_eps", gt=0)]
Heads = Annotated[int | None, Setting("attention heads", "heads", "of the published model of this width", ge=1)]
ClassDropout = Annotated[
    float,
    Setting("share of null conditions in training; above 0 there is a null class", "class_dropout", ge=0, le=1),
]
EncoderNormEps = Annotated[float, Setting("epsilon of the encoder's norms", "encoder.norm_eps", gt=0)]
DecoderNormEps = Annotated[float, Setting("epsilon of the decoder's norms", "decoder.norm_eps", gt=0)]
EncoderHeads = Annotated[
    int | None, Setting("attention heads of the encoder", "encoder.heads", "of the published model of this width", ge=1)
]
DecoderHeads = Annotated[
    int | None, Setting("attention heads of the decoder", "decoder.heads", "of the published model of this width", ge=1)
]

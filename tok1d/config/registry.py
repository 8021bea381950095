"""The models by name: one line for each built-in model, and `register` for models outside the package.

Configuration and model classes are imported only when a model is asked for, because they need torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from tok1d.config import fields
from tok1d.config.nearest import known_name
from tok1d.config.text import show
from tok1d.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Model = TypeVar("Model", bound="type[nn.Module]")
Kind = Literal["tokenizer", "generator", "classifier", "budget"]
Capability = Literal["any_size", "adversarial"]

# What a model class of each kind must define.
METHODS: dict[Kind, tuple[str, ...]] = {
    "tokenizer": ("encode", "decode", "losses"),
    "generator": (
        "sample",
        "losses",
        "make_tokens",
        "evaluated_networks",
        "resolved_settings",
    ),  # tok1d.Generator has all
    "classifier": ("forward", "losses"),
    "budget": ("qualities", "fit", "losses"),
}


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Args:
        model: its class, or "module:Class".
        config: the dataclass of its configuration; default: the class called `ClassConfig` in the same module.
    """

    kind: Kind
    model: str | type[nn.Module]
    config: type | None = None

    def model_class(self) -> type[nn.Module]:
        """The class of the model, imported if need be."""
        return imported(self.model) if isinstance(self.model, str) else self.model

    def config_class(self) -> type:
        """The dataclass of the configuration, imported if need be."""
        return self.config or imported(f"{self.model}Config")


MODELS: dict[str, Entry] = {
    "semanticist": Entry("tokenizer", "tok1d.tokenizers.semanticist:Semanticist"),
    "maetok": Entry("tokenizer", "tok1d.tokenizers.maetok:MAETok"),
    "smap": Entry("tokenizer", "tok1d.tokenizers.smap:SMAP"),
    "titok": Entry("tokenizer", "tok1d.tokenizers.titok:TiTok"),
    "titok_legacy": Entry("tokenizer", "tok1d.zoo.compat.titok:LegacyTiTok"),
    "epsilon_llamagen": Entry("generator", "tok1d.generators.autoregressive:EpsilonLlamaGen"),
    "card": Entry("generator", "tok1d.generators.card:CARD"),
    "sit": Entry("generator", "tok1d.generators.sit:SiT"),
    "dit": Entry("generator", "tok1d.generators.sit:DiT"),
    "lightningdit": Entry("generator", "tok1d.generators.lightningdit:LightningDiT"),
    "usit": Entry("generator", "tok1d.generators.usit:USiT"),
    "llamagen": Entry("generator", "tok1d.generators.llamagen:LlamaGen"),
    "maskgit": Entry("generator", "tok1d.generators.maskgit:MaskGIT"),
    "budget_head": Entry("budget", "tok1d.tokenizers.budget:BudgetHead"),
    "cnn": Entry("classifier", "tok1d.evaluate.networks:CNN"),
}


def register(name: str, *, kind: Kind, config: type) -> Callable[[Model], Model]:
    """A class decorator that makes a model known by name to recipes, model folders and commands.

        @tok1d.register("my_tokenizer", kind="tokenizer", config=MyConfig)
        class MyTokenizer(nn.Module): ...

    The class is called with an instance of `config`. A tokenizer has the methods of the protocol in
    `tokenizers/base.py`, a generator is a subclass of `tok1d.Generator`. Two capabilities are class attributes, False
    if absent: `any_size` (trains on images of several sizes, data.image_sizes) and `adversarial` (has `reconstruct` and
    `last_weight`, so that the recipe sections perceptual and adversarial apply).

    Args:
        kind: tokenizer, generator, classifier or budget.
        config: a dataclass with the field `name: str = NAME`.

    Raises:
        ConfigError: the name belongs to another model, or the classes lack something that a model of this kind needs.
    """

    def decorate(cls: Model) -> Model:
        _check_model(name, kind, config, cls)
        MODELS[name] = Entry(kind, cls, config)
        return cls

    return decorate


def _check_model(name: str, kind: Kind, config: type, cls: type) -> None:
    if kind not in get_args(Kind):
        raise ConfigError(f"register {name}: expected kind {', '.join(get_args(Kind))}, got {show(kind)}")
    known = MODELS.get(name)
    # The same module may be imported again; the new class then replaces the old one.
    if known is not None and _path(known.model) != _path(cls):
        raise ConfigError(f"register {name}: the name belongs to {_path(known.model)}; choose another")
    named = dataclasses.is_dataclass(config) and getattr(config, "name", None)
    if named != name:
        raise ConfigError(f'register {name}: expected a dataclass with the field name: str = "{name}" as config')
    for method in METHODS[kind]:
        if not hasattr(cls, method):
            expected = ", ".join(METHODS[kind])
            raise ConfigError(f"register {name}: a {kind} needs the methods {expected}, {cls.__name__} has no {method}")


def _path(model: str | type) -> str:
    return model if isinstance(model, str) else f"{model.__module__}:{model.__qualname__}"


def attribute(path: str) -> Any:
    """The function or class at "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def imported(path: str) -> type:
    """The class at "module:Class"."""
    return attribute(path)


def has_capability(name: str, capability: Capability) -> bool:
    """Whether the class of a model has a capability; imports it."""
    return bool(getattr(MODELS[name].model_class(), capability, False))


def models_with(capability: Capability) -> list[str]:
    """Names of the models with a capability; imports all of them."""
    return [name for name in MODELS if has_capability(name, capability)]


def build_model_config(mapping: object, key: str = "model") -> Any:
    """The configuration of a model from a plain mapping, whose `name` picks the class.

    Raises:
        ConfigError: no model of that name (the message names the nearest), or as `tok1d.config.fields.build`.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{key}: expected a mapping with a name, got {show(mapping)}")
    name = known_name(mapping.get("name"), MODELS, f"{key}.name")
    return fields.build(MODELS[name].config_class(), mapping, key)

"""The models there are, by name; their classes are imported only when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tok1d.config import fields as config_fields
from tok1d.errors import ConfigError

# Model name -> where its configuration class is, imported only when a recipe names it: those modules need torch.
MODEL_CONFIGS: dict[str, tuple[str, str]] = {
    "semanticist": ("tok1d.tokenizers.semanticist", "SemanticistConfig"),
    "epsilon_llamagen": ("tok1d.generators.autoregressive", "EpsilonLlamaGenConfig"),
    "maetok": ("tok1d.tokenizers.maetok", "MAETokConfig"),
    "smap": ("tok1d.tokenizers.smap", "SMAPConfig"),
    "titok": ("tok1d.tokenizers.titok", "TiTokConfig"),
    "titok_legacy": ("tok1d.zoo.compat.titok", "LegacyTiTokConfig"),
    "card": ("tok1d.generators.card", "CARDConfig"),
    "sit": ("tok1d.generators.sit", "SiTConfig"),
    "dit": ("tok1d.generators.sit", "DiTConfig"),
    "lightningdit": ("tok1d.generators.lightningdit", "LightningDiTConfig"),
    "usit": ("tok1d.generators.usit", "USiTConfig"),
    "llamagen": ("tok1d.generators.llamagen", "LlamaGenConfig"),
    "maskgit": ("tok1d.generators.maskgit", "MaskGITConfig"),
    "cnn": ("tok1d.evaluate.networks", "CNNConfig"),
}
_KIND_OF_PACKAGE = {"tokenizers": "tokenizer", "zoo": "tokenizer", "generators": "generator", "evaluate": "classifier"}


def _build_model(value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected a mapping with a name, got {config_fields.show(value)}")
    cls = model_config_class(value.get("name"), f"{key}.name")
    return config_fields.build(cls, value, key)


def build_model_config(mapping: Mapping[str, Any]) -> Any:
    """The model configuration whose class the mapping's `name` picks; raises ConfigError as `load_recipe` does."""
    return _build_model(mapping, "model")


def model_config_class(name: Any, key: str = "model.name") -> Any:
    """The configuration dataclass of a model; raises ConfigError naming the nearest if there is no such model."""
    module, attribute = MODEL_CONFIGS[config_fields.known_name(name, MODEL_CONFIGS, key)]
    return getattr(importlib.import_module(module), attribute)

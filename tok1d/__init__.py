"""tok1d: structured 1D image tokenizers and the generators trained on their tokens.

import tok1d
model = tok1d.load("fashion-mnist-semanticist")
tokens = model.encode("photo.png")       # a path, PIL image, array or tensor in [0, 1] -> (B, K, D)
model.decode(tokens, keep=4)             # images (B, C, H, W) again, from the first four tokens
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tok1d import images as images
    from tok1d.api.analyses import analyze
    from tok1d.api.evaluation import evaluate
    from tok1d.api.training import train
    from tok1d.config.load import recipe_names as recipes
    from tok1d.config.registry import register
    from tok1d.generators.base import Generator
    from tok1d.images import show
    from tok1d.tokenizers.model import TokenizerModel as Tokenizer
    from tok1d.zoo.checkpoints import load_model as load
    from tok1d.zoo.checkpoints import load_pair
    from tok1d.zoo.listed import models
    from tok1d.zoo.onnx.export import export_onnx

__version__ = "0.1.0"
__all__ = [
    "Generator",
    "Tokenizer",
    "__version__",
    "analyze",
    "evaluate",
    "export_onnx",
    "images",
    "load",
    "load_pair",
    "models",
    "recipes",
    "register",
    "show",
    "train",
]

# Name -> "module:name", or a module. Imported on first use (PEP 562), because most of these modules import torch.
_EXPORTS = {
    "Generator": "tok1d.generators.base:Generator",
    "Tokenizer": "tok1d.tokenizers.model:TokenizerModel",
    "analyze": "tok1d.analyze",  # packages that can be called
    "evaluate": "tok1d.evaluate",
    "export_onnx": "tok1d.zoo.onnx.export:export_onnx",
    "images": "tok1d.images",
    "load": "tok1d.zoo.checkpoints:load_model",
    "load_pair": "tok1d.zoo.checkpoints:load_pair",
    "models": "tok1d.zoo.listed:models",
    "recipes": "tok1d.config.load:recipe_names",
    "register": "tok1d.config.registry:register",
    "show": "tok1d.images:show",
    "train": "tok1d.train",
}


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value = importlib.import_module(module)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)

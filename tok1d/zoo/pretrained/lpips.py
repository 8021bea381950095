"""Loading LPIPS and the perceptual loss of a recipe with trained weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.losses.perceptual import LPIPS, LPIPS_NAME, FeatureDistance, PerceptualConfig, PerceptualLoss
from tok1d.zoo.adapters.lpips import read_heads, read_vgg
from tok1d.zoo.pretrained.classifier import load_classifier
from tok1d.zoo.pretrained.networks import NAMED, LayerMaps, open_pretrained, parse_network

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's download; its name has the hash
# Packages that contain the linear heads -> the file inside.
HEAD_PACKAGES = {"lpips": "weights/v0.1/vgg.pth", "torchmetrics": "functional/image/lpips_models/vgg.pth"}


def find_heads(path: str | None = None) -> Path | None:
    """The file with the linear heads: `path`, by default that of an installed package; None if there is none."""
    if path is not None:
        return Path(path) if Path(path).is_file() else None
    for package, inside in HEAD_PACKAGES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / inside).is_file():
                return Path(folder) / inside
    return None


def find_vgg(path: str | None = None) -> Path | None:
    """The file with VGG16's weights: `path`, by default torchvision's download; None if there is none."""
    file = Path(path) if path is not None else _download_place() / Path(VGG_URL).name
    return file if file.is_file() else None


def _download_place() -> Path:
    """The folder in which torchvision and lpips store downloads."""
    return Path(torch.hub.get_dir(), "checkpoints")


def _shown(place: Path) -> str:
    """A folder as text, with ~ for the home folder."""
    home = Path.home()
    return f"~/{place.relative_to(home)}" if place.is_relative_to(home) else str(place)


def lpips_missing(vgg: str | None = None, heads: str | None = None) -> str | None:
    """What is missing to compute LPIPS without a download, in one line; None if nothing is."""
    if find_heads(heads) is None:
        found = f"no file {heads}" if heads else "none and no lpips package"
        return (
            f"LPIPS: expected its linear heads, got {found}; pip install lpips (in a training also "
            "perceptual.heads=FILE, weights/v0.1/vgg.pth of that package)"
        )
    if find_vgg(vgg) is None:
        found = f"no file {vgg}" if vgg else "none downloaded"
        return (
            f"LPIPS: expected VGG16's weights, got {found}; fetch {VGG_URL} into {_shown(_download_place())} "
            "(in a training also perceptual.vgg=FILE)"
        )
    return None


def load_lpips(vgg: str | None = None, heads: str | None = None) -> LPIPS:
    """LPIPS with trained weights. Those of VGG16 are downloaded if `vgg` is None and there is no download yet.

    Args:
        vgg: file with VGG16's weights. heads: file with the linear heads. None: see `find_vgg` and `find_heads`.

    Raises:
        WeightsError: weights that are missing, cannot be downloaded, are damaged or do not fit.
    """
    file = find_heads(heads)
    if file is not None and vgg is None and find_vgg() is None:
        _download_vgg()
    missing = lpips_missing(vgg, heads)
    trunk = find_vgg(vgg)
    if missing or file is None or trunk is None:
        raise WeightsError(missing or "LPIPS: its weight files were removed while they were read")
    return LPIPS(read_vgg(trunk), read_heads(file))


def _download_vgg() -> None:
    target = _download_place() / Path(VGG_URL).name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # It writes to a temporary file, checks the hash, and renames the file.
        torch.hub.download_url_to_file(VGG_URL, str(target), hash_prefix="397923af", progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"LPIPS: VGG16's weights could not be fetched ({reason_of(error)}); fetch {VGG_URL} elsewhere and put it "
            f"into {_shown(_download_place())}, or in a training give perceptual.vgg=FILE"
        ) from None


def load_feature_distance(text: str, *, random: bool = False) -> FeatureDistance:
    """The distance in the feature maps of a pretrained network.

    Images are resized to the size that the text states, or to that of a network that takes no other.

    Args:
        text: as `parse_network` reads it.
        random: with random weights.

    Raises:
        ConfigError: a text that names no network, or a network without several feature maps.
        WeightsError, InputError: see `open_pretrained`.
    """
    named = parse_network(text)
    if named is None:
        raise ConfigError(f"perceptual.network: expected {LPIPS_NAME}, {NAMED}, got {text!r}")
    found = open_pretrained(named, random=random)
    size = found.size if found.fixed or named.size is not None else None
    return FeatureDistance(LayerMaps(found.trunk, text), size=size, mean=found.mean, std=found.std)


def load_perceptual(config: PerceptualConfig) -> PerceptualLoss:
    """The perceptual loss of a recipe, with the networks whose weight is above 0.

    Raises:
        ConfigError, WeightsError, InputError: see `load_lpips`, `load_feature_distance` and `load_classifier`.
    """
    features: LPIPS | FeatureDistance | None = None
    if config.weight > 0:
        features = load_lpips(config.vgg, config.heads) if config.is_lpips else load_feature_distance(config.network)
    logits = load_classifier(config.classifier, config.classifier_weights) if config.logits > 0 else None
    return PerceptualLoss(config, features, logits)

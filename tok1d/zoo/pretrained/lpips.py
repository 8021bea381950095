"""LPIPS and the perceptual loss of a recipe, with trained weights found, downloaded or refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from tok1d.errors import WeightsError
from tok1d.losses.perceptual import LPIPS, PerceptualConfig, PerceptualLoss
from tok1d.zoo.adapters.lpips import read_heads, read_vgg
from tok1d.zoo.pretrained.classifier import load_classifier

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's, with its hash in the name
# Packages that bring the heads with them, and where.
HEAD_PACKAGES = {"lpips": "weights/v0.1/vgg.pth", "torchmetrics": "functional/image/lpips_models/vgg.pth"}


def find_heads(path: str | None = None) -> Path | None:
    """The file of the linear heads: the given one, else that of an installed package that brings it; None without."""
    if path is not None:
        return Path(path) if Path(path).is_file() else None
    for package, inside in HEAD_PACKAGES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / inside).is_file():
                return Path(folder) / inside
    return None


def find_vgg(path: str | None = None) -> Path | None:
    """The file of VGG16's weights: the given one, else torchvision's download where it is done; None without."""
    file = Path(path) if path is not None else _download_place() / Path(VGG_URL).name
    return file if file.is_file() else None


def _download_place() -> Path:
    """Where torchvision and lpips keep such weights, too."""
    return Path(torch.hub.get_dir(), "checkpoints")


def _shown(place: Path) -> str:
    """A folder as one types it, the same on every machine where it is the default."""
    home = Path.home()
    return f"~/{place.relative_to(home)}" if place.is_relative_to(home) else str(place)


def lpips_missing(vgg: str | None = None, heads: str | None = None) -> str | None:
    """Why LPIPS cannot be computed here without a download, in one line; None where it can."""
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
    """LPIPS with its real weights; VGG16's are downloaded where `vgg` is not given and they are not here yet.

    Raises:
        WeightsError: weights that cannot be had, are damaged or are another network's.
    """

    file = find_heads(heads)
    if file is not None and vgg is None and find_vgg() is None:
        _download_vgg()
    missing = lpips_missing(vgg, heads)
    trunk = find_vgg(vgg)
    if missing or file is None or trunk is None:
        raise WeightsError(missing or "LPIPS: its weights were there a moment ago")
    return LPIPS(read_vgg(trunk), read_heads(file))


def _download_vgg() -> None:
    target = _download_place() / Path(VGG_URL).name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # It writes beside the target, checks the hash, then renames.
        torch.hub.download_url_to_file(VGG_URL, str(target), hash_prefix="397923af")
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"LPIPS: VGG16's weights could not be fetched ({reason}); fetch {VGG_URL} elsewhere and put it into "
            f"{_shown(_download_place())}, or in a training give perceptual.vgg=FILE"
        ) from None


def load_perceptual(config: PerceptualConfig) -> PerceptualLoss:
    """The perceptual loss of a recipe with the networks that have weight, loaded now.

    Raises:
        ConfigError, WeightsError: a network that has weight and cannot be had here.
    """
    lpips = load_lpips(config.vgg, config.heads) if config.weight > 0 else None
    logits = load_classifier(config.classifier, config.classifier_weights) if config.logits > 0 else None
    return PerceptualLoss(config, lpips, logits)

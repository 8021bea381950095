"""Published weights of LPIPS: VGG16 with torchvision's names, and the linear heads of lpips and taming-transformers."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.losses.perceptual import CONVS, WIDTHS, vgg16
from tok1d.zoo.adapters.keymap import State, fill_model, read_published

# The number after "model" is 1 where a dropout layer comes first, else 0.
HEAD = re.compile(r"lin(?:s\.)?(\d)\.model\.\d\.weight")


def heads_from_published(state: State, source: str) -> list[Tensor]:
    """The weights (C,) of the five heads, in the order of the feature maps; other entries are left out.

    Raises:
        WeightsError: not five heads.
    """
    found = {int(match[1]): value.flatten() for name, value in state.items() if (match := HEAD.fullmatch(name))}
    if sorted(found) != list(range(len(CONVS))):
        raise WeightsError(
            f"{source}: expected lin0 to lin4 with model.1.weight, got {len(found)} of them; give the lpips "
            "package's weights/v0.1/vgg.pth"
        )
    return [found[level] for level in sorted(found)]


def read_heads(path: Path) -> list[Tensor]:
    """The heads in a file.

    Raises:
        WeightsError: a damaged file, or heads of another network than VGG16.
    """
    heads = heads_from_published(read_published(path), str(path))
    sizes = tuple(head.numel() for head in heads)
    if sizes != WIDTHS:
        raise WeightsError(f"{path}: expected heads of VGG16 for {WIDTHS} channels, got {sizes}")
    return heads


def read_vgg(path: Path) -> nn.Sequential:
    """VGG16's convolutions from a file, without its classifier.

    Raises:
        WeightsError: a damaged file, or another network's weights.
    """
    prefix = "features."
    state = {name.removeprefix(prefix): v for name, v in read_published(path).items() if name.startswith(prefix)}
    with torch.device("meta"):  # the weights are replaced: no memory and no random numbers for initial ones
        vgg = vgg16()
    vgg = vgg.to_empty(device="cpu")
    fill_model(vgg, state, {name: prefix + name for name in vgg.state_dict()}, str(path))
    return vgg

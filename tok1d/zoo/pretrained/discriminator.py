"""Building the discriminator of a configuration, with its frozen DINO backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tok1d.errors import ConfigError
from tok1d.losses.discriminator import (
    BlurPatchConfig,
    BlurPatchDiscriminator,
    DinoConfig,
    DinoDiscriminator,
    DinoTrunk,
    DiscriminatorConfig,
    PatchConfig,
    PatchDiscriminator,
)
from tok1d.zoo.adapters.discriminator import trunk_from_published
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.pretrained.teachers import load_teacher

# Backbones whose cost is known without their weights: the arguments of their `DinoTrunk`.
KNOWN: dict[str, dict[str, Any]] = {
    "vit_small_patch16_224.dino": {"patch": 16, "side": 14},
    "vit_small_patch8_224.dino": {"patch": 8, "side": 28},
    "vit_small_patch14_dinov2.lvd142m": {"patch": 14, "side": 37, "layer_scale": 1.0},
    "vit_small_patch14_reg4_dinov2.lvd142m": {"patch": 14, "side": 37, "layer_scale": 1.0, "registers": 4},
}
SMALL = {"dim": 384, "depth": 12, "heads": 6}  # ViT-S


def build_discriminator(config: DiscriminatorConfig, channels: int) -> nn.Module:
    """The discriminator of a configuration, with random weights except for a frozen backbone.

    Args:
        channels: image channels.

    Raises:
        ConfigError, WeightsError: see `load_trunk`.
    """
    if isinstance(config, PatchConfig):
        return PatchDiscriminator(channels, config.width, config.layers)
    if isinstance(config, BlurPatchConfig):
        return BlurPatchDiscriminator(channels, config.width, config.stages)
    return DinoDiscriminator(load_trunk(config), image_size=config.image_size)


def load_trunk(config: DinoConfig) -> DinoTrunk:
    """The frozen vision transformer of a configuration.

    Raises:
        ConfigError: timm is not installed, an unknown name, or an image size that the patches do not divide; random
            weights of a backbone that is not in `KNOWN`.
        WeightsError: weights that are missing, or not those of a plain vision transformer.
    """
    source = config.weights or config.backbone
    if config.weights == "random":
        if config.backbone not in KNOWN:
            raise ConfigError(
                f"backbone: weights=random knows the sizes of {', '.join(KNOWN)} alone, got {config.backbone}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            trunk = DinoTrunk(**SMALL, **KNOWN[config.backbone], tanh=config.tanh)
    elif config.weights is not None:
        trunk = trunk_from_published(read_published(config.weights), source, tanh=config.tanh)
    else:
        network: Any = load_teacher(config.backbone, image_size=config.image_size).network
        if not hasattr(network, "vit"):
            raise ConfigError(f"backbone: {config.backbone} is a classifier of tok1d, expected a timm name")
        trunk = trunk_from_published(network.vit.state_dict(), source, tanh=config.tanh)
    if config.image_size % trunk.patch_embed.patch:
        raise ConfigError(
            f"image_size: expected a multiple of {trunk.patch_embed.patch}, the patches of {source}, got "
            f"{config.image_size}"
        )
    return trunk

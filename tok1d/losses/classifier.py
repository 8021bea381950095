"""The squared difference of a classifier's logits: TiTok's perceptual loss, with ConvNeXt-S (arXiv 2406.07550).

Only a trained network counts. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224  # pixels of the images it sees


class LogitsDistance(nn.Module):
    """Frozen, in eval mode for ever. Images (B, 1 or 3, H, W) in [0, 1], resized bilinearly to the network's size.

    Args:
        network: standardised images (B, 3, side, side) -> logits (B, classes).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        side: int = SIDE,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LogitsDistance:
        """Stays in eval mode."""
        return super().train(False)

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) in float32; smaller images are enlarged, larger ones smoothed as they shrink."""
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.std).float()  # broadcast: a grey channel becomes three

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean squared difference of two images' logits (B,)."""
        return (self.logits(a) - self.logits(b)).square().mean(1)


def classifier_network(name: str, *, pretrained: bool) -> Any:
    """A timm classifier, with the weights that timm downloads or untrained.

    Raises:
        ConfigError: timm is not installed, or has no such network. WeightsError: its weights cannot be had.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"classifier {name}: timm is not installed; pip install 'tok1d[teachers]'") from None
    if ":" not in name and not timm.is_model(name):
        raise ConfigError(f"classifier {name}: timm has no such model; expected a name such as convnext_small.fb_in1k")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # network, hub, disk: timm passes on whatever its libraries raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(
            f"classifier {name}: timm could not make it ({reason}); without a network give classifier_weights=FILE"
        ) from None


def load_classifier(name: str, weights: str | None = None) -> LogitsDistance:
    """The distance of a trained timm classifier.

    Args:
        weights: a file in timm's layout; default: what timm downloads.

    Raises:
        ConfigError, WeightsError: no such network, or no trained weights of it.
    """
    from tok1d.zoo.adapters.keymap import read_published
    from tok1d.zoo.store import load_state

    with torch.random.fork_rng(devices=[]):  # the draws of the initial weights are thrown away
        network = classifier_network(name, pretrained=weights is None)
    if weights is not None:
        load_state(network, read_published(weights), weights)
    elif not any(network.pretrained_cfg.get(place) for place in ("hf_hub_id", "url", "file")):
        raise WeightsError(f"classifier {name}: timm has no trained weights of it; give classifier_weights=FILE")
    known = network.pretrained_cfg
    return LogitsDistance(network, side=SIDE, mean=known["mean"], std=known["std"])

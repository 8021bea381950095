"""What the networks that judge a tokenizer's reconstructions, LPIPS and a discriminator, add to its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tok1d.config.fields import build_config, to_mapping
from tok1d.config.recipe import Recipe
from tok1d.cost.measure import Measured, measure
from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.classifier import LogitsDistance
from tok1d.losses.discriminator import DinoConfig, DinoDiscriminator, SpectralConv1d
from tok1d.losses.perceptual import LPIPS, WIDTHS, vgg16
from tok1d.zoo.pretrained.classifier import classifier_network
from tok1d.zoo.pretrained.discriminator import build_discriminator

KNOWN_BACKBONE = DinoConfig().backbone  # whose sizes are known without its weights


@dataclass(frozen=True)
class Judge:
    """A network beside the model.

    Args:
        trained, frozen: its parameters; a trained one has gradients and AdamW's moments.
        flops_per_image: of a training step in the game, forward and backward, of all its passes.
        flops_before: the same before the discriminator plays.
        bytes_per_image: what its pass over a reconstruction keeps while the tokenizer's is kept too.
    """

    trained: int
    frozen: int
    flops_per_image: int
    flops_before: int
    bytes_per_image: int

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and AdamW's two moments in float32, and frozen weights."""
        return 16 * self.trained + 4 * self.frozen


def judges(recipe: Recipe) -> dict[str, Judge | None]:
    """The judges of a recipe by name; None for one whose network is not known here."""
    found: dict[str, Judge | None] = {}
    half, sides = recipe.train.precision != "fp32", recipe.data.image_sizes or [recipe.data.image_size]
    # The adaptive weight takes the gradient of what it compares once more, down to the last layer's output.
    again = recipe.adversarial.weight > 0 and recipe.adversarial.adaptive
    if recipe.perceptual.weight > 0:
        found["LPIPS"] = _in_turn([_lpips(side, half, again) for side in sides])
    if recipe.perceptual.logits > 0:
        name = recipe.perceptual.classifier
        found["classifier"] = _in_turn([_classifier(name, side, half, again) for side in sides])
    if recipe.adversarial.weight > 0:
        config = recipe.adversarial.discriminator
        if isinstance(config, DinoConfig) and config.backbone != KNOWN_BACKBONE:
            found["discriminator"] = None
        else:
            key = (type(config), tuple(to_mapping(config).items()))
            game = recipe.adversarial
            rest = (recipe.data.channels, bool(game.consistency), bool(game.lecam), game.adaptive, half)
            found["discriminator"] = _in_turn([_discriminator(key, side, *rest) for side in sides])
    return found


def _in_turn(each: Sequence[Judge | None]) -> Judge | None:
    """A judge of images of one size or another: the mean of its FLOPs, the most of its bytes; None if not known."""
    known = [judge for judge in each if judge is not None]
    if not known:
        return None
    flops, before = (
        sum(getattr(judge, key) for judge in known) // len(known) for key in ("flops_per_image", "flops_before")
    )
    most = max(judge.bytes_per_image for judge in known)
    return replace(known[0], flops_per_image=flops, flops_before=before, bytes_per_image=most)


class _Pass(nn.Module):
    """A network as something `measure` can train: images -> the mean of what it says of them.

    Args:
        learns: the network's own parameters collect gradients, else the images do.
    """

    def __init__(self, network: nn.Module, *, learns: bool) -> None:
        super().__init__()
        self.network, self.learns = network, learns

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        images = batch[0].requires_grad_(not self.learns)
        return {"loss": self.network(images).mean()}


class _Against(nn.Module):
    """A distance of images and themselves, as if these had no gradient."""

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, images: Tensor) -> Tensor:
        return self.distance(images, images.detach())


def _measured(network: nn.Module, size: int, channels: int, *, learns: bool, half: bool) -> Measured:
    def batch(num: int) -> tuple[Tensor, Tensor]:
        return torch.empty(num, channels, size, size, device="meta"), torch.empty(0)

    network.requires_grad_(learns)
    return measure(_Pass(network, learns=learns), batch, half=half)


def _forward_flops(network: nn.Module, size: int, channels: int) -> int:
    """FLOPs an image of a forward pass alone."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(2, channels, size, size, device="meta"))
    return counter.get_total_flops() // 2


@lru_cache
def _lpips(size: int, half: bool, again: bool) -> Judge:
    with torch.device("meta"):
        network = LPIPS(vgg16(), [torch.empty(width) for width in WIDTHS])
    return _distance(network, size, half, again)


def _distance(network: nn.Module, size: int, half: bool, again: bool) -> Judge:
    """A frozen network that images and reconstructions pass, with `again` a second backward pass in the game."""
    against = _Against(network)
    cost = _measured(against, size, 3, learns=False, half=half)
    more = cost.flops_per_image - _forward_flops(against, size, 3) if again else 0
    parameters = sum(p.numel() for p in network.parameters())
    return Judge(0, parameters, cost.flops_per_image + more, cost.flops_per_image, cost.bytes_per_image)


@lru_cache
def _classifier(name: str, size: int, half: bool, again: bool) -> Judge | None:
    try:
        with torch.device("meta"):
            network = LogitsDistance(classifier_network(name, pretrained=False))
    except (ConfigError, WeightsError):  # no timm, or not a name of it
        return None
    return _distance(network, size, half, again)


@lru_cache
def _discriminator(
    key: Any, size: int, channels: int, consistency: bool, lecam: bool, again: bool, half: bool
) -> Judge:
    config = build_config(key[0], dict(key[1]))
    frozen, seen = 0, size
    if isinstance(config, DinoConfig):
        # Whatever the images' size, this is what it looks at; a random crop or a resize costs next to nothing.
        config, seen = replace(config, weights="random"), config.image_size
    with torch.device("meta"):
        network = build_discriminator(config, channels)
    for part in network.modules():
        if isinstance(part, SpectralConv1d):  # its power iterations cost nothing, but the meta device cannot do them
            part.forward = partial(nn.Conv1d.forward, part)  # type: ignore[method-assign]
    if isinstance(network, DinoDiscriminator):
        frozen = sum(p.numel() for p in network.trunk.parameters())
    trained = sum(p.numel() for p in network.parameters())
    learning = _measured(network, seen, channels, learns=True, half=half)
    judging = _measured(network, seen, channels, learns=False, half=half)
    passes = 4 if consistency else 2  # images and reconstructions
    flops = judging.flops_per_image + passes * learning.flops_per_image
    forward = _forward_flops(network, seen, channels)
    if again:
        flops += judging.flops_per_image - forward
    # LeCAM's means follow the logits of images and reconstructions from the first step on.
    return Judge(trained, frozen, flops, 2 * forward if lecam else 0, judging.bytes_per_image)

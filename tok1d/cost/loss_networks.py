"""The cost of the networks of a tokenizer's loss: LPIPS or another distance, a classifier and a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tok1d.config.fields import build_config, to_mapping
from tok1d.config.recipe import Recipe
from tok1d.cost.measure import StepCost, measure
from tok1d.errors import ConfigError, InputError, WeightsError
from tok1d.losses.classifier import LogitsDistance
from tok1d.losses.discriminator import DinoConfig, DinoDiscriminator, DiscriminatorConfig, SpectralConv1d
from tok1d.losses.perceptual import LPIPS, LPIPS_NAME, WIDTHS, vgg16
from tok1d.zoo.pretrained.classifier import classifier_network
from tok1d.zoo.pretrained.discriminator import KNOWN, build_discriminator
from tok1d.zoo.pretrained.lpips import load_feature_distance


@dataclass(frozen=True)
class LossNetwork:
    """The cost of a network that only the loss uses.

    Args:
        trained, frozen: its parameters; trained ones have gradients and AdamW's moments.
        flops_per_image: FLOPs of all its forward and backward passes in a training step with the discriminator.
        flops_before: the same before the discriminator starts.
        bytes_per_image: activations of its forward pass on a reconstruction, kept together with the tokenizer's.
    """

    trained: int
    frozen: int
    flops_per_image: int
    flops_before: int
    bytes_per_image: int

    @property
    def state_bytes(self) -> int:
        """Bytes of trained weights, their gradients and AdamW's two moments, and of frozen weights, in float32."""
        return 16 * self.trained + 4 * self.frozen


def loss_networks(recipe: Recipe) -> dict[str, LossNetwork | None]:
    """The networks of a recipe's loss by name; None for one whose cost is unknown."""
    found: dict[str, LossNetwork | None] = {}
    half, sides = recipe.train.precision != "fp32", recipe.data.image_sizes or [recipe.data.image_size]
    adversarial = recipe.adversarial
    # The adaptive weight needs the gradient of each compared loss at the last layer: a second backward pass.
    adaptive = adversarial.weight > 0 and adversarial.adaptive
    if recipe.perceptual.weight > 0:
        network = recipe.perceptual.network
        name = "LPIPS" if recipe.perceptual.is_lpips else network
        found[name] = _over_sizes([_features(network, side, half, adaptive) for side in sides])
    if recipe.perceptual.logits > 0:
        name = recipe.perceptual.classifier
        found["classifier"] = _over_sizes([_classifier(name, side, half, adaptive) for side in sides])
    if adversarial.weight > 0:
        config = adversarial.discriminator
        if isinstance(config, DinoConfig) and config.backbone not in KNOWN:
            found["discriminator"] = None
        else:
            key = (type(config), tuple(to_mapping(config).items()))  # hashable, for lru_cache
            rest = (recipe.data.channels, bool(adversarial.consistency), bool(adversarial.lecam), adaptive, half)
            found["discriminator"] = _over_sizes([_discriminator(key, side, *rest) for side in sides])
    return found


def _over_sizes(each: Sequence[LossNetwork | None]) -> LossNetwork | None:
    """One cost for several image sizes: the mean of the FLOPs, the largest bytes; None where the costs are unknown."""
    known = [network for network in each if network is not None]
    if not known:
        return None
    return replace(
        known[0],
        flops_per_image=sum(network.flops_per_image for network in known) // len(known),
        flops_before=sum(network.flops_before for network in known) // len(known),
        bytes_per_image=max(network.bytes_per_image for network in known),
    )


class _Pass(nn.Module):
    """A network with losses that `measure` can run: the mean of its outputs for the images of a batch.

    Args:
        learns: gradients are computed for the network's parameters, else for the images.
    """

    def __init__(self, network: nn.Module, *, learns: bool) -> None:
        super().__init__()
        self.network, self.learns = network, learns

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        images = batch[0].requires_grad_(not self.learns)
        return {"loss": self.network(images).mean()}


class _ToItself(nn.Module):
    """A distance of images to themselves, without a gradient for the second argument."""

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, images: Tensor) -> Tensor:
        return self.distance(images, images.detach())


def _cost(network: nn.Module, size: int, channels: int, *, learns: bool, half: bool) -> StepCost:
    def batch(num: int) -> tuple[Tensor, Tensor]:
        return torch.empty(num, channels, size, size, device="meta"), torch.empty(0)

    network.requires_grad_(learns)
    return measure(_Pass(network, learns=learns), batch, half=half)


def _forward_flops(network: nn.Module, size: int, channels: int) -> int:
    """FLOPs per image of a forward pass alone."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(2, channels, size, size, device="meta"))
    return counter.get_total_flops() // 2


@lru_cache
def _features(name: str, size: int, half: bool, adaptive: bool) -> LossNetwork | None:
    """The cost of the distance of features; None if it cannot be built here."""
    try:
        with torch.device("meta"):
            network: nn.Module
            if name == LPIPS_NAME:
                network = LPIPS(vgg16(), [torch.empty(width) for width in WIDTHS])
            else:
                network = load_feature_distance(name, random=True)
        return _distance(network, size, half, adaptive)
    except (ConfigError, WeightsError, InputError):  # timm is not installed, or has no such network
        return None


def _distance(network: nn.Module, size: int, half: bool, adaptive: bool) -> LossNetwork:
    """The cost of a frozen distance between images and reconstructions; `adaptive` adds a second backward pass."""
    distance = _ToItself(network)
    cost = _cost(distance, size, 3, learns=False, half=half)
    backward = cost.flops_per_image - _forward_flops(distance, size, 3) if adaptive else 0
    parameters = sum(p.numel() for p in network.parameters())
    return LossNetwork(0, parameters, cost.flops_per_image + backward, cost.flops_per_image, cost.bytes_per_image)


@lru_cache
def _classifier(name: str, size: int, half: bool, adaptive: bool) -> LossNetwork | None:
    try:
        with torch.device("meta"):
            network = LogitsDistance(classifier_network(name, pretrained=False))
    except (ConfigError, WeightsError):  # timm is not installed, or has no such model
        return None
    return _distance(network, size, half, adaptive)


@lru_cache
def _discriminator(
    key: tuple[type[DiscriminatorConfig], tuple[tuple[str, object], ...]],
    size: int,
    channels: int,
    consistency: bool,
    lecam: bool,
    adaptive: bool,
    half: bool,
) -> LossNetwork:
    config, frozen = build_config(key[0], dict(key[1])), 0
    if isinstance(config, DinoConfig):
        # Its images are cropped or resized to one size, at negligible cost.
        config, size = replace(config, weights="random"), config.image_size
    with torch.device("meta"):
        network = build_discriminator(config, channels)
    for part in network.modules():
        if isinstance(part, SpectralConv1d):  # without power iterations: negligible, and impossible on the meta device
            part.forward = partial(nn.Conv1d.forward, part)  # type: ignore[method-assign]
    if isinstance(network, DinoDiscriminator):
        frozen = sum(p.numel() for p in network.trunk.parameters())
    trained = sum(p.numel() for p in network.parameters())
    own_step = _cost(network, size, channels, learns=True, half=half)
    tokenizer_step = _cost(network, size, channels, learns=False, half=half)
    passes = 4 if consistency else 2  # images and reconstructions, and both once more, augmented
    flops = tokenizer_step.flops_per_image + passes * own_step.flops_per_image
    forward = _forward_flops(network, size, channels)
    if adaptive:
        flops += tokenizer_step.flops_per_image - forward
    # LeCAM's running means need the logits of images and reconstructions from the first step on.
    return LossNetwork(trained, frozen, flops, 2 * forward if lecam else 0, tokenizer_step.bytes_per_image)

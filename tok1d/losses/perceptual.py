"""Distances of images in the features of frozen networks, and the perceptual loss of tokenizers.

LPIPS is the one in VGG16 with weights that fit human judgements (arXiv 1801.03924). `FeatureDistance` takes the feature
maps of any pretrained network, without such weights, and is never called LPIPS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.losses.adversarial import linear_ramp
from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD

WIDTHS = (64, 128, 256, 512, 512)  # channels of the stages of VGG16
LPIPS_NAME = "lpips"
LEAST_SIDE = 64  # of the images of `FeatureDistance`, in pixels; see there
CONVS = (2, 2, 3, 3, 3)  # convolutions of the stages
Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of images (B, C, H, W) in [0, 1] -> (B,)
# Mean and standard deviation of images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


@dataclass
class PerceptualConfig:
    """The perceptual loss of reconstructions: a distance of features, and the difference of a classifier's logits."""

    weight: float = option(0.0, "weight of the distance of features; 0: without (MAETok: 1, with LPIPS)", ge=0)
    warmup: int = option(0, "steps over which this weight grows linearly from 0 (SoftVQ: 10000)", ge=0)
    network: str = option(
        "lpips",
        "network of the features: lpips, or without LPIPS's learned weights of channels efficientnet-lite0[:SIZE] or "
        "timm:NAME[:SIZE][:FILE]. SIZE: side to which images are resized; default: as they are, at least 64",
        path="prefixed",
    )
    vgg: str | None = option(
        None, "lpips: file with torchvision's weights of VGG16; null: torchvision's download", path="path"
    )
    heads: str | None = option(
        None,
        "lpips: file with the linear heads (vgg.pth of the lpips package); null: those of an installed lpips package",
        path="path",
    )
    logits: float = option(
        0.0, "weight of the squared difference of a classifier's logits; 0: without (TiTok: 0.1)", ge=0
    )
    classifier: str = option(
        "convnext_small.fb_in1k",
        "that classifier: timm's name, efficientnet-lite0 or timm:NAME[:SIZE][:FILE]",
        path="prefixed",
    )
    classifier_weights: str | None = option(None, "file with its weights; null: timm's download", path="path")

    @property
    def used(self) -> bool:
        """Whether any of its terms has a weight above 0."""
        return self.weight > 0 or self.logits > 0

    @property
    def is_lpips(self) -> bool:
        """Whether the distance of features is LPIPS."""
        return self.network == LPIPS_NAME

    def check(self) -> None:
        """Raise ConfigError on files of LPIPS for another network."""
        for key in ("vgg", "heads"):
            if not self.is_lpips and getattr(self, key) is not None:
                raise ConfigError(f"{key}: only read with network=lpips, got network={self.network}; leave it out")


def vgg16(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """VGG16 up to relu5_3, with torchvision's layer indices and random weights."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, convs) in enumerate(zip(widths, CONVS)):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(convs):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """The distance sum_l mean_hw sum_c w_lc (x_lc - y_lc)^2 of unit-length features x_l, y_l of layer l; frozen.

    Args:
        vgg: the layers of `vgg16` with trained weights.
        heads: weights w_l (C,) of the channels of each of the five feature maps. Their dropout is left out.
    """

    def __init__(self, vgg: nn.Sequential, heads: Sequence[Tensor]) -> None:
        super().__init__()
        self.vgg = vgg
        self.heads = nn.ParameterList(nn.Parameter(head) for head in heads)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.shift: Tensor
        self.scale: Tensor
        self.requires_grad_(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0, 1] -> the input (B, 3, H, W) of VGG16."""
        return (2 * images - 1 - self.shift) / self.scale  # broadcast: a grey channel is repeated

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps relu1_2, 2_2, 3_3, 4_3 and 5_3 of prepared images (B, 3, H, W), H and W at least 16."""
        found = []
        for layer in self.vgg:
            if isinstance(layer, nn.MaxPool2d):
                found.append(images)
            images = layer(images)
        return [*found, images]

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The distance (B,) of two batches of images with feature maps (B, C, h, w)."""
        total = torch.zeros(len(a[0]), device=a[0].device)
        for head, x, y in zip(self.heads, a, b):
            x, y = (each.float() / (each.float().norm(dim=1, keepdim=True) + 1e-10) for each in (x, y))
            total = total + ((x - y).square() * head[:, None, None]).sum(1).mean((1, 2))
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance (B,) >= 0 of pairs of images (B, 1 or 3, H, W) in [0, 1]."""
        return self.distance(self.maps(self.prepare(a)), self.maps(self.prepare(b)))


class FeatureDistance(nn.Module):
    """The distance mean_l mean_hw sum_c (x_lc - y_lc)^2 of unit-length features x_l, y_l of layer l, in [0, 4].

    As LPIPS without its learned weights of channels, and averaged over layers. At each place it is 2 - 2 cos of the two
    features. The network is frozen and in eval mode.

    Images are kept at their own size, but for sides below `LEAST_SIDE`: then they are enlarged bilinearly, with their
    aspect ratio, until the shorter side has that many pixels. The last map of a network that divides by 32 has one
    place for an image of 28 pixels. Measured on Fashion-MNIST (1,500 images, 500 tested), the five nearest neighbours
    in the mean of EfficientNet-Lite0's last map state the class of 75 % at 28 pixels, 82 % at 56 and 83 % at 112.

    Args:
        maps: a trained network from standardised images (B, 3, H, W) to feature maps (B, C_l, h_l, w_l).
        size: height and width to which all images are resized; None: as above.
        mean, std: one number per channel, by which images in [0, 1] are standardised.
    """

    def __init__(
        self,
        maps: nn.Module,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.maps, self.size = maps, size
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeatureDistance:
        """As `nn.Module.train`, but it stays in eval mode."""
        return super().train(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0, 1] -> the input (B, 3, H', W') of the network."""
        height, width = images.shape[-2:]
        scale = max(1.0, LEAST_SIDE / min(height, width))
        size = self.size or (round(height * scale), round(width * scale))
        if (height, width) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return (images - self.mean) / self.std  # broadcast: a grey channel is repeated

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance (B,) >= 0 of pairs of images (B, 1 or 3, H, W) in [0, 1]."""
        layers = []
        for x, y in zip(self.maps(self.prepare(a)), self.maps(self.prepare(b))):
            x, y = (each.float() / (each.float().norm(dim=1, keepdim=True) + 1e-10) for each in (x, y))
            layers.append((x - y).square().sum(1).mean((1, 2)))
        return torch.stack(layers).mean(0)


class PerceptualLoss:
    """The weighted mean distances of images and reconstructions.

    It is not an `nn.Module`, so that its frozen networks stay out of state dicts, optimizers and averages.

    Args:
        features: LPIPS or a `FeatureDistance`; needed if `config.weight` > 0.
        logits: `LogitsDistance`; needed if `config.logits` > 0.
    """

    def __init__(
        self, config: PerceptualConfig, features: Distance | None = None, logits: Distance | None = None
    ) -> None:
        self.config = config
        self.networks: dict[str, Distance] = {}
        for name, weight, network in (
            ("loss_perceptual", config.weight, features),
            ("loss_logits", config.logits, logits),
        ):
            if weight > 0:
                assert network is not None, f"{name}: expected a network, got none"
                self.networks[name] = network
        self._device: torch.device | None = None

    def terms(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """The scalars "loss_perceptual" and "loss_logits", if their weights are above 0.

        Args:
            real, fake: images and reconstructions (B, C, H, W) in [0, 1].
            step: counted from 1, for the warm-up.
        """
        if self._device != real.device:
            for network in self.networks.values():
                if isinstance(network, nn.Module):
                    network.to(real.device)
            self._device = real.device
        ramp = linear_ramp(step, self.config.warmup)
        weights = {"loss_perceptual": self.config.weight * ramp, "loss_logits": self.config.logits}
        return {name: weights[name] * network(real, fake).mean() for name, network in self.networks.items()}

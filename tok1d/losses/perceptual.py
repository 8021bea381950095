"""LPIPS, a distance of images in the features of VGG16 with weights that fit human judgements (arXiv 1801.03924), and
the perceptual loss of tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.losses.adversarial import linear_ramp

WIDTHS = (64, 128, 256, 512, 512)  # channels of the stages of VGG16
CONVS = (2, 2, 3, 3, 3)  # convolutions of the stages
Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of images (B, C, H, W) in [0, 1] -> (B,)
# Mean and standard deviation of images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


@dataclass
class PerceptualConfig:
    """The perceptual loss of reconstructions: LPIPS, and the difference of a classifier's logits."""

    weight: float = option(0.0, "weight of LPIPS; 0: without (MAETok: 1)", ge=0)
    warmup: int = option(0, "steps over which the weight of LPIPS grows linearly from 0 (SoftVQ: 10000)", ge=0)
    vgg: str | None = option(
        None, "file with torchvision's weights of VGG16; null: torchvision's download", path="path"
    )
    heads: str | None = option(
        None,
        "file with the linear heads (vgg.pth of the lpips package); null: those of an installed lpips package",
        path="path",
    )
    logits: float = option(
        0.0, "weight of the squared difference of a classifier's logits; 0: without (TiTok: 0.1)", ge=0
    )
    classifier: str = option("convnext_small.fb_in1k", "timm name of that classifier")
    classifier_weights: str | None = option(None, "file with its weights; null: timm's download", path="path")

    @property
    def used(self) -> bool:
        """Whether any of its terms has a weight above 0."""
        return self.weight > 0 or self.logits > 0


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


class PerceptualLoss:
    """The weighted mean distances of images and reconstructions.

    It is not an `nn.Module`, so that its frozen networks stay out of state dicts, optimizers and averages.

    Args:
        lpips: LPIPS; needed if `config.weight` > 0.
        logits: `LogitsDistance`; needed if `config.logits` > 0.
    """

    def __init__(self, config: PerceptualConfig, lpips: Distance | None = None, logits: Distance | None = None) -> None:
        self.config = config
        self.networks: dict[str, Distance] = {}
        for name, weight, network in (
            ("loss_perceptual", config.weight, lpips),
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

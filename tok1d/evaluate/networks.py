"""A small image classifier whose features and logits measure reconstructions and samples."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError, DataError
from tok1d.evaluate.metrics import accuracy
from tok1d.nn.roles import CLASS_LOGITS, PIXELS_IN, Roles


@dataclass
class CNNConfig:
    """A convolutional classifier of three stages with `width`, 2 `width` and 4 `width` channels."""

    name: str = option("cnn", help="model name")
    num_classes: int = option(10, help="number of classes", ge=2)
    channels: int = option(1, help="image channels", ge=1)
    image_size: int = option(28, help="height and width of the images in pixels", ge=8)
    width: int = option(16, help="channels of the first stage, a multiple of 4", ge=4)
    features: int = option(128, help="length of the feature vector before the last layer", ge=1)
    dropout: float = option(0.2, help="share of features dropped in training", ge=0.0, lt=1.0)
    label_smoothing: float = option(0.05, help="share of the target spread over all classes", ge=0.0, lt=1.0)

    def check(self) -> None:
        """Raise ConfigError on a width that the four normalisation groups do not divide."""
        if self.width % 4:
            raise ConfigError(f"width: expected a multiple of 4, got {self.width}")


def _conv(channels_in: int, channels_out: int) -> nn.Sequential:
    # Group instead of batch normalisation: without running statistics, averaged (EMA) and half-precision weights need
    # no recalibration, and an image's features do not depend on its batch.
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.GroupNorm(4, channels_out),
        nn.ReLU(),
    )


class CNN(nn.Module):
    """Small classifier of images `(B, C, H, W)` in [0, 1]; `fd@` is measured on its features before the last layer."""

    roles: ClassVar[Roles] = {"stem": (PIXELS_IN,), "head": (CLASS_LOGITS,)}

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
        self.trunk = nn.Sequential(
            nn.MaxPool2d(2),  # before the normalisation, which is then four times cheaper
            nn.GroupNorm(4, width),
            nn.ReLU(),
            _conv(width, 2 * width),
            _conv(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _conv(2 * width, 4 * width),
            _conv(4 * width, 4 * width),
            nn.MaxPool2d(2),
        )
        self.project = nn.Linear(4 * width * (config.image_size // 8) ** 2, config.features)
        self.head = nn.Linear(config.features, config.num_classes)
        self.apply(_init)
        # Small initial logits: the loss begins near log(num_classes).
        nn.init.normal_(self.head.weight, std=0.01)

    def features(self, images: Tensor) -> Tensor:
        """Features `(B, F)` >= 0 after the last nonlinearity; raises DataError on images of another shape."""
        size = self.config.image_size
        expected = (self.config.channels, size, size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise DataError(
                f"the classifier expects images (B, {expected[0]}, {size}, {size}), got "
                f"{tuple(images.shape)}; resize or convert them, or use a classifier made for them"
            )
        # Channels-last maps are about 20% faster on a CPU; the weights keep the layout that safetensors stores.
        maps = self.stem(2 * images - 1).contiguous(memory_format=torch.channels_last)
        return F.relu(self.project(self.trunk(maps).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)` in [0, 1]."""
        features = F.dropout(self.features(images), self.config.dropout, self.training)
        return self.head(features)

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        """Cross-entropy "loss" of images `(B, C, H, W)` and labels `(B,)`, and "accuracy" without gradient."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return {"loss": loss, "accuracy": accuracy(logits, labels)}


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Most likely class `(B,)` int64 of each image `(B, C, H, W)` in [0, 1], without gradient."""
    with torch.inference_mode():
        return network(images).argmax(dim=-1)

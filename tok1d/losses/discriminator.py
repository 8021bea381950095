"""Discriminators of real and reconstructed images: images (B, C, H, W) in [-1, 1] -> logits (B, ...)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD
from tok1d.nn.block import Mlp
from tok1d.nn.embed import PatchEmbed
from tok1d.nn.vit import ViT, ViTShape

FIRST_DINO = ".dino"  # the end of timm's names of DINO's first version

GROUPS = 32  # groups of the normalisations of BlurPatchDiscriminator
POOL = 16  # rows and columns of the logits of BlurPatchDiscriminator


@dataclass
class DinoConfig:
    """A frozen DINO vision transformer with learned heads at five depths (StyleGAN-T; MAETok, section 4.1).

    MAETok's release has DINO's ViT-S/16, its table 7 states DINOv2-S: backbone=vit_small_patch14_dinov2.lvd142m.
    """

    name: str = option("dino", "which discriminator: dino, patch or blur_patch")
    backbone: str = option(
        "vit_small_patch16_224.dino",
        "timm name of the frozen vision transformer, such as vit_small_patch14_dinov2.lvd142m for DINOv2-S",
    )
    weights: str | None = option(
        None,
        "file with its weights, in timm's or DINOv2's layout; null: timm's download; random: random weights, to "
        "measure costs",
        path="path",
    )
    gelu: Literal["tanh", "exact"] | None = option(
        None,
        "form of the backbone's GELU; null: tanh for DINO's first version, as in MAETok's release, and for others "
        "exact, with which all of them were trained",
    )
    image_size: int = option(224, "side of its input images, in pixels; other images are cropped or resized", ge=1)

    @property
    def tanh(self) -> bool:
        """Whether the backbone's GELU has the tanh form."""
        return self.backbone.endswith(FIRST_DINO) if self.gelu is None else self.gelu == "tanh"


@dataclass
class PatchConfig:
    """PatchGAN: strided convolutions with batch normalisation (pix2pix, arXiv 1611.07004)."""

    name: str = option("patch", "which discriminator: dino, patch or blur_patch")
    width: int = option(64, "channels of the first layer; they double up to 8 times that", ge=1)
    layers: int = option(3, "strided layers, each of which halves the resolution", ge=1)


@dataclass
class BlurPatchConfig:
    """PatchGAN with blurred downsampling and group normalisation, 16x16 logits (MaskBit, TA-TiTok)."""

    name: str = option("blur_patch", "which discriminator: dino, patch or blur_patch")
    width: int = option(128, "channels of the first layer, a multiple of 32; they double at each stage", ge=32)
    stages: int = option(3, "stages, each of which halves the resolution", ge=1)

    def check(self) -> None:
        """Raise ConfigError on a width that is no multiple of the normalisation groups."""
        if self.width % GROUPS:
            raise ConfigError(f"width: expected a multiple of {GROUPS}, got {self.width}")


DiscriminatorConfig = DinoConfig | PatchConfig | BlurPatchConfig


class SpectralConv1d(nn.Conv1d):
    """A circular convolution whose weight is divided by its largest singular value (arXiv 1802.05957).

    The singular vectors are buffers, updated by one power iteration in every forward pass in train mode.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel_size, padding=kernel_size // 2, padding_mode="circular")
        self.register_buffer("u", F.normalize(torch.randn(channels_out), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(channels_in * kernel_size), dim=0))
        self.u: Tensor
        self.v: Tensor
        for _ in range(15):  # the first use may be in eval mode
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> tuple[Tensor, Tensor]:
        """One power iteration; returns the left and right singular vectors."""
        matrix = self.weight.flatten(1)
        v = F.normalize(matrix.T @ self.u, dim=0, eps=1e-12)
        u = F.normalize(matrix @ v, dim=0, eps=1e-12)
        self.u.copy_(u)
        self.v.copy_(v)
        return u, v

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, channels_out, N)."""
        with torch.autocast(x.device.type, enabled=False):
            # Copies, because the buffers may change before the backward pass.
            u, v = self.iterate() if self.training else (self.u.clone(), self.v.clone())
            weight = self.weight / torch.dot(u, self.weight.flatten(1) @ v)
        return self._conv_forward(x, weight, self.bias)


class _NormedConv(nn.Module):
    """Spectrally normalised convolution, batch normalisation over images and positions, leaky ReLU."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = SpectralConv1d(dim, dim, kernel_size)
        self.norm = nn.BatchNorm1d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class DinoHead(nn.Module):
    """Patch features (B, D, N) -> logits (B, N): a pointwise layer, a residual layer over 9 patches, a linear layer."""

    def __init__(self, dim: int, kernel_size: int = 9) -> None:
        super().__init__()
        self.point, self.wide = _NormedConv(dim, 1), _NormedConv(dim, kernel_size)
        self.out = SpectralConv1d(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(x)
        return self.out((self.wide(x) + x) / math.sqrt(2))[:, 0]


class DinoTrunk(nn.Module):
    """A plain vision transformer with a class token that returns its states after chosen blocks.

    Args:
        side: rows and columns of its position table (DINO's ViT-S/16: 14, DINOv2's ViT-S/14: 37).
        registers: tokens after the class token; the position table then has no row for the class token.
        layer_scale: see `ViTShape`.
        tanh: whether its GELU has the tanh form, as in the discriminator of MAETok's release.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        patch: int,
        side: int,
        registers: int = 0,
        layer_scale: float | None = None,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch, 3, dim)
        self.vit = ViT(ViTShape(dim, depth, heads, side, registers=registers, layer_scale=layer_scale))
        for module in self.vit.modules():
            if isinstance(module, Mlp):
                module.approximate = "tanh" if tanh else "none"
        self.dim, self.depth = dim, depth

    def forward(self, images: Tensor, depths: list[int]) -> list[Tensor]:
        """Standardised images (B, 3, H, W) -> sums (B, dim, N) of patch and class token states, one for each depth.

        Args:
            depths: numbers of blocks, ascending; 0: the input of the first block.
        """
        patch = self.patch_embed.patch
        x = self.vit.embed(self.patch_embed(images), (images.shape[-2] // patch, images.shape[-1] // patch))
        found = []
        for depth in range(depths[-1] + 1):
            x = self.vit.blocks[depth - 1](x) if depth else x
            if depth in depths:
                found.append((x[:, self.vit.prefix :] + x[:, :1]).transpose(1, 2))
        return found


class DinoDiscriminator(nn.Module):
    """Heads on the states of a frozen trunk, by default before its first block and after each quarter of its blocks.

    The trunk is not a submodule: it stays out of state dicts, optimizers and averages, and is always in eval mode.

    Args:
        image_size: side of the trunk's input images, in pixels. In train mode larger images are cropped at random with
            probability 1/2. Otherwise they are averaged down; smaller ones are resized bicubically.
        depths: numbers of blocks before each head, ascending; default: 0 and the quarters (DINO: 0, 3, 6, 9, 12).
        kernel_size: patches that the residual layer of a head covers.
    """

    def __init__(
        self, trunk: DinoTrunk, *, image_size: int = 224, depths: list[int] | None = None, kernel_size: int = 9
    ) -> None:
        super().__init__()
        self._trunk = (trunk.eval().requires_grad_(False),)  # in a tuple, so that it is not registered as a submodule
        self.image_size = image_size
        self.depths = depths or sorted({trunk.depth * quarter // 4 for quarter in range(5)})
        self.heads = nn.ModuleList(DinoHead(trunk.dim, kernel_size) for _ in self.depths)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def trunk(self) -> DinoTrunk:
        return self._trunk[0]

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, depths * N). `generator`: random numbers of crops, on the CPU; default: the global generator."""
        if self.trunk.patch_embed.proj.weight.device != images.device:
            self.trunk.to(images.device)  # `to` does not move the trunk
        states = self.trunk(self.prepare(images, generator), self.depths)
        return torch.cat([head(state) for head, state in zip(self.heads, states)], dim=1)

    def prepare(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] -> the standardised input (B, 3, S, S) of the trunk."""
        size, (height, width) = self.image_size, images.shape[-2:]
        x = ((images + 1) / 2 - self.mean) / self.std  # broadcast: a grey channel is repeated
        if height == width == size:
            return x
        if self.training and min(height, width) > size and torch.rand((), generator=generator) < 0.5:
            top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for side in (height, width))
            return x[..., top : top + size, left : left + size]
        return F.interpolate(x, size=(size, size), mode="area" if height > size else "bicubic")


class PatchDiscriminator(nn.Module):
    """4x4 convolutions, `layers` strided and two more; logits (B, 1, h, w) of overlapping patches."""

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels, *[width * min(2**i, 8) for i in range(layers + 1)], 1]
        parts: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            first, last = i == 0, i == layers + 1
            parts.append(nn.Conv2d(a, b, 4, stride=2 if i < layers else 1, padding=1, bias=first or last))
            parts += [] if last else [nn.LeakyReLU(0.2)] if first else [nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts)
        for part in self.layers:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, mean=1.0, std=0.02)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits; `generator` is not used."""
        return self.layers(images)


class _Blur(nn.Module):
    """Halve the resolution with the low-pass kernel (1, 3, 3, 1) / 8 along both axes (arXiv 1904.11486)."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(row, row), persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.to(x.dtype).expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


class BlurPatchDiscriminator(nn.Module):
    """A 5x5 convolution, stages of a 3x3 convolution and blurred downsampling, pooled to logits (B, 1, 16, 16)."""

    def __init__(self, channels: int, width: int = 128, stages: int = 3) -> None:
        super().__init__()
        widths = [width, *[width * 2**i for i in range(stages)]]
        self.conv_in = nn.Conv2d(channels, width, 5, padding=2)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, b) for b in widths[1:])
        self.blur = _Blur()
        self.point = nn.Conv2d(widths[-1], widths[-1], 1)
        self.out = nn.Conv2d(widths[-1], 1, 5, padding=2)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits; `generator` is not used."""
        x = F.leaky_relu(self.conv_in(images), 0.1)
        for conv, norm in zip(self.convs, self.norms):
            x = F.leaky_relu(norm(self.blur(conv(x))), 0.1)
        x = F.adaptive_max_pool2d(x, POOL)
        return self.out(F.leaky_relu(self.point(x), 0.1))

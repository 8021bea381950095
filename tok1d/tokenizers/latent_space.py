"""The space of a diffusion decoder: pixels, or the latents of a frozen KL autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.text import show
from tok1d.errors import ConfigError, WeightsError

# As `latents.path`: the autoencoder is stored in the folder of this name inside the model folder.
EMBEDDED = "autoencoder"
# Images or latents in one forward pass of an autoencoder. At 256 px an activation of 128 channels has 34 MB per image.
CHUNK = 32


@dataclass
class LatentConfig:
    """The space of a diffusion decoder."""

    space: Literal["pixels", "autoencoder"] = option("pixels", "pixels, or latents of a frozen autoencoder")
    path: str = option(
        "",
        "autoencoder: a diffusers folder, a hub name, MAR's kl16.ckpt, or 'autoencoder': stored in the model folder",
        path="path",
    )
    channels: int | None = option(None, "autoencoder: channels of its latents (KL-16: 16, SD-VAE: 4)", ge=1)
    factor: int | None = option(
        None, "autoencoder: pixels per latent position along each axis (KL-16: 16, SD-VAE: 8)", ge=1
    )
    sample: bool = option(
        True, "train on samples of the autoencoder's posterior, as the paper does; false: on its mean"
    )

    def check(self) -> None:
        """Raise ConfigError on missing fields of an autoencoder, or on fields that space=pixels does not use."""
        for key in ("path", "channels", "factor"):
            value = getattr(self, key)
            if self.space == "autoencoder" and not value:
                raise ConfigError(f"{key}: expected a value with space=autoencoder, got {show(value)}")
            if self.space == "pixels" and value:
                raise ConfigError(
                    f"{key}: expected null without space=autoencoder, got {show(value)}; set that or remove {key}"
                )


class LatentSpace(Protocol):
    """A fixed map between images in [0, 1] and the latents that a decoder denoises."""

    channels: int
    factor: int  # pixels per latent position along each axis

    def encode(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> latents (B, channels, H / factor, W / factor).

        Args:
            noise: standard normal, of the latents' shape, if latents are sampled; default: from `generator`.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, C, H, W), nominally in [0, 1], not clamped."""
        ...


def latent_space(config: LatentConfig, image_channels: int) -> LatentSpace:
    """The space of a configuration. An autoencoder's weights are read at first use."""
    return Pixels(image_channels) if config.space == "pixels" else Autoencoder(config, image_channels)


class Posteriors(Protocol):
    """The posterior that a network returns."""

    mean: Tensor
    logvar: Tensor


class Encoded(Protocol):
    """The result of `AutoencoderKL.encode`."""

    latent_dist: Posteriors


class Decoded(Protocol):
    """The result of `AutoencoderKL.decode`."""

    sample: Tensor


class AutoencoderKL(Protocol):
    """The part of diffusers' AutoencoderKL that is used here."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, x: Tensor) -> Encoded: ...

    def decode(self, z: Tensor) -> Decoded: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...

    def to(self, device: torch.device) -> Self: ...

    def save_pretrained(self, save_directory: Path) -> None: ...


class Pixels(nn.Module):
    """The space of pixels: images, scaled to [-1, 1]."""

    factor = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def encode(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images in [0, 1] -> pixels in [-1, 1]; nothing is sampled."""
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> images in [0, 1]."""
        return (latents + 1) / 2


class Autoencoder:
    """Scaled latents of a frozen diffusers AutoencoderKL (Semanticist, section 5.1: MAR's KL-16).

    It is not a module, so the network stays out of the model's parameters, state dict, averages and checkpoints, and is
    always in eval mode. It is read at first use and moved to the device of its inputs. Latents are scaled and shifted
    by the values in the network's config: `scaling_factor`, and `shift_factor` or, per channel, `latents_mean` and
    `latents_std`.
    """

    def __init__(self, config: LatentConfig, image_channels: int = 3) -> None:
        assert config.channels and config.factor, "LatentConfig.check"
        self.config = config
        self.channels, self.factor, self.image_channels = config.channels, config.factor, image_channels
        self.base: Path | None = None  # the model folder, in which relative paths are searched first
        # Reads the network at a path; set by zoo.store.build_model, because models do not read weights themselves.
        self.reader: Callable[[str, Path | None], AutoencoderKL] | None = None
        self._network: AutoencoderKL | None = None
        self._stand_in = False

    def load(self) -> AutoencoderKL:
        """The network; the first call reads it from disk or hub.

        Raises:
            WeightsError: it cannot be read, or its latents or images have other shapes than the configuration's.
        """
        if self._network is not None:
            return self._network
        if self.reader is None:
            raise WeightsError(
                f"autoencoder {self.config.path}: expected a network, got none; build the model by tok1d.load or "
                "tok1d.zoo.store.build_model, or call latent_space.use(network)"
            )
        # Reading must not advance the global random generator, and must not create inference tensors.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            self.use(self.reader(self.config.path, self.base))
        assert self._network is not None
        return self._network

    def use(self, network: AutoencoderKL | nn.Module) -> None:
        """Use this network and freeze it; raises WeightsError as `load`."""
        network = cast(AutoencoderKL, network)
        config = network.config
        channels, factor = geometry(config)
        for key, expected, found in (
            ("latents.channels", self.channels, channels),
            ("latents.factor", self.factor, factor),
            ("channels", self.image_channels, config["in_channels"]),
            ("channels", self.image_channels, config["out_channels"]),
        ):
            if found != expected:
                raise WeightsError(
                    f"autoencoder {self.config.path}: expected {key}={expected} as in the model's configuration, "
                    f"got {found}; set {key}={found} or choose another latents.path"
                )
        self._network = network.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the network as a diffusers folder; raises WeightsError as `load`."""
        self.load().save_pretrained(folder)

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, in [-30, 20], of unscaled latents (B, channels, H / factor, W / factor)."""
        network = self._on(images.device)
        posteriors = [network.encode(part * 2 - 1).latent_dist for part in images.split(CHUNK)]
        mean, logvar = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "logvar"))
        return mean.to(images.dtype), logvar.to(images.dtype)

    @torch.no_grad()
    def encode(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> scaled latents: a posterior sample, or the mean without `config.sample`.

        Args:
            noise: standard normal numbers of the latents' shape; default: from `generator` or the global generator.
        """
        if self._stand_in:
            batch, _, height, width = images.shape
            return images.new_empty(batch, self.channels, height // self.factor, width // self.factor)
        latents, logvar = self.posterior(images)
        if self.config.sample:
            if noise is None:
                noise = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
            latents = latents + (0.5 * logvar).exp() * noise
        scale, shift = self._scale_shift(latents)
        return (latents - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (B, C, H, W), nominally in [0, 1], not clamped."""
        network = self._on(latents.device)
        scale, shift = self._scale_shift(latents)
        parts = [network.decode(part / scale + shift).sample for part in latents.split(CHUNK)]
        return (torch.cat(parts).to(latents.dtype) + 1) / 2

    def use_stand_in(self) -> None:
        """From now on `encode` returns empty latents without the network, for counting costs."""
        self._stand_in = True

    def _on(self, device: torch.device) -> AutoencoderKL:
        network = self.load()
        if network.device != device:
            with torch.inference_mode(False):
                network.to(device)
        return network

    def _scale_shift(self, latents: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Numbers, or tensors (channels, 1, 1) of the type and on the device of `latents`."""
        config = self.load().config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config["scaling_factor"], config.get("shift_factor") or 0.0
        shift, spread = (latents.new_tensor(each).view(-1, 1, 1) for each in (mean, std))
        return config["scaling_factor"] / spread, shift


def geometry(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of the latents and pixels per latent position of an AutoencoderKL's config."""
    # Old configs lack these keys: diffusers' defaults.
    return config.get("latent_channels", 4), 2 ** (len(config.get("block_out_channels", (64,))) - 1)

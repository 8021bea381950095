"""Where a diffusion decoder paints: the images themselves, or the latents of a frozen KL autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.config.text import show
from tok1d.errors import ConfigError, WeightsError

# As `latents.path`: the folder of this name inside the model's own folder, which travels with the model.
EMBEDDED = "autoencoder"
# Images (or latents) that go through an autoencoder at a time: at 256 px and 128 channels 34 MB each per activation.
CHUNK = 32


@dataclass
class LatentConfig:
    """The space that a diffusion decoder denoises in."""

    space: Literal["pixels", "autoencoder"] = option("pixels", "images themselves, or a frozen autoencoder's latents")
    path: str = option(
        "", "autoencoder: a diffusers folder, a hub name, MAR's kl16.ckpt, or 'autoencoder' in the model's own folder"
    )
    channels: int | None = option(None, "channels of its latents (KL-16: 16, SD-VAE: 4)", ge=1)
    factor: int | None = option(None, "pixels per latent position along each axis (KL-16: 16, SD-VAE: 8)", ge=1)
    sample: bool = option(True, "draw latents from the autoencoder's posterior, as the paper does; off takes its mean")

    def check(self) -> None:
        """An autoencoder needs all of its fields, pixels none."""
        for key in ("path", "channels", "factor"):
            value = getattr(self, key)
            if self.space == "autoencoder" and not value:
                raise ConfigError(f"{key}: space=autoencoder needs it, got {show(value)}")
            if self.space == "pixels" and value:
                raise ConfigError(f"{key}: only space=autoencoder reads it, got {show(value)}; set that or drop it")


class LatentSpace(Protocol):
    """A fixed map between images in [0, 1] and the latents a decoder denoises."""

    channels: int
    factor: int  # pixels per latent position along each axis

    def encode(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, C, H, W) in [0, 1] -> latents (B, channels, H / factor, W / factor); noise for what draws latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, roughly in [0, 1], not clamped."""
        ...


def latent_space(config: LatentConfig, image_channels: int) -> LatentSpace:
    """The space a configuration describes; an autoencoder's weights are not read yet."""
    return Pixels(image_channels) if config.space == "pixels" else Autoencoder(config, image_channels)


class Pixels(nn.Module):
    """The images themselves, moved to [-1, 1]."""

    factor = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def encode(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return images * 2 - 1  # nothing is drawn

    def decode(self, latents: Tensor) -> Tensor:
        return (latents + 1) / 2


class Autoencoder:
    """Scaled latents of a frozen diffusers AutoencoderKL (Semanticist paper, section 4: MAR's KL-16).

    Not a module, so the network is no part of the model that paints in it: absent from its parameters, state dict,
    averages and checkpoints, and always in eval mode. It is read at first use and follows its inputs' device.
    Scale and shift of the latents are those of the network's own config.
    """

    def __init__(self, config: LatentConfig, image_channels: int = 3) -> None:
        assert config.channels and config.factor, "LatentConfig.check() sees to it"
        self.config = config
        self.channels, self.factor, self.image_channels = config.channels, config.factor, image_channels
        self.base: Path | None = None  # the model's folder, where relative paths are looked for first
        # Reads the network of a path; set by what builds the model (zoo/store.py), because models read no weights.
        self.reader: Callable[[str, Path | None], Any] | None = None
        self._network: Any = None

    def load(self) -> Any:
        """The AutoencoderKL, read now if it was not yet.

        Raises:
            WeightsError: nothing there, no AutoencoderKL, or another geometry than the configuration's.
        """
        if self._network is not None:
            return self._network
        if self.reader is None:
            raise WeightsError(
                f"autoencoder {self.config.path}: expected a network, got none; build the model by tok1d.load or "
                "tok1d.zoo.store.build_model, or call latent_space.use(network)"
            )
        # Reading must neither draw from the run's random numbers nor make tensors of inference mode.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            self.use(self.reader(self.config.path, self.base))
        return self._network

    def use(self, network: Any) -> None:
        """Take this AutoencoderKL as the network, frozen; raises WeightsError as `load` does."""
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
                    f"autoencoder {self.config.path}: the model's {key} is {expected}, the autoencoder has {found}; "
                    "set it so or choose another latents.path"
                )
        self._network = network.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the network as a diffusers folder."""
        self.load().save_pretrained(folder)

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance in [-30, 20] of the unscaled latents, (B, channels, H / factor, W / factor) each."""
        network = self._on(images.device)
        posteriors = [network.encode(part * 2 - 1).latent_dist for part in images.split(CHUNK)]
        mean, logvar = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "logvar"))
        return mean.to(images.dtype), logvar.to(images.dtype)

    @torch.no_grad()
    def encode(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scaled latents of images in [0, 1]: a posterior sample, or the mean where the configuration says so.

        Args:
            noise: standard normal, of the latents' shape; default: drawn from `generator` or the global RNG.
        """
        latents, logvar = self.posterior(images)
        if self.config.sample:
            if noise is None:
                noise = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
            latents = latents + (0.5 * logvar).exp() * noise
        scale, shift = self._scale_shift()
        return (latents - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images, roughly in [0, 1], not clamped."""
        network = self._on(latents.device)
        scale, shift = self._scale_shift()
        parts = [network.decode(part / scale + shift).sample for part in latents.split(CHUNK)]
        return (torch.cat(parts).to(latents.dtype) + 1) / 2

    def _on(self, device: torch.device) -> Any:
        network = self.load()
        if network.device != device:
            with torch.inference_mode(False):
                network.to(device)
        return network

    def _scale_shift(self) -> tuple[float, float]:
        config = self.load().config
        return config["scaling_factor"], config.get("shift_factor") or 0.0


def geometry(config: Any) -> tuple[int, int]:
    """Latent channels and pixels per latent position of an AutoencoderKL's config."""
    # Diffusers' own defaults, for the keys that old configs leave out.
    return config.get("latent_channels", 4), 2 ** (len(config.get("block_out_channels", (64,))) - 1)

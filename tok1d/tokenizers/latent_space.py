"""Where a diffusion decoder paints: the images themselves, or the latents of a frozen KL autoencoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tok1d.config import option
from tok1d.config_fields import show
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
                raise ConfigError(f"{key}: space=autoencoder needs it, received {show(value)}")
            if self.space == "pixels" and value:
                raise ConfigError(
                    f"{key}: only space=autoencoder reads it, received {show(value)}; set that or drop it"
                )


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
        self._network: Any = None

    def load(self) -> Any:
        """The AutoencoderKL, read now if it was not yet.

        Raises:
            WeightsError: nothing there, no AutoencoderKL, or another geometry than the configuration's.
        """
        if self._network is None:
            # Reading must neither draw from the run's random numbers nor make tensors of inference mode.
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                self.use(read_network(self.config.path, self.base))
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


def read_network(path: str, base: Path | None = None) -> Any:
    """An AutoencoderKL from a diffusers folder, a model folder with one inside, a hub name or a file of MAR's.

    Args:
        base: relative paths are looked for from here first.

    Raises:
        WeightsError: nothing there, no AutoencoderKL, or weights that do not fit its config.
    """
    found = locate(path, base)
    if found is not None and found.is_file():
        from tok1d.zoo.adapters.autoencoder import load_mar

        return load_mar(found)
    read_config(path, base)
    cls = autoencoder_class()
    try:
        network, info = cls.from_pretrained(str(found or path), output_loading_info=True)
    except Exception as error:
        raise WeightsError(f"autoencoder {path}: its weights cannot be read ({_reason(error)})") from None
    for kind in ("missing", "unexpected"):
        if info[f"{kind}_keys"]:
            names = sorted(info[f"{kind}_keys"])
            raise WeightsError(f"autoencoder {path}: {len(names)} {kind} weights such as {names[0]}; fetch it again")
    return network


def read_config(path: str, base: Path | None = None) -> dict[str, Any]:
    """The diffusers config of a folder or hub name, without the weights; raises WeightsError as `read_network`."""
    found = locate(path, base)
    try:
        file = _hub_config(path) if found is None else found / "config.json"
        config = json.loads(file.read_text())
    except Exception as error:
        where = "not on this machine, and the hub gives none" if found is None else "no diffusers folder"
        raise WeightsError(
            f"autoencoder {path}: {where} ({_reason(error)}); expected a folder or hub name of an AutoencoderKL"
        ) from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderKL":
        raise WeightsError(f"autoencoder {path}: expected a diffusers AutoencoderKL, its config.json is of {kind}")
    return config


def locate(path: str, base: Path | None = None) -> Path | None:
    """The file or diffusers folder at a path, or None for a hub name; raises WeightsError where it can be neither."""
    for place in ([base / path] if base else []) + [Path(path)]:
        if place.exists():
            inner = place / EMBEDDED
            return inner if inner.is_dir() else place
    is_file_name = Path(path).suffix in (".ckpt", ".safetensors", ".bin", ".pt", ".pth", ".pkl")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")) and not is_file_name:
        return None
    raise WeightsError(
        f"autoencoder {path}: no such file or folder; set latents.path to a diffusers folder, a hub name such as "
        "xwen99/mar-vae-kl16, or kl16.ckpt"
    )


def _hub_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "config.json"))


def autoencoder_class() -> Any:
    """Diffusers' AutoencoderKL, imported now; raises WeightsError without diffusers."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise WeightsError(
            f"an autoencoder needs diffusers ({_reason(error)}): pip install 'tok1d[diffusers]'"
        ) from None
    return AutoencoderKL


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__

"""VA-VAE (arXiv 2501.01423), the autoencoder of LightningDiT: a KL autoencoder in the layout of latent diffusion, with
16 pixels per latent position and 32 channels (f16d32), trained with the features of a vision model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.zoo.adapters.autoencoder import build_network, from_mar
from tok1d.zoo.adapters.keymap import State, read_published

_TRAINING_ONLY = ("foundation_model.", "linear_proj.")  # the vision model, and the layer to its width


def load_vavae(path: str | Path, *, groups: int = 32, statistics: str | None = None) -> nn.Module:
    """VA-VAE from its published file, as an AutoencoderKL in eval mode, whose latents are standardised per channel.

    Args:
        groups: groups of every norm.
        statistics: file with "mean" and "std" of each channel of the latents (the release's latents_stats.pt); default:
            latents stay as they are.

    Raises:
        WeightsError: a damaged or wrong file, or statistics of another number of channels.
    """
    source = str(path)
    kept = {k: v for k, v in read_published(path).items() if not k.startswith(_TRAINING_ONLY)}
    network = build_network(from_mar(kept, source), groups=groups, scaling_factor=1.0, source=source)
    if statistics is not None:
        values = read_published(statistics)
        channels: int = network.config["latent_channels"]  # type: ignore[index, assignment]
        found = {f"latents_{key}": _per_channel(values, key, channels, statistics) for key in ("mean", "std")}
        network.register_to_config(**found)  # type: ignore[operator]
    return network


def _per_channel(values: State, key: str, channels: int, source: str) -> list[float]:
    """The finite numbers of a statistic, one for each channel."""
    value: Tensor | None = values.get(key)
    if value is None or value.numel() != channels:
        got = "none" if value is None else f"{value.numel()} numbers"
        raise WeightsError(f"{source}: expected {key} of {channels} latent channels, got {got}")
    if not torch.isfinite(value).all() or (key == "std" and not (value > 0).all()):
        raise WeightsError(f"{source}: expected finite statistics with std > 0, got others in {key}")
    return value.flatten().tolist()

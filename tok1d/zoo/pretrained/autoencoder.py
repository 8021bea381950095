"""Frozen KL autoencoders (diffusers' AutoencoderKL, MAR's KL-16): found, read and checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from tok1d.errors import WeightsError, reason_of
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder, LatentConfig, geometry
from tok1d.zoo.adapters.autoencoder import autoencoder_class, load_mar


def read_network(path: str, base: Path | None = None) -> Any:
    """An AutoencoderKL from a diffusers folder, a model folder with one inside, a hub name or a file of MAR's.

    Args:
        base: relative paths are looked for from here first.

    Raises:
        WeightsError: nothing there, no AutoencoderKL, or weights that do not fit its config.
    """
    found = locate(path, base)
    if found is not None and found.is_file():
        return load_mar(found)
    read_config(path, base)
    cls = autoencoder_class()
    try:
        network, info = cls.from_pretrained(str(found or path), output_loading_info=True)
    except Exception as error:
        raise WeightsError(f"autoencoder {path}: its weights cannot be read ({reason_of(error)})") from None
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
            f"autoencoder {path}: {where} ({reason_of(error)}); expected a folder or hub name of an AutoencoderKL"
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


def connect_autoencoder(model: nn.Module) -> None:
    """Let a model with an autoencoder's latent space read that network at first use."""
    space = getattr(model, "latent_space", None)
    if isinstance(space, Autoencoder):
        space.reader = read_network


# Latent channels -> the autoencoder of the published tokenizers, whose files do not hold it.
DEFAULTS = {16: "xwen99/mar-vae-kl16"}
# Latent channels -> pixels per latent position of the autoencoders in use: KL-16 and SD-VAE.
KNOWN_FACTORS = {16: 16, 4: 8}


def latents_of(autoencoder: str | None, channels: int, network: nn.Module | None = None) -> LatentConfig:
    """The latent space that a published decoder of so many channels denoises in.

    Args:
        autoencoder: path or hub name; None is pixels. A hub name that cannot be reached is taken at its word, with a
            message, where `KNOWN_FACTORS` has its channels.
        network: the autoencoder itself where it is at hand already.

    Raises:
        WeightsError: no autoencoder there.
    """
    if autoencoder is None:
        return LatentConfig()
    if network is not None:
        return LatentConfig("autoencoder", autoencoder, *geometry(network.config))
    found = locate(autoencoder)
    if found is not None:
        config = load_mar(found).config if found.is_file() else read_config(autoencoder)
        return LatentConfig("autoencoder", str(Path(autoencoder).resolve()), *geometry(config))
    try:
        return LatentConfig("autoencoder", autoencoder, *geometry(read_config(autoencoder)))
    except WeightsError as error:
        if channels not in KNOWN_FACTORS:
            raise
        factor = KNOWN_FACTORS[channels]
        print(f"{error}; taken for {channels} channels of {factor} pixels a side", file=sys.stderr)
        return LatentConfig("autoencoder", autoencoder, channels, factor)

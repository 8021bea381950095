"""Finding and reading frozen KL autoencoders: diffusers' AutoencoderKL, and MAR's KL-16."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from tok1d.errors import WeightsError, reason_of
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder, AutoencoderKL, LatentConfig, geometry
from tok1d.zoo.adapters.autoencoder import autoencoder_class, load_mar


def read_network(path: str, base: Path | None = None) -> AutoencoderKL:
    """The autoencoder of a diffusers folder, a model folder with one inside, a hub name, or a weight file of MAR.

    Args:
        base: folder in which relative paths are searched first.

    Raises:
        WeightsError: there is none, it is not an AutoencoderKL, or its weights do not fit its config.
    """
    found = locate(path, base)
    if found is not None and found.is_file():
        return cast(AutoencoderKL, load_mar(found))
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


def read_config(path: str, base: Path | None = None) -> Mapping[str, Any]:
    """The diffusers config of a folder or hub name, without weights; raises WeightsError as `read_network`."""
    found = locate(path, base)
    try:
        file = _hub_config(path) if found is None else found / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
    except Exception as error:
        where = "found neither on this machine nor on the hub" if found is None else "no diffusers folder"
        raise WeightsError(
            f"autoencoder {path}: {where} ({reason_of(error)}); expected a folder or hub name of an AutoencoderKL"
        ) from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderKL":
        raise WeightsError(f"autoencoder {path}: expected a diffusers AutoencoderKL, its config.json is of {kind}")
    return config


def locate(path: str, base: Path | None = None) -> Path | None:
    """The file or diffusers folder at a path, None for a hub name; raises WeightsError if there is neither."""
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
    """Make a model in the latent space of an autoencoder read that network at first use."""
    space = getattr(model, "latent_space", None)
    if isinstance(space, Autoencoder):
        space.reader = read_network


# Latent channels -> the autoencoder of published tokenizers, whose weight files do not contain it.
DEFAULTS = {16: "xwen99/mar-vae-kl16"}
# Latent channels -> pixels per latent position, of KL-16 and SD-VAE.
KNOWN_FACTORS = {16: 16, 4: 8}


def latents_of(autoencoder: str | None, channels: int, network: nn.Module | None = None) -> LatentConfig:
    """The latent space of a published decoder with that number of latent channels.

    Args:
        autoencoder: path or hub name; None: pixels. If the hub cannot be reached, the size comes from `KNOWN_FACTORS`,
            with a message on stderr.
        network: the autoencoder, if it is loaded already.

    Raises:
        WeightsError: there is no such autoencoder.
    """
    if autoencoder is None:
        return LatentConfig()
    if network is not None:
        return LatentConfig("autoencoder", autoencoder, *geometry(cast(AutoencoderKL, network).config))
    found = locate(autoencoder)
    if found is not None:
        config = cast(AutoencoderKL, load_mar(found)).config if found.is_file() else read_config(autoencoder)
        return LatentConfig("autoencoder", str(Path(autoencoder).resolve()), *geometry(config))
    try:
        return LatentConfig("autoencoder", autoencoder, *geometry(read_config(autoencoder)))
    except WeightsError as error:
        if channels not in KNOWN_FACTORS:
            raise
        factor = KNOWN_FACTORS[channels]
        print(
            f"{error}; assuming {factor} pixels per latent position, as known for {channels} channels", file=sys.stderr
        )
        return LatentConfig("autoencoder", autoencoder, channels, factor)

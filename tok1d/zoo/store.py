"""Models on disk: a folder with config.json, model.safetensors and a README.md card, and names for them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tok1d.config.fields import to_mapping
from tok1d.config.load import recipe_names
from tok1d.config.registry import MODEL_CONFIGS, build_model_config
from tok1d.errors import ConfigError, WeightsError
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.autoencoder import connect_autoencoder
from tok1d.zoo.weights import HasWeights, fingerprint, load_state, read_weights

BUNDLED = Path(__file__).parent / "bundled"
FORMAT = 1

# Configuration name -> the class in the configuration's own module.
CLASSES = {
    "semanticist": "Semanticist",
    "epsilon_llamagen": "EpsilonLlamaGen",
    "maetok": "MAETok",
    "smap": "SMAP",
    "card": "CARD",
    "titok": "TiTok",
    "titok_legacy": "LegacyTiTok",
    "sit": "SiT",
    "dit": "DiT",
    "lightningdit": "LightningDiT",
    "usit": "USiT",
    "llamagen": "LlamaGen",
    "maskgit": "MaskGIT",
    "cnn": "CNN",
}


def model_class(config: Any) -> type[nn.Module]:
    """The class of the model that a configuration (`SemanticistConfig`, ...) describes."""
    module, _ = MODEL_CONFIGS[config.name]
    return getattr(importlib.import_module(module), CLASSES[config.name])


def build_model(config: Any) -> nn.Module:
    """The model that a configuration describes, freshly initialised."""
    model = model_class(config)(config)
    connect_autoencoder(model)
    return model


def model_identity(model: HasWeights) -> str:
    """The fingerprint of a model's weights, and 12 hex digits of its configuration: what it computes, heads and all."""
    config = getattr(model, "config", None)
    settings = json.dumps(to_mapping(config), sort_keys=True, default=str) if is_dataclass(config) else repr(config)
    return f"{fingerprint(model)}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def save_model(model: nn.Module, folder: Path, card: Card, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder, whole or not at all; an existing model folder is replaced.

    An autoencoder that travels with the model (latents.path "autoencoder") becomes a folder inside.

    Args:
        dtype: floating-point weights are stored so; loading gives float32 again.

    Raises:
        WeightsError: it cannot be written (what was there stays), or something else than a model lies there.
    """
    from safetensors.torch import save_file

    config = getattr(model, "config")  # noqa: B009 (mypy knows nn.Module attributes only as tensors or modules)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    content = {"format": FORMAT, "model": to_mapping(config), "card": card.to_json()}
    with replacing(folder) as temporary:
        save_file(state, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(content, indent=1) + "\n")
        (temporary / "README.md").write_text(card.to_markdown(config.name))
        space = getattr(model, "latent_space", None)
        if isinstance(space, Autoencoder) and space.config.path == EMBEDDED:
            space.save(temporary / EMBEDDED)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write a model into, which takes the place of `folder` when all is written.

    Raises:
        WeightsError: as `save_model`.
    """
    from safetensors import SafetensorError

    folder = Path(folder).resolve()
    if folder.exists() and not (folder / "config.json").is_file() and not (folder.is_dir() and _is_empty(folder)):
        raise WeightsError(f"{folder}: holds something else than a model, so it is not replaced; choose another folder")
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"cannot write the model folder {folder}: {reason}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def bundled_names() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.relative_to(BUNDLED).as_posix() for path in BUNDLED.rglob("config.json"))


def resolve(name: str | Path, base: Path | None = None) -> Path:
    """The folder of a model: a path, a bundled name, or a hub name "owner/model" (downloaded).

    Args:
        base: relative paths are also looked for from here (how a generator names the tokenizer beside it).

    Raises:
        WeightsError: nothing of that name; the message lists the bundled ones.
    """
    text = str(name)
    for folder in ([base / text] if base else []) + [Path(text), BUNDLED / text]:
        if (folder / "config.json").is_file():
            return folder.resolve()
    if Path(text).suffix in (".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".bin"):
        raise WeightsError(f"{text}: expected a model folder; published weight files go through 'tok1d convert' first")
    if Path(text).exists():
        raise WeightsError(f"{text}: expected a model folder with config.json and model.safetensors, got none there")
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).parent.exists():
        return _download(text)
    if recipe := _trained_by(text):
        raise WeightsError(f"no model {text!r} yet: train it first (tok1d train {recipe}), or name another model")
    bundled = ", ".join(bundled_names()) or "none bundled"
    raise WeightsError(f"no model {text!r}: expected a model folder (a finished run's RUN/model) or one of {bundled}")


def _trained_by(name: str) -> str:
    """The recipe whose run would leave a model there, runs/RECIPE/model; "" for another name."""

    recipe = name.removeprefix("runs/").removesuffix("/model")
    return recipe if name == f"runs/{recipe}/model" and recipe in recipe_names() else ""


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise WeightsError(
            f"no model folder {name!r}, and the hub has none to give ({reason}); bundled: {', '.join(bundled_names())}"
        ) from None


def read_config(folder: Path) -> tuple[Any, Card]:
    """The model's configuration and its card from a model folder."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise WeightsError(f"{path}: written in format {content['format']}, this tok1d reads format {FORMAT}")
        return build_model_config(content["model"]), Card.from_json(content["card"])
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a tok1d model's config.json ({type(error).__name__}: {error})") from None


def load(name: str | Path, *, device: str | torch.device = "cpu", base: Path | None = None) -> Any:
    """A model ready to use (eval mode, float32) from a folder, a bundled name or a hub name.

    The model has `.card` (its record) and `.folder` beside its own methods.

    Raises:
        WeightsError: missing, truncated, unsafe or unfitting weights, in one line.
    """
    folder = resolve(name, base)
    config, card = read_config(folder)
    model = build_model(config)
    load_state(model, read_weights(folder / "model.safetensors"), str(folder))
    model.card = card  # type: ignore[assignment]
    model.folder = folder  # type: ignore[assignment]
    space = getattr(model, "latent_space", None)
    if isinstance(space, Autoencoder):
        space.base = folder
    return model.to(device).eval()


def load_pair(name: str | Path, *, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """A generator and the tokenizer whose tokens it makes.

    `name` is a generator, or a tokenizer whose card names the generator made for it (as the bundled one's does).

    Raises:
        WeightsError: no generator there, or the tokenizer found is not the one it was trained on.
    """
    folder = resolve(name)
    made_for_it = read_config(folder)[1].generator
    if made_for_it:
        folder = resolve(made_for_it, folder)
    generator = load(folder, device=device)
    if not hasattr(generator, "sample"):
        raise WeightsError(f"{name}: this is a {generator.config.name}; generate needs a generator's model folder")
    card = generator.card
    if not card.tokenizer:
        raise WeightsError(
            f"{folder}: names no tokenizer for its tokens; convert it with --tokenizer MODEL, or set card.tokenizer in "
            "its config.json"
        )
    tokenizer = load(card.tokenizer, device=device, base=folder)
    found = fingerprint(tokenizer)
    if card.tokenizer_fingerprint and found != card.tokenizer_fingerprint:
        raise WeightsError(
            f"{name}: trained on tokenizer {card.tokenizer_fingerprint}, but {card.tokenizer} is {found}; "
            "point it at the right one (config.json, card.tokenizer)"
        )
    return generator, tokenizer


def portable(name: str) -> str:
    """Bundled and hub names stay; a folder becomes an absolute path, so that the run can be used from anywhere."""
    return str(Path(name).resolve()) if Path(name).exists() else name

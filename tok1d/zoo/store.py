"""Models on disk: a folder with config.json, model.safetensors and a README.md card, and names for them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from tok1d.config.classes import set_class_names
from tok1d.config.fields import to_mapping
from tok1d.config.load import recipe_names
from tok1d.config.registry import MODELS, build_model_config
from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.files import as_path, encodable
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder
from tok1d.zoo.card import Card
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer
from tok1d.zoo.pretrained.autoencoder import connect_autoencoder
from tok1d.zoo.weights import HasWeights, fingerprint, load_state, read_weights

BUNDLED = Path(__file__).parent / "bundled"
FORMAT = 1  # of config.json
# All files of a model folder, and of an autoencoder's in the format of diffusers.
MODEL_FILES = {"config.json", "model.safetensors", "README.md", EMBEDDED, "diffusion_pytorch_model.safetensors"}


class ModelConfig(Protocol):
    """The configuration of a registered model."""

    @property
    def name(self) -> str:
        """The model's name in the registry."""
        ...


def model_class(config: ModelConfig) -> type[nn.Module]:
    """The class of the model that a configuration (`SemanticistConfig`, ...) describes."""
    return MODELS[config.name].model_class()


def build_model(config: ModelConfig) -> nn.Module:
    """The model that a configuration describes, newly initialised with torch's global random generator."""
    model = model_class(config)(config)
    connect_autoencoder(model)
    return model


def model_identity(model: HasWeights) -> str:
    """The fingerprint of a model's weights, and 12 hex digits of a hash of its configuration."""
    config: object = getattr(model, "config", None)
    settings = json.dumps(to_mapping(config), sort_keys=True, default=str) if is_dataclass(config) else repr(config)
    return f"{fingerprint(model)}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def save_model(model: nn.Module, folder: Path, card: Card, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder atomically; an existing model folder is replaced.

    An autoencoder that is stored with the model (latents.path "autoencoder") becomes a folder inside.

    Args:
        dtype: type in which floating-point weights are stored; loading converts them to float32.

    Raises:
        WeightsError: it cannot be written (the old folder is kept), or the folder exists and is not a model folder.
    """
    from safetensors.torch import save_file

    config = getattr(model, "config")  # noqa: B009 (for mypy, attributes of nn.Module are tensors or modules)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    content = {"format": FORMAT, "model": to_mapping(config), "card": card.to_json()}
    with replacing(folder) as temporary:
        save_file(state, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(encodable(card.to_markdown(config.name)), encoding="utf-8")
        space = getattr(model, "latent_space", None)
        if isinstance(space, Autoencoder) and space.config.path == EMBEDDED:
            space.save(temporary / EMBEDDED)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder to write a model into; it replaces `folder` when the block ends without an error.

    Raises:
        WeightsError: as `save_model`.
    """
    from safetensors import SafetensorError

    folder = Path(folder).resolve()
    if folder.exists() and not _is_replaceable(folder):
        raise WeightsError(
            f"{folder}: expected a model folder or no folder, got other files, which are kept; choose another folder"
        )
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
        raise WeightsError(f"cannot write the model folder {folder}: {reason_of(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_replaceable(folder: Path) -> bool:
    """Whether a path is an empty folder, or a folder with nothing but a model that tok1d wrote."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    own = {"format", "model", "card"} <= content.keys() or "_class_name" in content  # the latter of diffusers
    return own and names <= MODEL_FILES


def bundled_names() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.relative_to(BUNDLED).as_posix() for path in BUNDLED.rglob("config.json"))


def resolve(name: str | Path, base: Path | None = None) -> Path:
    """The folder of a model: a path, a bundled name, or a hub name "owner/model" (downloaded).

    Args:
        base: relative paths are first searched in this folder (a generator's card names its tokenizer that way).

    Raises:
        WeightsError: no model of that name; the message lists the bundled ones.
    """
    text = as_path(str(name))
    for folder in ([base / text] if base else []) + [Path(text), BUNDLED / text]:
        if (folder / "config.json").is_file():
            return folder.resolve()
    if Path(text).suffix in (".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".bin"):
        raise WeightsError(f"{text}: expected a model folder; published weight files go through 'tok1d convert' first")
    if Path(text).exists():
        raise WeightsError(f"{text}: expected a model folder with config.json and model.safetensors, got none there")
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).parent.exists():
        return _download(text)
    if recipe := _recipe_of(text):
        raise WeightsError(f"no model {text!r} yet: train it first (tok1d train {recipe}), or name another model")
    bundled = ", ".join(bundled_names()) or "none bundled"
    raise WeightsError(
        f"no model {encodable(text)!r}: expected a model folder (a finished run's RUN/model) or one of {bundled}"
    )


def _recipe_of(name: str) -> str:
    """The recipe whose run writes the model folder runs/RECIPE/model; "" for another name."""
    recipe = name.removeprefix("runs/").removesuffix("/model")
    return recipe if name == f"runs/{recipe}/model" and recipe in recipe_names() else ""


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except Exception as error:
        bundled = ", ".join(bundled_names())
        raise WeightsError(
            f"no model folder {name!r}, and none from the hub ({reason_of(error)}); bundled: {bundled}"
        ) from None


def read_config(folder: Path) -> tuple[Any, Card]:
    """The model's configuration and its card from a model folder; raises WeightsError if they are not there."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise WeightsError(f"{path}: written in format {content['format']}, this tok1d reads format {FORMAT}")
        return build_model_config(content["model"]), Card.from_json(content["card"])
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a tok1d model's config.json ({type(error).__name__}: {error})") from None


def load(name: str | Path, *, device: str | torch.device = "cpu", base: Path | None = None) -> Any:
    """A model in eval mode and float32 from a folder, a bundled name or a hub name.

    Besides its own methods the model has the attributes `card` (its record, a `Card`) and `folder`.

    Raises:
        WeightsError: missing, truncated, unsafe or mismatched weights, in one line.
    """
    folder = resolve(name, base)
    config, card = read_config(folder)
    model = build_model(config)
    load_state(model, read_weights(folder / "model.safetensors"), str(folder))
    model.card = card  # type: ignore[assignment]
    set_class_names(model, card.classes)
    model.folder = folder  # type: ignore[assignment]
    space = getattr(model, "latent_space", None)
    if isinstance(space, Autoencoder):
        space.base = folder
    return model.to(device).eval()


def load_pair(name: str | Path, *, device: str | torch.device = "cpu") -> tuple[LoadedGenerator, LoadedTokenizer]:
    """A generator and the tokenizer whose tokens it generates.

    Args:
        name: a generator, or a tokenizer whose card names a generator trained on it (as the bundled ones do).

    Raises:
        WeightsError: no generator of that name, or its tokenizer is not the one it was trained on.
    """
    folder = resolve(name)
    named = read_config(folder)[1].generator
    if named:
        folder = resolve(named, folder)
    generator = load(folder, device=device)
    if MODELS[generator.config.name].kind != "generator":
        raise WeightsError(f"{name}: expected the model folder of a generator, got a {generator.config.name}")
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
            f"{name}: trained on a tokenizer with fingerprint {card.tokenizer_fingerprint}, but {card.tokenizer} has "
            f"{found}; set card.tokenizer in its config.json to the right one"
        )
    return generator, tokenizer


def portable(name: str) -> str:
    """A model's name that is valid in any working directory: the absolute path of a folder, else the name itself."""
    return str(Path(name).resolve()) if Path(name).exists() else name

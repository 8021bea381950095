"""Models on disk: a folder with config.json, model.safetensors and a README.md card, and names for them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from tok1d.config.classes import set_class_names
from tok1d.config.fields import to_mapping
from tok1d.config.load import recipe_names
from tok1d.config.registry import MODELS, build_model_config
from tok1d.devices import pick_device
from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.files import as_path, encodable
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder
from tok1d.zoo import selfcheck
from tok1d.zoo.card import Card
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer
from tok1d.zoo.pretrained.autoencoder import connect_autoencoder
from tok1d.zoo.weights import HasWeights, fingerprint, load_state, read_weights

BUNDLED = Path(__file__).parent / "bundled"
FORMAT = 1  # of config.json
RUN_MODEL = "model"  # the model folder inside a run's
TOKENIZER = "tokenizer"  # the folder of a generator's tokenizer inside its own
# All files of a model folder, and of an autoencoder's in the format of diffusers.
MODEL_FILES = {"config.json", "model.safetensors", "README.md", "diffusion_pytorch_model.safetensors"}
PREVIEW = "preview.png"  # the picture of the card
BUDGET = "budget"  # the folder of a budget head inside that of its tokenizer
MODEL_FILES |= {EMBEDDED, TOKENIZER, PREVIEW, BUDGET, ".gitattributes"}


@dataclass(frozen=True)
class Hub:
    """How a model is downloaded; see `Pretrained.from_pretrained`."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


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


def save_model(
    model: nn.Module,
    folder: Path,
    card: Card,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = None,
    name: str = "",
    picture: bytes | None = None,
) -> None:
    """Write a model folder atomically; an existing model folder is replaced.

    An autoencoder that is stored with the model (latents.path "autoencoder") and a tokenizer's budget head become
    folders inside. Of a tokenizer, some tokens of a fixed image are stored; `load` compares them.

    Args:
        dtype: type in which floating-point weights are stored; loading converts them to float32.
        tokenizer: the model folder of a generator's tokenizer, which is copied into this one; see `zoo.portable`.
        name: the model's name for its README.md, such as OWNER/NAME on the hub.
        picture: a PNG for its README.md, of the model's output.

    Raises:
        WeightsError: it cannot be written (the old folder is kept), or the folder exists and is not a model folder.
    """
    from safetensors.torch import save_file

    config = getattr(model, "config")  # noqa: B009 (for mypy, attributes of nn.Module are tensors or modules)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    content = {"format": FORMAT, "model": to_mapping(config), "card": card.to_json()}
    if (check := selfcheck.recorded(model)) is not None:
        content["check"] = check
    text = card.to_markdown(config.name, name, picture="" if picture is None else PREVIEW)
    with replacing(folder) as temporary:
        save_file(state, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # safetensors makes it private
        (temporary / "README.md").write_text(encodable(text), encoding="utf-8")
        if picture is not None:
            (temporary / PREVIEW).write_bytes(picture)
        space = getattr(model, "latent_space", None)
        if isinstance(space, Autoencoder) and space.config.path == EMBEDDED:
            space.save(temporary / EMBEDDED)
        for head in getattr(model, "budget_heads", ()):
            save_model(head, temporary / BUDGET, getattr(head, "card", Card()))
        if tokenizer is not None:
            shutil.copytree(tokenizer, temporary / TOKENIZER, ignore=lambda _, names: set(names) - MODEL_FILES)


def save_with_head(tokenizer: str, head: nn.Module, folder: Path, card: Card) -> None:
    """Write a copy of a tokenizer's folder with a budget head inside, which `load` finds; errors as `save_model`.

    Args:
        card: of the head.
    """
    model, head.card = load(tokenizer), card  # type: ignore[assignment]
    model.budget_heads = (head,)
    save_model(model, folder, model.card)


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
    folders = [path.parent for path in BUNDLED.rglob("config.json") if path.parent.name != BUDGET]
    return sorted(folder.relative_to(BUNDLED).as_posix() for folder in folders)


def resolve(name: str | Path, base: Path | None = None, hub: Hub | None = None) -> Path:
    """The folder of a model: a path, also of a finished run, a bundled name, or a hub name "owner/model" (downloaded).

    Args:
        base: relative paths are first searched in this folder (a generator's card names its tokenizer that way).
        hub: how it is downloaded.

    Raises:
        WeightsError: no model of that name; the message lists the bundled ones.
    """
    text = as_path(str(name))
    for folder in ([base / text] if base else []) + [Path(text), Path(text) / RUN_MODEL, BUNDLED / text]:
        if (folder / "config.json").is_file():
            return folder.resolve()
    if Path(text).suffix in (".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".bin"):
        raise WeightsError(f"{text}: expected a model folder; published weight files go through 'tok1d convert' first")
    if (Path(text) / "config.yaml").is_file():
        raise WeightsError(f"{text}: expected a finished run, got one before its end; tok1d train {text} resumes it")
    if Path(text).exists():
        raise WeightsError(f"{text}: expected a model folder with config.json and model.safetensors, got none there")
    if is_hub_name(text):
        return _download(text, hub or Hub())
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


def is_hub_name(text: str) -> bool:
    """Whether a name can be OWNER/NAME on the hub, and is no path here."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).parent.exists()


def _download(name: str, hub: Hub) -> Path:
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "README.md"]
        return Path(
            snapshot_download(
                name,
                allow_patterns=patterns,
                revision=hub.revision,
                cache_dir=hub.cache_dir,
                local_files_only=hub.local_files_only,
            )
        )
    except ImportError:
        raise WeightsError(
            f"no model folder {name!r}, and no huggingface_hub to download it: pip install 'tok1d[hub]'"
        ) from None
    except Exception as error:
        bundled = ", ".join(bundled_names())
        raise WeightsError(
            f"no model folder {name!r}, and none from the hub ({reason_of(error)}); bundled: {bundled}"
        ) from None


def read_config(folder: Path) -> tuple[Any, Card]:
    """The model's configuration and its card from a model folder; raises WeightsError if they are not there."""
    return _read_config(folder)[:2]


def _read_config(folder: Path) -> tuple[Any, Card, Mapping[str, Any] | None]:
    """As `read_config`, and what is stored for the self-check."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise WeightsError(f"{path}: written in format {content['format']}, this tok1d reads format {FORMAT}")
        check = selfcheck.stored_check(content, path)
        return build_model_config(content["model"]), Card.from_json(content["card"]), check
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a tok1d model's config.json ({type(error).__name__}: {error})") from None


def load(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    base: Path | None = None,
    hub: Hub | None = None,
) -> Any:
    """A model in eval mode from a folder, a bundled name or a hub name.

        >>> import tok1d
        >>> tok1d.load("fashion-mnist-maetok").spec.length
        16

    Besides its own methods the model has the attributes `card` (its record, a `Card`) and `folder`. A tokenizer whose
    tokens of a fixed image are not those that were stored with it is loaded with a warning.

    Args:
        device: "cpu", "cuda", "mps", or "auto" for the first of cuda, mps and cpu that is there.
        dtype: type of the weights in memory, such as torch.bfloat16, which halves the memory and rounds tokens and
            images; default: float32.

    Raises:
        WeightsError: missing, truncated, unsafe or mismatched weights, in one line.
        InputError: a device that is not there.
    """
    folder = resolve(name, base, hub)
    config, card, check = _read_config(folder)
    model = build_model(config)
    load_state(model, read_weights(folder / "model.safetensors"), str(folder))
    model.card = card  # type: ignore[assignment]
    set_class_names(model, card.classes)
    model.folder = folder  # type: ignore[assignment]
    space = getattr(model, "latent_space", None)
    if isinstance(space, Autoencoder):
        space.base = folder
    if (folder / BUDGET / "config.json").is_file():
        model.budget_heads = (load(folder / BUDGET, device=device),)  # type: ignore[assignment]
    model = model.to(pick_device(device) if isinstance(device, str) else device).eval()
    model = model if dtype is None else model.to(dtype)
    if said := selfcheck.difference(model, check):
        warnings.warn(f"{folder}: {said}", stacklevel=2)
    return model


def load_pair(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    hub: Hub | None = None,
) -> tuple[LoadedGenerator, LoadedTokenizer]:
    """A generator and the tokenizer whose tokens it generates.

        >>> import tok1d
        >>> generator, tokenizer = tok1d.load_pair("fashion-mnist-semanticist")
        >>> tokenizer.decode(generator.sample(num=2)).shape
        torch.Size([2, 1, 28, 28])

    Args:
        name: a generator, or a tokenizer whose card names a generator trained on it (as the bundled ones do).
        device, dtype: see `load`.
        tokenizer: the tokenizer, where the generator's card names none or its place has changed.

    Raises:
        WeightsError: no generator of that name, or its tokenizer is not the one it was trained on.
    """
    folder = resolve(name, hub=hub)
    named = read_config(folder)[1].generator
    if named:
        folder = resolve(named, folder, hub)
    generator = load(folder, device=device, dtype=dtype)
    if MODELS[generator.config.name].kind != "generator":
        raise WeightsError(f"{name}: expected the model folder of a generator, got a {generator.config.name}")
    found = tokenizer_of(generator, tokenizer, dtype=dtype)
    generator.partner = (found,)
    return generator, found


def tokenizer_of(
    generator: LoadedGenerator, name: str | Path | None = None, *, dtype: torch.dtype | None = None
) -> LoadedTokenizer:
    """The tokenizer of a loaded generator, on its device.

    Args:
        name: the tokenizer; default: the one that the generator's card names.

    Raises:
        WeightsError: the card names none, or it is missing or another one than the generator was trained on.
    """
    card, folder = generator.card, getattr(generator, "folder", None)
    if not (name or card.tokenizer):
        raise WeightsError(
            f"{folder}: names no tokenizer for its tokens; pass it with --tokenizer MODEL (in Python tokenizer=)"
        )
    try:
        found = load(name or card.tokenizer, device=generator.device, dtype=dtype, base=None if name else folder)
    except WeightsError as error:
        if name:
            raise
        raise WeightsError(f"{error}; pass its tokenizer with --tokenizer MODEL (in Python tokenizer=)") from None
    if not hasattr(found, "spec"):
        raise WeightsError(f"{name or card.tokenizer}: expected a tokenizer, got a {found.config.name}")
    weights = found if dtype in (None, torch.float32) else load(found.folder)
    got = fingerprint(weights) if card.tokenizer_fingerprint else ""
    if got != card.tokenizer_fingerprint:
        raise WeightsError(
            f"{folder}: trained on a tokenizer with fingerprint {card.tokenizer_fingerprint}, but "
            f"{name or card.tokenizer} has {got}; pass the right one with --tokenizer MODEL (in Python tokenizer=)"
        )
    return found

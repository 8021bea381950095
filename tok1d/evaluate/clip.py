"""CLIP (arXiv 2103.00020) as a classifier without training: the class whose prompt is nearest to the image.

The model is read with transformers, from a local folder or the hub, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.feature_networks import clean_name
from tok1d.evaluate.features import Features, FrozenNetwork, to_rgb
from tok1d.zoo.pretrained.text import from_transformers
from tok1d.zoo.weights import fingerprint

CLIP = "clip:"
PROMPT = "a photo of a {name}"
CPU_BATCH = 16  # images at once, so that the outputs of layers stay small


class Reader(Protocol):
    """A tokenizer of transformers: texts to `input_ids` and `attention_mask`, (B, T) each."""

    def __call__(self, text: list[str], **options: object) -> Mapping[str, Tensor]: ...


class ClipParts(NamedTuple):
    """What is used of a CLIP of transformers.

    Args:
        model: with `get_text_features`, `get_image_features` and `logit_scale`.
        tokenizer: of the prompts.
        size: side of its images in pixels.
        mean, std: of images in [0, 1].
    """

    model: Any
    tokenizer: Reader
    size: int
    mean: Sequence[float]
    std: Sequence[float]


class ClipNetwork(FrozenNetwork):
    """The image embedding of a CLIP, and as logits its scaled cosines with the prompts of class names.

    Images are resized to the size of the model, bicubically with antialiasing, not cropped. Without names there are no
    logits.

    Args:
        name: of the model, for records.
        names: of the images' classes, in the order of their ids; "_" stands for a space.
        template: of the prompts.
    """

    def __init__(
        self,
        parts: ClipParts,
        name: str,
        names: Sequence[str],
        *,
        device: str | torch.device,
        pad: int = 0,
        template: str = PROMPT,
    ) -> None:
        model = parts.model.to(device).eval()
        self.model, self.template = model, template
        with torch.no_grad():
            self.prompts = self._embedded(parts, names, device) if names else None
            dim = embedding(model.get_image_features(torch.zeros(1, 3, parts.size, parts.size, device=device))).shape[1]
        super().__init__(
            clean_name(name),
            fingerprint(cast(nn.Module, model)),
            device=device,
            dim=dim,
            num_classes=len(names),
            classifies=bool(names),
            pad=pad,
        )
        self.class_names, self.size = tuple(names), parts.size
        self.mean, self.std = (torch.tensor(each, device=self.device).view(3, 1, 1) for each in (parts.mean, parts.std))

    def _embedded(self, parts: ClipParts, names: Sequence[str], device: str | torch.device) -> Tensor:
        """The unit embeddings (C, E) of the prompts of class names."""
        texts = [prompt(name, self.template) for name in names]
        read = parts.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        keys = ("input_ids", "attention_mask")
        found = embedding(self.model.get_text_features(**{key: read[key].to(device) for key in keys}))
        return F.normalize(found.float(), dim=1)

    def measure(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, h, w) in [0, 1]; on a CPU in parts of `CPU_BATCH`."""
        num = CPU_BATCH if self.device.type == "cpu" else max(len(images), 1)
        pooled = torch.cat([self._pooled(part) for part in images.split(num)])
        if self.prompts is None:
            return Features(pooled)
        return Features(pooled, logits=self.model.logit_scale.exp() * F.normalize(pooled, dim=1) @ self.prompts.T)

    def cosines(self, images: Tensor) -> Tensor:
        """Cosines (B, C) of the embeddings of images (B, 1 or 3, h, w) in [0, 1] and of the prompts of all names."""
        assert self.prompts is not None, "there are names"
        return F.normalize(self(images).pooled, dim=1) @ self.prompts.T

    def _pooled(self, images: Tensor) -> Tensor:
        images, size = to_rgb(images), (self.size, self.size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        return embedding(self.model.get_image_features((images - self.mean) / self.std)).float()


def embedding(found: object) -> Tensor:
    """The projected embedding (B, E) of a text or image: newer versions of transformers return it as a field."""
    return found if isinstance(found, Tensor) else cast(Tensor, getattr(found, "pooler_output"))  # noqa: B009


def prompt(name: str, template: str = PROMPT) -> str:
    """The prompt of a class."""
    return template.format(name=name.replace("_", " "))


def open_clip(
    text: str, names: Sequence[str], *, device: str | torch.device, pad: int = 0, template: str = PROMPT
) -> ClipNetwork:
    """The network of a text clip:MODEL, with the model's hub name or local folder.

    Raises:
        InputError: no model in the text.
        ConfigError: transformers is not installed, or the model is no CLIP.
        WeightsError: there is no such model.
    """
    name = text.removeprefix(CLIP)
    if not name:
        raise InputError("--network: expected clip:MODEL with a hub name or a local folder, got clip:")
    parts = from_transformers(name, CLIP.removesuffix(":"), _read)
    title = f"clip-{name.rstrip('/').rpartition('/')[2]}"
    return ClipNetwork(parts, title, names, device=device, pad=pad, template=template)


def _read(transformers: ModuleType, name: str) -> ClipParts:
    """A CLIP with its tokenizer and the normalisation of its images."""
    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type != "clip":
        raise ConfigError(f"clip {name}: expected a CLIP of transformers, got {config.model_type}")
    model = transformers.CLIPModel.from_pretrained(name).float().requires_grad_(False)
    mean, std = transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD
    try:
        found, _ = transformers.image_processing_utils.ImageProcessingMixin.get_image_processor_dict(name)
        mean, std = found.get("image_mean", mean), found.get("image_std", std)
    except OSError:  # a folder without its preprocessor's file: the published normalisation
        pass
    return ClipParts(
        model, transformers.AutoTokenizer.from_pretrained(name), config.vision_config.image_size, mean, std
    )

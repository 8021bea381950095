"""Distractors that a captioner of transformers describes and a text-to-image pipeline of diffusers draws anew.

Both are read from a local folder or the hub, from safetensors files only.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.inference.sampling import noise_of
from tok1d.zoo.pretrained.text import from_transformers

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_NEW_TOKENS = 40
CAPTIONER, PAINTER = "--captioner", "--painter"


class Redrawing:
    """A captioner and a painter.

    Args:
        captioner: an image-to-text model, such as BLIP, with its processor.
        painter: a text-to-image pipeline.

    Raises:
        ConfigError: transformers or diffusers is not installed.
        WeightsError: a model cannot be loaded.
    """

    def __init__(self, captioner: str, painter: str, device: torch.device) -> None:
        def read(transformers: ModuleType, name: str) -> tuple[Any, Any]:
            processor = transformers.AutoProcessor.from_pretrained(name)
            return processor, transformers.AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True)

        self.processor, model = from_transformers(captioner, CAPTIONER, read)
        self.captioner = model.to(device).eval()
        self.painter = _pipeline(painter).to(device)
        self.device = device

    def redraw(self, pictures: Sequence[Image], seed: int) -> tuple[list[str], list[Image]]:
        """The caption of each picture, and the picture that is drawn from it."""
        captions, drawn = [], []
        for number, picture in enumerate(pictures):
            inputs = self.processor(images=picture.convert("RGB"), return_tensors="pt").to(self.device)
            ids = self.captioner.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            captions.append(self.processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
            drawn.append(self.painter(captions[-1], generator=noise_of(seed, "redrawn", number)).images[0])
        return captions, drawn


def _pipeline(name: str) -> Any:
    try:
        import diffusers
    except ImportError:
        raise ConfigError(f"{PAINTER} {name}: diffusers is not installed; pip install 'tok1d[diffusers]'") from None
    try:
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(name, use_safetensors=True)
    except Exception as error:  # of the network, the hub or the disk
        raise WeightsError(f"{PAINTER} {name}: cannot be loaded with diffusers ({reason_of(error)})") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

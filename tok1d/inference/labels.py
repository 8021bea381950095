"""Which label, class or caption, a tokenizer that wants one (SMAP) is given: the images' own, or none (null)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tok1d.errors import InputError
from tok1d.zoo.pretrained.text import CaptionEmbeddings

LABELS = ("true", "null")


def reads_captions(tokenizer: Any) -> bool:
    """Whether the label that a tokenizer wants is a caption."""
    return getattr(tokenizer.spec, "reads_captions", False)


def label_used(tokenizer: Any, num_classes: int, wanted: str | None = None, *, captioned: bool = False) -> str | None:
    """What records call it: "true" for labels out of `num_classes` classes, "null", or None where none is read.

    Images of another number of classes than the tokenizer knows (a person's own) have no true labels; of a tokenizer
    that reads captions, images without any.

    Args:
        wanted: "true" or "null"; None is "true" where there are true labels.
        captioned: whether there are captions.

    Raises:
        InputError: a label for a tokenizer that reads none, or true ones that are not there.
    """
    spec = tokenizer.spec
    if not spec.needs_label:
        if wanted is not None:
            raise InputError(f"label: this tokenizer reads no label, leave it out; got {wanted}")
        return None
    if reads_captions(tokenizer):
        if wanted == "true" and not captioned:
            raise InputError("label: this tokenizer reads captions, the images have none; use null")
        return wanted or ("true" if captioned else "null")
    known = getattr(spec, "num_classes", 0) or num_classes
    fits = num_classes > 0 and known == num_classes
    if wanted == "true" and not fits:
        raise InputError(
            f"label: expected images of the tokenizer's {known} classes, these have {num_classes}; use null"
        )
    return wanted or ("true" if fits else "null")


def labels_given(used: str | None, labels: Tensor | None, device: torch.device) -> Tensor | None:
    """The `cond` of encode and decode: labels (B,), or captions (B, T, E), on the device where used, else None."""
    return labels.to(device) if used == "true" and labels is not None else None


class ConditionedImages:
    """Images of a set with what a tokenizer is told of them.

    Args:
        wanted: see `label_used`, whose answer is `used`.

    Raises:
        InputError: as `label_used`.
        ConfigError, WeightsError: as `CaptionEmbeddings`.
    """

    def __init__(self, tokenizer: Any, images: Any, wanted: str | None = None) -> None:
        self.tokenizer, self.images = tokenizer, images
        captions = getattr(images, "captions", [])
        self.used = label_used(tokenizer, images.num_classes, wanted, captioned=any(captions))
        self.embed: CaptionEmbeddings | None = None
        if self.used == "true" and reads_captions(tokenizer):
            self.embed = CaptionEmbeddings(tokenizer.config.condition, captions)

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W) and labels (B,) as the set gives them, and `cond` on the tokenizer's device."""
        device = next(self.tokenizer.parameters()).device
        if self.embed is not None:
            images, labels, captions = self.images.captioned_batch(indices, seed=seed)
            return images, labels, self.embed(captions, device)
        images, labels = self.images.batch(indices, seed=seed)
        return images, labels, labels_given(self.used, labels, device)

"""Conditions of generators (classes or captions) and of conditional tokenizers (SMAP)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tok1d.config.condition import text_condition
from tok1d.data.images import ImageSet
from tok1d.errors import InputError, reason_of
from tok1d.files import as_path
from tok1d.generators.base import Generator
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.pretrained.text import CaptionEmbeddings


def reads_captions(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is conditioned on captions instead of classes."""
    return getattr(tokenizer.spec, "reads_captions", False)


def choose_condition(
    tokenizer: Tokenizer, num_classes: int, wanted: str | None = None, *, captioned: bool = False
) -> str | None:
    """The condition that a tokenizer receives, as records state it.

    "true" is the class or the caption of the image, and "null" the null class or no caption. "true" needs images with
    as many classes as the tokenizer has, or with captions.

    Args:
        num_classes: number of classes of the images.
        wanted: "true" or "null"; None: "true" if it is possible.
        captioned: whether the images have captions.

    Returns:
        "true", "null", or None for a tokenizer without a condition.

    Raises:
        InputError: `wanted` for a tokenizer without a condition, or "true" if it is not possible.
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


def cond_for(condition: str | None, cond: Tensor | None, device: torch.device) -> Tensor | None:
    """The `cond` of encode and decode: class ids (B,) or captions (B, T, E) with the condition "true", else None."""
    return cond.to(device) if condition == "true" and cond is not None else None


class ConditionedImages:
    """Images of a set with the conditions that a tokenizer receives.

    Args:
        wanted: see `choose_condition`, whose result is `condition`.

    Raises:
        InputError: see `choose_condition`.
        ConfigError, WeightsError: see `CaptionEmbeddings`.
    """

    def __init__(self, tokenizer: Tokenizer, images: ImageSet, wanted: str | None = None) -> None:
        self.tokenizer, self.images = tokenizer, images
        captions = getattr(images, "captions", [])
        self.condition = choose_condition(tokenizer, images.num_classes, wanted, captioned=any(captions))
        self.embed: CaptionEmbeddings | None = None
        text = text_condition(tokenizer.config)
        if self.condition == "true" and text is not None:
            self.embed = CaptionEmbeddings(text, captions)

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W) and class ids (B,) of the set, and `cond` on the tokenizer's device."""
        device = next(self.tokenizer.parameters()).device
        if self.embed is not None:
            images, labels, captions = self.images.captioned_batch(indices, seed=seed)
            return images, labels, self.embed(captions, device)
        images, labels = self.images.batch(indices, seed=seed)
        return images, labels, cond_for(self.condition, labels, device)


def read_captions(texts: Sequence[str]) -> list[str]:
    """Captions from the command line: each text is a caption, or the name of a .txt file with one caption per line.

    Raises:
        InputError: a file that cannot be read, or only blank captions.
    """
    found: list[str] = []
    for text in texts:
        if not text.endswith(".txt"):
            found.append(text)
            continue
        try:
            found += [
                line.strip() for line in Path(as_path(text)).read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            why = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InputError(
                f"--captions: cannot read {text}, {why}; expected captions, or .txt files with one caption per line"
            ) from None
    if texts and not any(caption.strip() for caption in found):
        raise InputError("--captions: expected at least one caption with words, got none")
    return found


def check_conditions(
    generator: Generator, classes: object = None, captions: Sequence[str] | None = None, *, unconditional: bool = False
) -> None:
    """Check that a generator reads the given classes or captions, and that it has the captions it needs.

    Raises:
        InputError: the message names the option.
    """
    captioned = text_condition(generator.config) is not None
    reads = "--captions" if captioned else "--classes" if generator.config.num_classes else ""
    for name, given in (("--classes", classes), ("--captions", captions)):
        if given and unconditional:
            raise InputError(f"{name}: --unconditional samples without {name[2:]}; leave it out")
        if given and name != reads:
            advice = f"is conditioned on {reads[2:]}, use {reads}" if reads else f"has no {name[2:]}; leave it out"
            raise InputError(f"{name}: this generator {advice}")
    if captioned and not unconditional and not captions:
        raise InputError(
            "--captions: this generator is conditioned on captions, expected at least one, or --unconditional"
        )

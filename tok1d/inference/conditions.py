"""Conditions of generators (classes or captions) and of conditional tokenizers (SMAP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tok1d.config.classes import Agreement, Classes, agreement, model_classes
from tok1d.config.condition import text_condition
from tok1d.data.images import ImageSet
from tok1d.data.labels import IMAGES, image_classes, mapped
from tok1d.errors import InputError, reason_of
from tok1d.files import as_path
from tok1d.generators.base import Generator
from tok1d.inference.captions import CaptionReader, caption_reader
from tok1d.tokenizers.base import Tokenizer


def reads_captions(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is conditioned on captions instead of classes."""
    return getattr(tokenizer.spec, "reads_captions", False)


@dataclass(frozen=True)
class Conditioning:
    """The condition that a tokenizer receives for images or samples of some classes.

    Args:
        label: as records state it: "true" (the class or the caption), "null" (the null class or no caption), or None
            for a tokenizer without a condition.
        places: the tokenizer's id of each class; None: the ids are the same.
        said: one line about it for the user; "" if there is nothing to say.
    """

    label: str | None
    places: tuple[int, ...] | None = None
    said: str = ""

    def of(self, cond: Tensor | None, device: str | torch.device) -> Tensor | None:
        """The `cond` of encode and decode: class ids (B,) of the tokenizer, or captions (B, T, E) or (B, T).

        None unless "true".

        Args:
            cond: class ids (B,) of the images or samples, or captions (B, T, E) or (B, T).
        """
        if self.label != "true" or cond is None:
            return None
        return mapped(cond, self.places).to(device)

    def say(self) -> None:
        """Print `said`, if there is something to say."""
        if self.said:
            print(self.said)


def conditioning_of(
    tokenizer: Tokenizer, classes: Classes, wanted: str | None = None, *, captioned: bool = False
) -> Conditioning:
    """The condition that a tokenizer receives for images or samples of some classes.

    Labels are true where the names of the classes agree with the tokenizer's, in any order; they are then mapped by
    name. Without names on one side the numbers of classes must agree. Otherwise the tokenizer receives the null
    condition.

    Args:
        classes: of the images, or of the generator that samples.
        wanted: "true": the user says that the labels are true; where the names do not agree, the ids are taken as they
            are. "null", or None: as above.
        captioned: whether the images have captions.

    Raises:
        InputError: `wanted` for a tokenizer without a condition, or "true" if it is not possible.
    """
    spec = tokenizer.spec
    if not spec.needs_label:
        if wanted is not None:
            raise InputError(f"label: this tokenizer reads no label, leave it out; got {wanted}")
        return Conditioning(None)
    if reads_captions(tokenizer):
        if wanted == "true" and not captioned:
            raise InputError("label: this tokenizer reads captions, the images have none; use null")
        return Conditioning(wanted or ("true" if captioned else "null"))
    if wanted == "null":
        return Conditioning("null")
    own = model_classes(tokenizer)
    known = own if own.num else replace(own, num=classes.num)
    found = agreement(classes, known) if classes.num else Agreement(False)
    if found.agrees:
        return Conditioning("true", found.places, found.said)
    if wanted == "true":
        if classes.num != known.num or not classes.num:
            raise InputError(
                f"label: expected {classes.owner} of the tokenizer's {known.num} classes, these have {classes.num}; "
                "use null"
            )
        return Conditioning("true", None, f"{found.said}; label=true: taken by position")
    by_position = classes.owner == IMAGES and classes.num == known.num
    return Conditioning("null", None, _null_text(tokenizer, found.said, by_position=by_position))


def _null_text(tokenizer: Tokenizer, reason: str, *, by_position: bool) -> str:
    """The line about the null condition; "" for images or samples without classes."""
    if not reason:
        return ""
    trained = getattr(getattr(tokenizer, "config", None), "label_dropout", 1) > 0
    return (
        f"{reason}: the tokenizer receives its null class"
        + ("" if trained else ", which its training did not use (label_dropout=0)")
        + ("; label=true takes the classes by position" if by_position else "")
    )


class ConditionedImages:
    """Images of a set with the conditions that a tokenizer receives.

    Args:
        wanted: see `conditioning_of`, whose result is `conditioning`.

    Raises:
        InputError: see `conditioning_of`.
        ConfigError, WeightsError: see `caption_reader`.
    """

    def __init__(self, tokenizer: Tokenizer, images: ImageSet, wanted: str | None = None) -> None:
        self.tokenizer, self.images = tokenizer, images
        captions = getattr(images, "captions", [])
        self.conditioning = conditioning_of(tokenizer, image_classes(images), wanted, captioned=any(captions))
        self.embed: CaptionReader | None = None
        text = text_condition(tokenizer.config)
        if self.conditioning.label == "true" and text is not None:
            self.embed = caption_reader(text, captions)

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W) and class ids (B,) of the set, and `cond` on the tokenizer's device."""
        device = next(self.tokenizer.parameters()).device
        if self.embed is not None:
            images, labels, captions = self.images.captioned_batch(indices, seed=seed)
            return images, labels, self.embed(captions, device)
        images, labels = self.images.batch(indices, seed=seed)
        return images, labels, self.conditioning.of(labels, device)


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

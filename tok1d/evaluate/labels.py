"""Which label a tokenizer that wants one (SMAP) is given: the images' own, or none, which is its null class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tok1d.errors import InputError

LABELS = ("true", "null")


def label_used(tokenizer: Any, num_classes: int, wanted: str | None = None) -> str | None:
    """What records call it: "true" for labels out of `num_classes` classes, "null", or None where none is read.

    Images of another number of classes than the tokenizer knows (a person's own) have no true labels.

    Args:
        wanted: "true" or "null"; None is "true" where there are true labels.

    Raises:
        InputError: a label for a tokenizer that reads none, or true ones that are not there.
    """
    spec = tokenizer.spec
    if not spec.needs_label:
        if wanted is not None:
            raise InputError(f"label: this tokenizer reads no label, leave it away; received {wanted}")
        return None
    known = getattr(spec, "num_classes", 0) or num_classes
    fits = num_classes > 0 and known == num_classes
    if wanted == "true" and not fits:
        raise InputError(
            f"label: expected images of the tokenizer's {known} classes, these have {num_classes}; use null"
        )
    return wanted or ("true" if fits else "null")


def labels_given(used: str | None, labels: Tensor | None, device: torch.device) -> Tensor | None:
    """The `cond` of encode and decode: labels (B,) on the device where they are used, else None."""
    return labels.to(device) if used == "true" and labels is not None else None

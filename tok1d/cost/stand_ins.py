"""Temporary: stand-ins for models that do not declare `use_stand_ins` yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tok1d.tokenizers.auxiliary import AuxiliaryDecoder
from tok1d.tokenizers.maetok import MAETok
from tok1d.tokenizers.smap import SMAP
from tok1d.tokenizers.tail_drop import mean_kept


def undeclared(model: Any, *, average: bool) -> None:
    """As `use_stand_ins`."""
    if isinstance(model, MAETok):
        _stand_in_teachers(model)
        return
    if isinstance(model, SMAP):
        drop, length = model.config.tail_drop, model.spec.length
        if average and drop.enabled and drop.keep_per == "iteration":
            length = round(mean_kept(drop, model.config.num_tokens))
        setattr(model, "training_keep", lambda images: length)  # noqa: B010 (mypy knows no assignment to a method)
        return
    alignment = getattr(model.config, "alignment", None)
    if alignment is not None and alignment.teacher:
        patch = re.search(r"patch(\d+)", alignment.teacher)
        num = (alignment.image_size // int(patch[1])) ** 2 if patch else model.decoder.grid**2
        model.teacher_features = lambda images: images.new_empty(len(images), num, model.config.decoder.align_dim)


def _stand_in_teachers(model: MAETok) -> None:
    config, num = model.config, (model.config.image_size // model.config.encoder.patch) ** 2

    def features(dim: int) -> Callable[[Tensor], Tensor]:
        return lambda images: images.new_empty(len(images), num, dim)

    for each in model.auxiliary:
        if isinstance(each, AuxiliaryDecoder) and each.config.is_teacher:
            assert each.config.dim is not None, "checked"
            each.teacher = features(each.config.dim)
    if model.alignment is not None:
        assert config.alignment.dim is not None, "checked"
        model.alignment.teacher = features(config.alignment.dim)

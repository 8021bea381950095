"""Captions to what a model that is conditioned on them reads: embeddings, or ids of words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tok1d.config.condition import ConditionConfig
from tok1d.data.words import CaptionIds
from tok1d.zoo.pretrained.text import CaptionEmbeddings

CaptionReader = CaptionEmbeddings | CaptionIds


def caption_reader(condition: ConditionConfig, captions: Sequence[str], *, say: bool = True) -> CaptionReader:
    """The function that turns captions into the condition (B, T, E) or (B, T) of a model.

    Args:
        captions: all captions that it will be called with.
        say: whether words that the model does not know are reported on stderr, in one line.

    Raises:
        ConfigError, WeightsError: see `CaptionEmbeddings`.
    """
    if condition.kind == "text":
        return CaptionEmbeddings(condition, captions)
    ids = CaptionIds(condition, captions)
    if say and ids.said:
        print(ids.said, file=sys.stderr)
    return ids

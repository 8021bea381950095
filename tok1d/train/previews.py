"""Preview images: reconstructions or samples of a model during its training."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tok1d.config.classes import model_classes
from tok1d.config.condition import text_condition
from tok1d.config.recipe import Recipe
from tok1d.data.subset import subset
from tok1d.inference.captions import caption_reader
from tok1d.inference.conditions import ConditionedImages, conditioning_of
from tok1d.pictures import grid, save_png
from tok1d.tokenizers.prefix import token_counts
from tok1d.train.images import open_split
from tok1d.train.task import Preview
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer

NUM_IMAGES = 10


def reconstruction_preview(recipe: Recipe) -> Preview:
    """Ten test images, and below them their reconstructions from increasing numbers of tokens."""
    test = cache(lambda: subset(open_split(recipe, "test"), NUM_IMAGES))  # opened at the first preview

    def preview(model: nn.Module, path: Path) -> None:
        tokenizer = cast(LoadedTokenizer, model)
        x, _, cond = ConditionedImages(tokenizer, test()).batch(range(len(test())))
        x = x.to(next(model.parameters()).device)
        tokens = tokenizer.encode(x, cond)
        rows = [tokenizer.decode(tokens, cond, keep=k) for k in token_counts(tokenizer.spec)]
        save_png(grid(torch.cat([x, *rows]), len(x), zoom=2), path)

    return preview


def sample_preview(recipe: Recipe, tokenizer: LoadedTokenizer) -> Preview:
    """Ten decoded samples: of the first classes in turn, or for the captions of ten test images."""
    test = cache(lambda: subset(open_split(recipe, "test"), NUM_IMAGES))

    def preview(model: nn.Module, path: Path) -> None:
        generator, device = cast(LoadedGenerator, model), next(model.parameters()).device
        text, num_classes = text_condition(generator.config), recipe.model.num_classes
        cond: Tensor | None = None
        if text is not None:
            captions = test().captioned_batch(range(len(test())))[2]
            cond = caption_reader(text, captions, say=False)(captions, device)
        elif num_classes:
            cond = torch.arange(NUM_IMAGES, device=device) % num_classes
        used = conditioning_of(tokenizer, model_classes(generator), captioned=text is not None)
        tokens, lengths = generator.sample_ragged(cond, num=NUM_IMAGES)
        images = tokenizer.to(device).decode(tokens, used.of(cond, device), keep=lengths)
        save_png(grid(images, len(images), zoom=2), path)

    return preview

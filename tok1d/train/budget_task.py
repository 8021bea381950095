"""The training task of a budget head: tokens of a frozen tokenizer, and the qualities of some of their prefixes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tok1d.config.condition import text_condition
from tok1d.config.recipe import Recipe
from tok1d.data.broken import report_broken
from tok1d.data.labels import image_classes
from tok1d.devices import process_device
from tok1d.errors import ConfigError
from tok1d.inference.cache import encode_batch
from tok1d.inference.captions import caption_reader
from tok1d.inference.conditions import conditioning_of, reads_captions
from tok1d.inference.sampling import noise_of
from tok1d.losses.total import Batch
from tok1d.tokenizers.budget import MOST, BudgetHead
from tok1d.train.batches import read_batches
from tok1d.train.folder import has_checkpoint
from tok1d.train.images import Images, open_split
from tok1d.train.task import BatchFunction, Task
from tok1d.zoo import store
from tok1d.zoo.loaded import LoadedTokenizer
from tok1d.zoo.pretrained.quality import load_quality
from tok1d.zoo.weights import fingerprint

FITTED = 20  # batches from which the head's means are computed


def budget_task(recipe: Recipe) -> Task:
    """The task of a budget head's recipe.

    Raises:
        ConfigError: `init_from` is no tokenizer of ordered tokens, or one of other images than the recipe's.
        Tok1dError: models or data cannot be read.
    """
    assert recipe.init_from is not None, "Recipe.check ensures it"
    tokenizer = frozen_tokenizer(recipe).to(process_device())
    spec, config = tokenizer.spec, recipe.model
    sizes = {"num_tokens": spec.length, "vocab_size": spec.vocab_size or 0, "token_dim": spec.dim or config.token_dim}
    if spec.length == 1:
        raise ConfigError(f"init_from: expected a tokenizer of several tokens, {recipe.init_from} has one")
    config = replace(config, **sizes, prefixes=min(config.prefixes, spec.length - 1))
    images = open_split(recipe, "train", augment=True)
    report_broken(images)
    model = store.build_model(config)
    assert isinstance(model, BudgetHead)
    batch = budget_batches(replace(recipe, model=config), images, tokenizer)
    if not has_checkpoint(Path(recipe.out)):
        model.fit(batch(step, 0, 1) for step in range(FITTED))  # type: ignore[misc]
    return Task(model, batch, None, images=images, tokenizer=fingerprint(tokenizer))


def frozen_tokenizer(recipe: Recipe) -> LoadedTokenizer:
    """The tokenizer of a budget head's recipe; raises ConfigError as `budget_task`."""
    name = str(recipe.init_from)
    tokenizer: LoadedTokenizer = store.load(name)
    if not hasattr(tokenizer, "spec"):
        raise ConfigError(f"init_from: expected the tokenizer whose prefixes are measured, got another model, {name}")
    if not tokenizer.spec.ordered:
        raise ConfigError(f"init_from: expected a tokenizer of ordered tokens, those of {name} have no order")
    for key in ("image_size", "channels"):
        expected, got = getattr(tokenizer.config, key), getattr(recipe.data, key)
        if expected != got:
            raise ConfigError(f"data.{key}: expected {expected} as the images of {name}, got {got}")
    return tokenizer


def budget_batches(recipe: Recipe, images: Images, tokenizer: LoadedTokenizer) -> BatchFunction:
    """Batches of `BudgetHead.losses`."""
    read, quality, device = (
        read_batches(recipe, images),
        load_quality(recipe.model.metric),
        torch.device(process_device()),
    )
    used = conditioning_of(tokenizer, image_classes(images), captioned=any(images.captions))
    used.say()
    text = text_condition(tokenizer.config) if reads_captions(tokenizer) and used.label == "true" else None
    embed = None if text is None else caption_reader(text, images.captions)
    length, num = tokenizer.spec.length, recipe.model.prefixes

    @torch.no_grad()
    def batch(micro_step: int, rank: int, world: int) -> Batch:
        pixels, labels, captions = read(micro_step, rank, world)
        pixels, given = pixels.to(device), labels if embed is None else embed(captions, device)
        cond = used.of(given, device)
        tokens = encode_batch(tokenizer, pixels, cond, length)
        random = noise_of(recipe.seed, "prefixes", micro_step, rank)
        counts = torch.rand(len(pixels), length - 1, generator=random).argsort(1)[:, :num].to(device) + 1
        decoded, copies = torch.cat([counts, torch.full_like(counts[:, :1], length)], 1), num + 1
        wide, each = tokens.repeat_interleave(copies, 0), None if cond is None else cond.repeat_interleave(copies, 0)
        with torch.autocast(device.type, enabled=False):
            y = tokenizer.decode(wide, each, keep=decoded.flatten(), generator=random)
        found = quality(y, pixels.repeat_interleave(copies, 0)).view(decoded.shape).clamp(max=MOST)
        return tokens, found[:, -1], counts, found[:, :-1]

    return batch

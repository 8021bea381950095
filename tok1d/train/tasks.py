"""The training task of a recipe: the model with its weights, its players, batches and previews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from tok1d.config.classes import model_classes, set_class_names
from tok1d.config.condition import text_condition
from tok1d.config.recipe import Recipe
from tok1d.data.broken import report_broken
from tok1d.data.labels import image_classes
from tok1d.train.adversarial import build_players
from tok1d.train.batches import image_batches, image_condition, sample_names
from tok1d.train.budget_task import budget_task
from tok1d.train.folder import has_checkpoint
from tok1d.train.generator_task import generator_task
from tok1d.train.images import open_split, with_data_classes, with_vocabulary
from tok1d.train.previews import reconstruction_preview
from tok1d.train.proxies import Proxies
from tok1d.train.task import Measure, Task
from tok1d.zoo import store
from tok1d.zoo.pairs import check_num_classes
from tok1d.zoo.pretrained.teachers import give_teachers
from tok1d.zoo.transfer import init_from

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")  # a model's configuration


def build_task(recipe: Recipe) -> Task:
    """The task of a recipe of any kind, with initial weights from the recipe's seed or from `init_from`.

    With a checkpoint in the run folder `init_from` is not read, because the checkpoint replaces all weights.

    Raises:
        Tok1dError: models, data and settings do not match, or cannot be read.
    """
    recipe = with_data_classes(recipe)
    recipe = replace(recipe, model=with_encoder(recipe.model))
    torch.manual_seed(recipe.seed)
    if recipe.kind == "generator":
        return generator_task(recipe)
    if recipe.kind == "budget":
        return budget_task(recipe)
    images = open_split(recipe, "train", augment=True)
    report_broken(images)
    recipe = replace(recipe, model=with_vocabulary(recipe.model, images.captions))
    model, resumes = store.build_model(recipe.model), has_checkpoint(Path(recipe.out))
    check_num_classes(model_classes(model).num, images)
    set_class_names(model, image_classes(images).names)
    if recipe.init_from is not None and not resumes:
        init_from(model, recipe.init_from)
    give_teachers(model, initialised=not resumes)
    players = build_players(recipe, model, resumed=resumes)
    preview = reconstruction_preview(recipe) if recipe.kind == "tokenizer" else None
    batch = image_batches(recipe, images, image_condition(recipe, images))
    phases = getattr(model, "phases", ())
    task = Task(model, batch, preview, players, sample_names(recipe, images), images, phases=phases)
    if recipe.train.proxies_every:
        task.measures.append(Measure(recipe.train.proxies_every, Proxies(recipe)))
    return task


def with_encoder(config: C) -> C:
    """A model's configuration with an absolute path of its local text encoder, so that the saved model works anywhere.

    Configurations without a text encoder are returned as they are.

    Raises:
        ConfigError: a model conditioned on captions without a text encoder.
    """
    text = text_condition(config)
    if text is None or text.kind != "text":
        return config
    text.check_encoder()
    local = Path(text.encoder)
    return replace(config, condition=replace(text, encoder=str(local.resolve()))) if local.exists() else config

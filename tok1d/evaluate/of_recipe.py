"""The evaluation of a run as the `evaluate` section of its recipe says, and its check before the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tok1d.config.condition import is_conditional
from tok1d.config.recipe import Recipe
from tok1d.config.sampling import EVERYWHERE, Decoding
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.classification import evaluate_classifier
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Measuring, by_classifier
from tok1d.evaluate.protocol import classifier_for, protocol_of
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.generators.base import Generator
from tok1d.inference.sampling import decoder_options
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo import store
from tok1d.zoo.record import Record


def check_evaluation(recipe: Recipe, model: Any) -> None:
    """Refuse, before the training, an `evaluate` section with settings that the models do not have.

    Raises:
        ConfigError: naming the key.
    """
    if recipe.kind == "classifier":
        return
    config, tokenizer = recipe.evaluate, model
    if recipe.tokenizer:
        with torch.device("meta"):  # its capabilities are needed, not its weights
            tokenizer = store.build_model(store.read_config(store.resolve(recipe.tokenizer))[0])
    length = tokenizer.spec.length if recipe.kind == "tokenizer" else model.config.num_tokens
    for k in config.keep:
        if k > length:
            raise ConfigError(f"evaluate.keep: expected numbers up to {length}, the model's tokens, got {k}")
        if k < length and not tokenizer.spec.ordered:
            raise ConfigError(f"evaluate.keep: these tokens have no order, expected [] or [{length}], got {k}")
    if getattr(tokenizer.config, "objective", None) == "ddpm" and not 2 <= config.steps <= 1000:
        raise ConfigError(f"evaluate.steps: a DDPM decoder takes 2 to 1000 steps, got {config.steps}")
    reason = _no_guidance(recipe, model)
    if reason and config.guidance != 1:
        raise ConfigError(f"evaluate.guidance: {reason}, expected 1, got {config.guidance:g}")
    is_generator = recipe.kind == "generator"
    try:
        if is_generator:
            _check_sampling(recipe, model)
        decoding = _readable(config.decoding(generator=is_generator), tokenizer)
        decoder_options(tokenizer, decoding, "evaluate.decoder_" if is_generator else "evaluate.")
    except InputError as error:
        raise ConfigError(str(error)) from None


def _no_guidance(recipe: Recipe, model: Any) -> str:
    """Why the evaluation cannot use guidance; "" where it can."""
    if recipe.kind == "tokenizer":
        return "this decoder is deterministic and has no guidance" if model.spec.deterministic else ""
    if recipe.evaluate.weak_model:
        return ""
    if recipe.evaluate.unconditional or not is_conditional(model.config):
        return "sampling without classes or captions has no guidance"
    return "" if model.label_embed.has_null else "this generator is trained without class_dropout"


def _check_sampling(recipe: Recipe, generator: Generator) -> None:
    config, name = recipe.evaluate, generator.config.name
    if config.unconditional and not generator.label_embed.has_null:
        raise ConfigError("evaluate.unconditional: needs a null class, expected model.class_dropout > 0, got 0")
    if config.guidance_interval != EVERYWHERE and generator.guidance_interval_of is None:
        got = list(config.guidance_interval)
        raise ConfigError(f"evaluate.guidance_interval: {name} has none, expected [0, 1], got {got}")
    over_time = generator.guidance_interval_of == "time"
    for key, read in (("guidance_schedule", not over_time), ("weak_model", over_time)):
        if (got := getattr(config, key)) and not read:
            raise ConfigError(f"evaluate.{key}: {name} has none, leave it out; got {got}")
    settings = config.sampling.settings
    settings.check(generator.kind, name, "evaluate.")
    generator.resolved_settings(settings)  # refuses an unknown sampler


def evaluate_model(recipe: Recipe, model: Any, test: ImageSet) -> list[Record]:
    """The records of a trained model.

    Args:
        model: a tokenizer, generator or classifier in eval mode.
        test: the test images.
    """
    config, data = recipe.evaluate, recipe.data
    protocol = protocol_of(model, pad=data.pad)
    protocol["weights"] = "ema" if recipe.train.ema > 0 else "raw"
    if recipe.kind == "classifier":
        return evaluate_classifier(model, test, protocol=protocol)
    device = next(model.parameters()).device
    classifier = classifier_for(data.name, data, device, pad=data.pad)
    keep = tuple(config.keep)
    if recipe.kind == "tokenizer":
        decoding = _readable(config.decoding(generator=False), model)
        how = Reconstructions(**vars(decoding), keep=keep, batch_size=config.batch_size, seed=recipe.seed)
        measuring = Measuring(by_classifier(classifier, "reconstruction", data.pad), protocol=protocol)
        return evaluate_reconstruction(model, subset(test, config.num_images), how, measuring)
    if classifier is None:
        reason = "no classifier is bundled for these images"
        return [Record(name="label_agreement", value=None, num_images=0, note=reason, **protocol)]
    assert recipe.tokenizer is not None
    tokenizer = store.load(recipe.tokenizer, device=device)
    decoding = _readable(config.decoding(generator=True), tokenizer)
    samples = Samples(
        **vars(config.sampling),
        **{f"decoder_{name}": value for name, value in vars(decoding).items()},
        num=config.num_samples,
        keep=keep,
        batch_size=config.batch_size,
        seed=recipe.seed,
    )
    measuring = Measuring(by_classifier(classifier, "generation", data.pad), protocol=protocol)
    return evaluate_generation(model, tokenizer, test, samples, measuring)


def _readable(decoding: Decoding, tokenizer: Tokenizer) -> Decoding:
    """The same settings; for a deterministic decoder without steps, which always have a value in a recipe."""
    return replace(decoding, steps=None) if tokenizer.spec.deterministic else decoding

"""The evaluation at the end of a training, with the `evaluate` section of its recipe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from tok1d.config.condition import is_conditional
from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.config.sampling import EVERYWHERE, Decoding
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import ConfigError, InputError, WeightsError
from tok1d.evaluate.baselines import distance_records, reconstruction_records
from tok1d.evaluate.budgets import evaluate_head
from tok1d.evaluate.classification import evaluate_classifier
from tok1d.evaluate.feature_networks import inception_missing, open_network
from tok1d.evaluate.features import INCEPTION, FrozenNetwork
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Compared, Measures, Measuring, by_classifier
from tok1d.evaluate.protocol import CLASSIFIER, classifier_for, has_classifier, protocol_of
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Kind, Reconstructions, Samples
from tok1d.evaluate.setup import image_references, open_references
from tok1d.evaluate.training_networks import training_networks, why_not
from tok1d.generators.base import Generator
from tok1d.images.framing import framing_in
from tok1d.inference.sampling import decoder_options
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo import store
from tok1d.zoo.record import Record


def check_evaluation(recipe: Recipe, model: Any) -> None:
    """Check before the training that the models have the settings of the `evaluate` section.

    Raises:
        ConfigError: a setting that the models do not have; the message names the key.
    """
    if recipe.kind in ("classifier", "budget"):
        return
    config, tokenizer = recipe.evaluate, model
    if recipe.tokenizer:
        with torch.device("meta"):  # only its specification is needed, not its weights
            tokenizer = store.build_model(store.read_config(store.resolve(recipe.tokenizer))[0])
        if not hasattr(tokenizer, "spec"):
            raise ConfigError(
                f"tokenizer: expected the model folder of a tokenizer, got another model, {recipe.tokenizer}"
            )
    length = _length(recipe, model)
    for k in config.keep:
        if k < length and not tokenizer.spec.ordered:
            raise ConfigError(f"evaluate.keep: these tokens have no order, expected [] or [{length}], got {k}")
    if getattr(tokenizer.config, "objective", None) == "ddpm" and not 2 <= config.steps <= 1000:
        raise ConfigError(f"evaluate.steps: expected 2 to 1000 steps for a DDPM decoder, got {config.steps}")
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
    """Why the evaluation cannot use guidance; "" if it can."""
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
    settings.check_read_by(generator.kind, name, "evaluate.")
    generator.resolved_settings(settings)  # raises InputError for an unknown sampler


def evaluate_model(
    recipe: Recipe,
    model: Any,
    test: ImageSet,
    train: Callable[[], ImageSet] | None = None,
    *,
    with_baselines: bool = False,
) -> list[Record]:
    """Evaluate a trained model and return its records.

    The feature network is `evaluate.network`, else the classifier bundled for the data, else, for data other than
    Fashion-MNIST, Inception if its weights are on this machine: rFID of reconstructions, gFID and Inception Score of
    samples. Without a network, a record without a value states the reason.

    Args:
        model: a tokenizer, generator, classifier or budget head in eval mode.
        test: the test images.
        train: opens the training images, the reference of a generator's samples without `evaluate.reference`. The
            bundled classifier compares samples with test images.
        with_baselines: add the records of `evaluate.baselines`.
    """
    config, data = recipe.evaluate, recipe.data
    protocol = protocol_of(model, framing_in(data))
    protocol["weights"] = "ema" if recipe.train.ema > 0 else "raw"
    if recipe.kind == "classifier":
        return evaluate_classifier(model, test, protocol=protocol)
    if recipe.kind == "budget":
        tokenizer = store.load(str(recipe.init_from), device=next(model.parameters()).device)
        return evaluate_head(model, tokenizer, subset(test, config.num_images), seed=recipe.seed, protocol=protocol)
    device = next(model.parameters()).device
    measures = _measures(recipe, device)
    keep = kept(recipe, model)[0]
    if recipe.kind == "tokenizer":
        decoding = _readable(config.decoding(generator=False), model)
        how = Reconstructions(**vars(decoding), keep=keep, batch_size=config.batch_size, seed=recipe.seed)
        images, measuring = subset(test, config.num_images), Measuring(measures, protocol=protocol)
        records = evaluate_reconstruction(model, images, how, measuring)
        if not with_baselines:
            return records
        crop, names = protocol["crop"], measures.metrics
        return records + reconstruction_records(images, train, model.spec, metrics=names, pad=data.pad, crop=crop)
    if not measures.networks:
        reason = next(iter(measures.missing.values()), "no classifier is bundled for these images")
        name, network = ("gfid", INCEPTION) if INCEPTION in measures.missing else ("label_agreement", None)
        return [Record(name=name, value=None, num_images=0, network=network, note=reason, **protocol)]
    assert recipe.tokenizer is not None
    tokenizer = store.load(recipe.tokenizer, device=device)
    samples = _samples(recipe, tokenizer, keep)
    measuring = Measuring(measures, _references(recipe, measures, train), protocol)
    records = [
        record
        for how in _guided_and_not(recipe, samples)
        for record in evaluate_generation(model, tokenizer, test, how, measuring)
    ]
    if with_baselines and train is not None:
        crop = protocol_of(tokenizer)["crop"]
        records += distance_records(train, lambda: test, config.num_samples, measures.networks, crop=crop)
    return records


def _samples(recipe: Recipe, tokenizer: Tokenizer, keep: tuple[int, ...]) -> Samples:
    """The samples of a generator's evaluation, decoded from these numbers of tokens."""
    config = recipe.evaluate
    decoding = _readable(config.decoding(generator=True), tokenizer)
    return Samples(
        **vars(config.sampling),
        **{f"decoder_{name}": value for name, value in vars(decoding).items()},
        num_samples=config.num_samples,
        keep=keep,
        batch_size=config.batch_size,
        seed=recipe.seed,
    )


def _guided_and_not(recipe: Recipe, samples: Samples) -> list[Samples]:
    """The samples of an evaluation: as the recipe guides them, and with `evaluate.unguided` without guidance."""
    unguided = recipe.evaluate.unguided
    wanted = not uses_bundled(recipe) if unguided is None else unguided
    if not wanted or samples.guidance == 1:
        return [samples]
    plain = replace(samples, guidance=1.0, guidance_schedule=None, guidance_interval=EVERYWHERE, weak_model="")
    return [samples, plain]


def _references(
    recipe: Recipe, measures: Measures, train: Callable[[], ImageSet] | None
) -> list[Compared] | Callable[[], list[Compared]] | None:
    """What samples are compared with: a file, the training images, or for the bundled classifier the test images."""
    if recipe.evaluate.reference:
        return open_references("generation", [recipe.evaluate.reference], measures.networks)
    if uses_bundled(recipe) or train is None:
        return None
    return cache(lambda: image_references(train(), measures, of="train", about=f"{recipe.data.root}, train"))


def uses_bundled(recipe: Recipe) -> bool:
    """Whether the classifier bundled for the recipe's data measures."""
    return not recipe.evaluate.network and has_classifier(recipe.data.name, recipe.data, pad=recipe.data.pad)


def _network(recipe: Recipe) -> str:
    """The feature network other than the bundled classifier; "" is none, for Fashion-MNIST."""
    return recipe.evaluate.network or ("" if recipe.data.name == "fashion_mnist" else INCEPTION)


def _measures(recipe: Recipe, device: str | torch.device) -> Measures:
    """The metrics and the feature network of the evaluation; `missing` states why there is no network."""
    data = recipe.data
    kind: Kind = "reconstruction" if recipe.kind == "tokenizer" else "generation"
    trained, missing = training_networks(to_yaml(recipe)), dict[str, str]()
    if uses_bundled(recipe):
        reason = why_not(CLASSIFIER, trained)
        measures = by_classifier(
            None if reason else classifier_for(data.name, data, device, pad=data.pad), kind, data.pad
        )
        return replace(measures, missing={CLASSIFIER: reason}) if reason else measures
    text = _network(recipe)
    networks: list[FrozenNetwork] = []
    if reason := why_not(text, trained) if text else "":
        raise ConfigError(f"evaluate.network: {reason}")
    try:
        if text:
            with torch.random.fork_rng():
                networks = [open_network(text, device=device, pad=data.pad, download=False)]
    except WeightsError as error:
        if recipe.evaluate.network:
            raise ConfigError(f"evaluate.network: {error}") from None
        missing[INCEPTION] = str(error)
    metrics = ["psnr", "mse"] if kind == "reconstruction" else []
    for network in networks:
        metrics += [*(["labels"] if network.classifies else []), "fd", *(["score"] if network.num_classes else [])]
        if kind == "reconstruction" and network.num_classes and not network.classifies:
            metrics += ["semantic", "semantic5"]
    return Measures(tuple(metrics), networks, data.pad, missing=missing)


def check_measures(recipe: Recipe) -> None:
    """Check the `evaluate` section before a training is built, which may take long (a token cache).

    Opens the network and the reference, if it names them.

    Raises:
        ConfigError, DataError, InputError: they are missing or do not fit together, or see `check_evaluation`.
    """
    with suppress(WeightsError, NotImplementedError, RuntimeError):  # a model of the user's own may need values
        with torch.device("meta"):
            model = store.build_model(recipe.model)
        check_evaluation(recipe, model)
    if recipe.kind not in ("classifier", "budget") and (recipe.evaluate.network or recipe.evaluate.reference):
        _references(recipe, _measures(recipe, "cpu"), None)


def evaluation_notes(recipe: Recipe, model: Any) -> list[str]:
    """Lines about what the evaluation at the end does not do as the recipe says; reads neither data nor weights.

    Args:
        model: the recipe's model; it may be on the meta device.
    """
    if recipe.kind in ("classifier", "budget"):
        return []
    keep, above = kept(recipe, model)
    notes = []
    if above:
        notes.append(
            f"evaluate.keep: {', '.join(map(str, above))} left out, the model has {max(keep)} tokens; measured: "
            f"{', '.join(map(str, keep))}"
        )
    if not recipe.evaluate.network and _network(recipe) == INCEPTION and (reason := inception_missing()):
        what = "rFID" if recipe.kind == "tokenizer" else "gFID and Inception Score"
        notes.append(
            f"evaluation at the end: {what} will not be measured ({reason}); else set evaluate.network=inception:FILE"
        )
    return notes


def forecast_notes(recipe: Recipe) -> list[str]:
    """The lines of `evaluation_notes` from the recipe alone, after the checks that a training makes at its start.

    What depends on a generator's tokenizer is not checked if there is no such model yet.

    Raises:
        ConfigError: as `check_evaluation`.
    """
    with torch.device("meta"):
        model = store.build_model(recipe.model)
    with suppress(WeightsError):
        check_evaluation(recipe, model)
    return evaluation_notes(recipe, model)


def kept(recipe: Recipe, model: Any) -> tuple[tuple[int, ...], list[int]]:
    """The numbers of tokens to decode, always with all tokens, and the numbers in `evaluate.keep` that are larger.

    The first is empty if the recipe leaves the choice to the evaluation.
    """
    wanted, length = recipe.evaluate.keep, _length(recipe, model)
    if not wanted:
        return (), []
    return tuple(dict.fromkeys([*(k for k in wanted if k <= length), length])), [k for k in wanted if k > length]


def _length(recipe: Recipe, model: Any) -> int:
    """The number of tokens of the trained model."""
    return model.spec.length if recipe.kind == "tokenizer" else model.config.num_tokens


def _readable(decoding: Decoding, tokenizer: Tokenizer) -> Decoding:
    """The settings without steps if the decoder is deterministic: in a recipe, steps always have a value."""
    return replace(decoding, steps=None) if tokenizer.spec.deterministic else decoding

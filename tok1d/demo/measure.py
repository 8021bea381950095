"""Images and measurements of a tokenizer with its generator, for the demo."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tok1d.analyze.prefix import CurvePoint
from tok1d.config.classes import Classes, model_classes
from tok1d.config.fields import build_config
from tok1d.config.load import stored_tree
from tok1d.config.recipe import EvaluateConfig, Recipe
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.demo.page import Check, ModelResults, Probe
from tok1d.evaluate.baselines import THUMBNAIL
from tok1d.evaluate.probe import linear_probe
from tok1d.html.parts import Strip
from tok1d.inference.conditions import conditioning_of
from tok1d.pictures import data_uri, grid, save_png
from tok1d.tokenizers.prefix import prefix_lengths
from tok1d.zoo.card import Card
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer
from tok1d.zoo.record import BASELINE, Record

SEED = 0
NUM_SHOWN = 10  # images in a row
PROBE_TRAIN, PROBE_TEST = 5000, 1000  # images


def protocol(card: Card) -> EvaluateConfig:
    """The evaluation settings of the recipe in a model's card: steps, guidance, temperature."""
    evaluate = stored_tree(card.recipe).get("evaluate", {})
    assert isinstance(evaluate, dict), "a section of a recipe is a mapping"
    return build_config(EvaluateConfig, evaluate)


def noise() -> torch.Generator:
    """A random number generator with the fixed seed SEED."""
    return torch.Generator().manual_seed(SEED)


def steps_of(tokenizer: LoadedTokenizer, how: EvaluateConfig) -> int | None:
    """Sampling steps of the tokenizer's decoder; None for a deterministic decoder."""
    return None if tokenizer.spec.deterministic else how.steps


def condition_of(tokenizer: LoadedTokenizer, labels: Tensor, classes: Classes) -> Tensor | None:
    """The `cond` argument of a tokenizer: labels (B,) of these classes where it is conditioned on them, else None."""
    return conditioning_of(tokenizer, classes).of(labels, labels.device)


def reconstruct(tokenizer: LoadedTokenizer, x: Tensor, cond: Tensor | None = None) -> dict[int, Tensor]:
    """Reconstructions (B, C, H, W) by number of tokens, 1, 2, 4, ..., all from the same initial noise."""
    how, tokens = protocol(tokenizer.card), tokenizer.encode(x, cond)
    steps = steps_of(tokenizer, how)
    return {
        k: tokenizer.decode(tokens, cond, keep=k, steps=steps, guidance=how.guidance, generator=noise())
        for k in prefix_lengths(tokenizer.spec.length)
    }


def sample(generator: LoadedGenerator, tokenizer: LoadedTokenizer, num: int) -> dict[int, Tensor]:
    """`num` samples of each class, decoded from 1, 2, 4, ... tokens: number -> (num_classes * num, C, H, W)."""
    how = protocol(generator.card)
    labels = torch.arange(generator.config.num_classes).repeat_interleave(num)
    tokens = generator.sample(labels, guidance=how.guidance, temperature=how.temperature, generator=noise())
    cond = condition_of(tokenizer, labels, model_classes(generator))
    return {
        k: tokenizer.decode(tokens, cond, keep=k, steps=steps_of(tokenizer, how), generator=noise())
        for k in prefix_lengths(generator.config.num_tokens)
    }


@torch.no_grad()
def quick_look(generator: LoadedGenerator, tokenizer: LoadedTokenizer, test: ImageSet, folder: Path) -> list[Path]:
    """Write two images: test images above their reconstructions, and samples, one row per class."""
    x, labels = test.batch(range(min(8, len(test))))
    rows = torch.cat([x, *reconstruct(tokenizer, x, condition_of(tokenizer, labels, image_classes(test))).values()])
    samples = list(sample(generator, tokenizer, 4).values())[-1]
    return [
        save_png(grid(rows, len(x), zoom=3), folder / "reconstructions.png"),
        save_png(grid(samples, 4, zoom=3), folder / "samples.png"),
    ]


@torch.no_grad()
def results(name: str, generator: LoadedGenerator, tokenizer: LoadedTokenizer, test: ImageSet) -> ModelResults:
    """The images and recorded numbers of a tokenizer with its generator."""
    x, labels = test.batch(range(min(NUM_SHOWN, len(test))))
    decoded = reconstruct(tokenizer, x, condition_of(tokenizer, labels, image_classes(test)))
    generated = sample(generator, tokenizer, NUM_SHOWN)
    encoding, sampling = protocol(tokenizer.card), protocol(generator.card)
    samples = list(generated.values())[-1].chunk(generator.config.num_classes)
    return ModelResults(
        name=name,
        about=f"tokenizer {_training(tokenizer)}; generator {_training(generator)}",
        decoding=f"{encoding.steps} steps, guidance {encoding.guidance:g}, seed {SEED}",
        sampling=f"guidance {sampling.guidance:g}, temperature {sampling.temperature:g}, "
        f"{sampling.steps} decoder steps, seed {SEED}",
        reconstructions=[_strip("original", x), *(_strip(_tokens(k), images) for k, images in decoded.items())],
        by_length=[_strip(_tokens(k), images[::NUM_SHOWN]) for k, images in generated.items()],
        samples=[_strip(label, images) for label, images in zip(test.class_names, samples)],
        reconstruction_records=tokenizer.card.records,
        generation_records=generator.card.records,
    )


def _training(model: LoadedTokenizer | LoadedGenerator) -> str:
    card, count = model.card, sum(parameter.numel() for parameter in model.parameters())
    facts = [f"{count / 1e6:.2f} M parameters"]
    facts += [f"{card.trained['steps']:,} steps"] if "steps" in card.trained else []
    facts += [f"{card.trained['seconds']:,.0f} s"] if "seconds" in card.trained else []
    facts += [f"on {card.trained['device']}"] if "device" in card.trained else []
    return ", ".join([*facts, f"weights {card.fingerprint}"])


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _strip(label: str, images: Tensor) -> Strip:
    return Strip(label, data_uri(grid(images, len(images), background=0.5)))


@torch.no_grad()
def probes(tokenizers: dict[str, LoadedTokenizer], train: ImageSet, test: ImageSet) -> tuple[list[Probe], str]:
    """Linear probes of the first token, of all tokens and of the pixels; and the protocol as text."""
    num_train, num_test = min(PROBE_TRAIN, len(train)), min(PROBE_TEST, len(test))
    (x, y), (x_test, y_test) = train.batch(range(num_train)), test.batch(range(num_test))

    def probe(model: str, name: str, features: Tensor, features_test: Tensor) -> Probe:
        features, features_test = features.flatten(1), features_test.flatten(1)
        accuracy = linear_probe(features, y, features_test, y_test, seed=SEED)
        return Probe(model, name, features.shape[1], accuracy)

    found = []
    for model, tokenizer in tokenizers.items():
        tokens, tokens_test = (
            torch.cat(
                [
                    tokenizer.encode(part, condition_of(tokenizer, own, image_classes(test)))
                    for part, own in zip(x_all.split(500), labels.split(500))
                ]
            )
            for x_all, labels in ((x, y), (x_test, y_test))
        )
        length = tokenizer.spec.length
        found.append(probe(model, "first token", tokens[:, :1], tokens_test[:, :1]))
        found.append(probe(model, f"all {length} tokens", tokens, tokens_test))
    found.append(probe("baseline", "raw pixels", x, x_test))
    text = (
        f"Logistic regression on standardised features of the first {num_train:,} training images; "
        f"accuracy on the first {num_test:,} test images; chance is {1 / test.num_classes:.0%}."
    )
    return found, text


def checks(tokenizer: LoadedTokenizer, generator: LoadedGenerator, curve: Sequence[CurvePoint]) -> list[Check]:
    """The demo's targets, and the values measured on these models."""
    length = tokenizer.spec.length
    errors = [_find(tokenizer.card.records, "mse", k) for k in prefix_lengths(length)]
    psnr = _find(tokenizer.card.records, "psnr", length)
    error, thumbnail = errors[-1], _find(tokenizer.card.records, f"{BASELINE}{THUMBNAIL}:mse", None)
    agreement = _find(generator.card.records, "label_agreement", None)
    quarter = max(length // 4, 1)
    share = next(point.share for point in curve if point.keep == quarter)
    numbers = [record.value for record in errors if record is not None and record.value is not None]
    falling = all(later < earlier for earlier, later in pairwise(numbers))
    return [
        Check(
            f"squared error from {', '.join(map(str, prefix_lengths(length)))} tokens",
            ", ".join(f"{number:.4f}" for number in numbers) or "unavailable",
            "strictly decreasing",
            falling and len(numbers) == len(errors),
        ),
        Check(
            "squared error from all tokens",
            f"{_value(error)}; of 8x8 thumbnails {_value(thumbnail)}",
            "below that of thumbnails",
            _reaches(thumbnail.value if thumbnail else None, error.value if error and error.value else math.inf),
        ),
        Check("PSNR from all tokens", _value(psnr), "at least 15 dB", _reaches(psnr.value if psnr else None, 15.0)),
        Check(
            f"share of the loss reduction by the first quarter of the tokens ({_tokens(quarter)})",
            "unavailable: the tokens do not reduce the loss" if share is None else f"{share:.1%}",
            "at least 50 %",
            _reaches(share, 0.5),
        ),
        Check("label agreement of generated images", _value(agreement), "reported"),
    ]


def times(seconds: dict[str, float], whole: bool) -> list[Check]:
    """Training times and the total; `whole`: the whole demo ran in this call."""
    total = "from start to report" if whole else "this call only; part of the demo ran in an earlier call"
    return [
        Check("training of the tokenizer", f"{seconds['tokenizer']:.0f} s"),
        Check("training of the generator", f"{seconds['generator']:.0f} s"),
        Check("total", f"{seconds['this call']:.0f} s ({total})"),
    ]


def commands(tokenizer: Recipe, generator: Recipe, length: int) -> list[tuple[str, str]]:
    """Commands to try next with the two runs: (purpose, command line)."""
    own_tokenizer, own_generator = shlex.quote(f"{tokenizer.out}/model"), shlex.quote(f"{generator.out}/model")
    keep = ",".join(map(str, prefix_lengths(length)))
    return [
        (
            "Try the two models in a browser, with pictures of your own (pip install 'tok1d[web]'):",
            f"tok1d serve {own_tokenizer} {own_generator}",
        ),
        (
            "Generate more images of some classes:",
            f"tok1d generate {own_generator} --classes 3,7 --num 16 --out runs/more",
        ),
        (
            "Reconstruct your own images, a folder or one file:",
            f"tok1d reconstruct {own_tokenizer} IMAGES --keep {keep} --out runs/mine",
        ),
        (
            "Train longer, or change any other key (tok1d config --fields lists them):",
            f"tok1d train fashion_mnist/demo_tokenizer train.steps={4 * tokenizer.train.steps} out=runs/longer",
        ),
    ]


def _find(records: Sequence[Record], name: str, keep: int | None) -> Record | None:
    """The record of that name for `keep` tokens; for the most tokens where `keep` is None."""
    named = [record for record in records if record.name == name and keep in (None, record.keep)]
    return max(named, key=lambda record: record.keep or 0, default=None)


def _value(record: Record | None) -> str:
    if record is None or record.value is None:
        return f"unavailable: {record.note if record else 'not measured'}"
    return f"{record.value:.4g} {record.unit}".rstrip() + f" ({record.num_images:,} images)"


def _reaches(value: float | None, target: float) -> bool:
    return value is not None and value >= target

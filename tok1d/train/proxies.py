"""Cheap measurements of how well tokens can be generated, while their tokenizer is trained (`train.proxies_every`).

They use the averaged weights, the first images of either split, and fixed sizes and seeds, so that numbers of different
steps and runs can be compared. They do not change the training: its weights are the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from tok1d.analyze.mixture import fit_mixtures
from tok1d.analyze.prefix import explained_curve
from tok1d.config.recipe import Recipe
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.data.subset import subset
from tok1d.errors import InputError, Tok1dError
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.metrics import Moments, frechet_distance
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.probe import linear_probe
from tok1d.evaluate.protocol import classifier_for
from tok1d.evaluate.reconstruction import Classified, classifier_name, evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions
from tok1d.generators.llamagen import LlamaGenConfig
from tok1d.generators.sit import SiTConfig
from tok1d.inference.cache import encode_batch
from tok1d.inference.conditions import ConditionedImages, conditioning_of
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.prefix import prefix_lengths
from tok1d.train.images import open_split
from tok1d.train.log import LogEntry
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer
from tok1d.zoo.store import build_model

Numbers = dict[str, float]

TRAIN_IMAGES, TEST_IMAGES, PREFIX_IMAGES = 2000, 500, 200  # to fit on, to test the probe, for the prefix curve
COMPONENTS, DIMS = 10, 16  # of the Gaussian mixture: components, and principal components of the data
GENERATOR_STEPS, GENERATOR_BATCH = 300, 128  # training of the small generator, with learning rate 1e-3
SIZE = {"dim": 64, "depth": 2, "heads": 4}  # of the small generator
SAMPLES, SAMPLE_STEPS, DECODER_STEPS = 1000, 20, 10  # classes in turn, no guidance, Euler
BATCH = 250  # images or samples at a time


@dataclass
class Proxies:
    """The measurements of a tokenizer for the log. Images are opened at the first call.

    Args:
        recipe: the tokenizer's recipe; only its data section is used.
    """

    recipe: Recipe
    _sets: list[ImageSet] = field(default_factory=list)

    def __call__(self, model: nn.Module) -> LogEntry:
        """Numbers for the log, named proxy_NAME; `proxy_missing` lists what could not be measured, with the reason.

        `proxy_psnr@k`: PSNR in dB of reconstructions from k tokens; for diffusion decoders `proxy_loss@k`, their
        denoising loss. `proxy_probe`: accuracy of a linear classifier on the tokens. `proxy_mixture`: nats per image
        by which a mixture of 10 Gaussians is more likely than a single Gaussian. `proxy_fd@NETWORK`: Fréchet distance
        of decoded samples of a small generator in the features of the bundled classifier; where no classifier fits
        the images `proxy_fd@tokens`, the Fréchet distance of its tokens.
        """
        found: LogEntry = {}
        missing = []
        tokens = _Tokens(self.recipe, cast(LoadedTokenizer, model), *self._images())
        for name, measure in MEASURES.items():
            try:
                found |= {f"proxy_{key}": round(value, 6) for key, value in measure(tokens).items()}
            except Tok1dError as error:  # for example tokens that are all equal; the training continues
                missing.append(f"{name}: {error}")
        return {**found, "proxy_missing": missing} if missing else found

    def _images(self) -> list[ImageSet]:
        if not self._sets:
            self._sets.append(subset(open_split(self.recipe, "train"), TRAIN_IMAGES))
            self._sets.append(subset(open_split(self.recipe, "test"), TEST_IMAGES))
        return self._sets


class _Tokens:
    """Current tokens and labels of the fixed images."""

    def __init__(self, recipe: Recipe, tokenizer: LoadedTokenizer, train: ImageSet, test: ImageSet) -> None:
        self.recipe, self.tokenizer, self.train, self.test = recipe, tokenizer, train, test
        self.device = next(tokenizer.parameters()).device
        self.train_tokens, self.train_labels = self._encode(train)
        self.test_tokens, self.test_labels = self._encode(test)

    @torch.no_grad()
    def _encode(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        conditioned, tokens, labels = ConditionedImages(self.tokenizer, images), [], []
        for rows in _ranges(len(images)):
            x, y, cond = conditioned.batch(rows)
            tokens.append(encode_batch(self.tokenizer, x, cond, self.tokenizer.spec.length).to(self.device))
            labels.append(y)
        return torch.cat(tokens), torch.cat(labels)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Tokens (N, K, D), or the codebook entries of ids (N, K), as float64 rows (N, K * D) on the CPU."""
        if self.tokenizer.spec.vocab_size is not None:
            with torch.no_grad():
                tokens = cast(Any, self.tokenizer).bottleneck.embed(tokens)
        return tokens.flatten(1).double().cpu()


def _ranges(count: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def prefix_curve(tokens: _Tokens) -> Numbers:
    """PSNR or denoising loss from the first 1, 2, 4, ... tokens; from all tokens where they have no order."""
    tokenizer, images = tokens.tokenizer, subset(tokens.test, PREFIX_IMAGES)
    if hasattr(tokenizer, "prediction_error"):
        lengths = prefix_lengths(tokenizer.spec.length)
        points = explained_curve(tokenizer, images, keep=lengths, num_images=len(images), num_times=5)
        return {f"loss@{point.keep}": point.loss for point in points}
    measuring = Measuring(Measures(pad=tokens.recipe.data.pad))
    records = evaluate_reconstruction(tokenizer, images, Reconstructions(batch_size=100), measuring)
    return {f"psnr@{record.keep}": float(record.value or 0) for record in records if record.name == "psnr"}


def probe(tokens: _Tokens) -> Numbers:
    """Test accuracy of a linear classifier on the tokens."""
    train, test = tokens.vectors(tokens.train_tokens), tokens.vectors(tokens.test_tokens)
    return {"probe": linear_probe(train, tokens.train_labels, test, tokens.test_labels, seed=0)}


def mixture(tokens: _Tokens) -> Numbers:
    """Nats per image by which a Gaussian mixture is more likely than one Gaussian, on standardised components."""
    rows = tokens.vectors(tokens.train_tokens)
    dims = min(DIMS, *rows.shape)
    one, many = fit_mixtures(rows, [1, min(COMPONENTS, len(rows))], dims=dims).points
    return {"mixture": one.nll - many.nll}


def generator_distance(tokens: _Tokens) -> Numbers:
    """Fréchet distance of samples of a small SiT (for ids a small LlamaGen) that is trained on the tokens."""
    data = tokens.recipe.data
    classifier = classifier_for(data.name, data, tokens.device, pad=data.pad)
    if classifier is None and tokens.tokenizer.spec.vocab_size is not None:
        raise InputError(
            "the Fréchet distance of ids needs a classifier of the images, and no classifier is bundled for these"
        )
    samples, labels = _sample(tokens, _train_generator(tokens))
    if classifier is None:
        return {"fd@tokens": _token_distance(tokens.vectors(tokens.train_tokens), tokens.vectors(samples))}
    name = classifier_name(classifier).partition("@")[0]
    return {f"fd@{name}": _image_distance(tokens, classifier, samples, labels)}


def _train_generator(tokens: _Tokens) -> LoadedGenerator:
    """The small generator, trained on the tokens of the training images."""
    spec, classes = tokens.tokenizer.spec, tokens.train.num_classes
    torch.manual_seed(0)
    model: Any = build_model(_config(spec, classes)).to(tokens.device)
    inputs, labels = tokens.train_tokens, tokens.train_labels.to(tokens.device)
    if spec.vocab_size is None:
        model.fit_statistics([inputs])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    rng = torch.Generator().manual_seed(0)
    model.train()
    with torch.enable_grad():
        for _ in range(GENERATOR_STEPS):
            rows = torch.randint(len(inputs), (GENERATOR_BATCH,), generator=rng).to(tokens.device)
            losses = model.losses((inputs[rows], labels[rows] if classes else None), 0.0)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
    return model.eval()


def _config(spec: TokenSpec, classes: int) -> LlamaGenConfig | SiTConfig:
    shape: dict[str, Any] = {"num_tokens": spec.length, "num_classes": classes, **SIZE}
    if spec.vocab_size is not None:
        return LlamaGenConfig(**shape, vocab_size=spec.vocab_size, token_dropout=0.0, dropout=0.0)
    assert spec.dim is not None, "continuous tokens"
    return SiTConfig(**shape, token_dim=spec.dim, sampler="euler", steps=SAMPLE_STEPS)


@torch.no_grad()
def _sample(tokens: _Tokens, model: LoadedGenerator) -> tuple[Tensor, Tensor]:
    """Sampled tokens, as many as training images but at most SAMPLES, and their classes in turn."""
    classes, count = tokens.train.num_classes, min(SAMPLES, len(tokens.train))
    labels = torch.arange(count, device=tokens.device) % max(classes, 1)
    rng = torch.Generator(tokens.device).manual_seed(0)
    parts = [
        model.sample(labels[rows.start : rows.stop] if classes else None, num=len(rows), generator=rng)
        for rows in _ranges(count)
    ]
    return torch.cat(parts), labels


def _token_distance(real: Tensor, samples: Tensor) -> float:
    """Fréchet distance of rows (N, F), on the standardised principal components of the real ones."""
    mean = real.mean(0)
    _, scales, axes = torch.linalg.svd(real - mean, full_matrices=False)
    dims = min(DIMS, int((scales > 1e-9 * scales[0]).sum()))
    moments = []
    for rows in (real, samples):
        moments.append(Moments(dims))
        moments[-1].update((rows - mean) @ axes[:dims].T / scales[:dims] * len(real) ** 0.5)
    return frechet_distance(*moments)


@torch.no_grad()
def _image_distance(tokens: _Tokens, classifier: CNN, samples: Tensor, labels: Tensor) -> float:
    """Fréchet distance of decoded samples to the training images, in the classifier's features."""
    tokenizer, pad = tokens.tokenizer, tokens.recipe.data.pad
    used = conditioning_of(tokenizer, image_classes(tokens.train))
    options: dict[str, Any] = {}
    if not tokenizer.spec.deterministic:
        options["steps"] = min(DECODER_STEPS, tokenizer.config.steps)
        options["sampler"] = "ddim" if tokenizer.config.objective == "ddpm" else "euler"
    decoded, real = Classified(classifier, pad), Classified(classifier, pad)
    rng = torch.Generator(tokens.device).manual_seed(1)
    for rows in _ranges(len(samples)):
        part = slice(rows.start, rows.stop)
        cond = used.of(labels[part], tokens.device)
        decoded.update(tokenizer.decode(samples[part], cond, generator=rng, **options), None)
    for rows in _ranges(len(tokens.train)):
        real.update(tokens.train.batch(rows)[0].to(tokens.device), None)
    return decoded.distance(real)


MEASURES: dict[str, Callable[[_Tokens], Numbers]] = {
    "prefix curve": prefix_curve,
    "probe": probe,
    "mixture": mixture,
    "generator": generator_distance,
}

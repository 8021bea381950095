"""Cheap proxies of how well tokens can be generated, while their tokenizer trains (`train.proxies_every`).

On the averaged weights, on the first images of either split, at fixed sizes and seeds, so that numbers of different
steps and runs compare. A run with proxies ends with the same weights as one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tok1d.analyze.mixture import fit_mixtures
from tok1d.analyze.prefix import explained_curve
from tok1d.config.recipe import Recipe
from tok1d.data.subset import subset
from tok1d.errors import InputError, Tok1dError
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.metrics import Moments, frechet_distance
from tok1d.evaluate.probe import linear_probe
from tok1d.evaluate.protocol import classifier_for
from tok1d.evaluate.reconstruction import Classified, classifier_name, evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions
from tok1d.generators.llamagen import LlamaGenConfig
from tok1d.generators.sit import SiTConfig
from tok1d.inference.cache import encode_batch
from tok1d.inference.conditions import ConditionedImages, choose_condition, cond_for
from tok1d.tokenizers.prefix import prefix_lengths
from tok1d.train.images import open_split
from tok1d.zoo.store import build_model

Numbers = dict[str, float]

TRAIN_IMAGES, TEST_IMAGES, PREFIX_IMAGES = 2000, 500, 200  # for fitting; for the probe's test; for the prefix curve
COMPONENTS, DIMS = 10, 16  # of the Gaussian mixture, on so many principal components
GENERATOR_STEPS, GENERATOR_BATCH = 300, 128  # of the tiny generator's training, at a learning rate of 1e-3
SIZE: dict[str, Any] = {"dim": 64, "depth": 2, "heads": 4}  # of the tiny generator
SAMPLES, SAMPLE_STEPS, DECODER_STEPS = 1000, 20, 10  # classes in turn, no guidance, Euler


@dataclass
class Proxies:
    """What `train.proxies_every` measures of a tokenizer; images are read at the first call.

    Args:
        recipe: a tokenizer's; its data and judge are used.
    """

    recipe: Recipe
    _sets: list[Any] = field(default_factory=list)

    def __call__(self, tokenizer: Any) -> dict[str, Any]:
        """Numbers for the log, named proxy_...; what cannot be measured is named, with its reason, in proxy_missing.

        `proxy_psnr@k`: prefix curve in dB; of a diffusion decoder `proxy_loss@k`, its denoising loss. `proxy_probe`:
        accuracy of a linear classifier on the tokens. `proxy_mixture`: nats by which 10 Gaussians fit them better than
        one does. `proxy_fd@NETWORK`: Fréchet distance of a tiny generator's samples in the judge's features; where no
        judge fits the images `proxy_fd@tokens`, that of its tokens.
        """
        found: dict[str, Any] = {}
        missing = []
        sample = _Sample(self.recipe, tokenizer, *self._images())
        for name, measure in MEASURES.items():
            try:
                found |= {f"proxy_{key}": round(value, 6) for key, value in measure(sample).items()}
            except Tok1dError as error:  # tokens that collapsed, say: the training goes on
                missing.append(f"{name}: {error}")
        return found | ({"proxy_missing": missing} if missing else {})

    def _images(self) -> list[Any]:
        if not self._sets:
            for split, num in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
                self._sets.append(subset(open_split(self.recipe, split), num))
        return self._sets


class _Sample:
    """Tokens and labels of the fixed images, as the tokenizer makes them now."""

    def __init__(self, recipe: Recipe, tokenizer: Any, train: Any, test: Any) -> None:
        self.recipe, self.tokenizer, self.test, self.real = recipe, tokenizer, test, train
        self.device = next(tokenizer.parameters()).device
        self.train_tokens, self.train_labels = self._tokens(train)
        self.test_tokens, self.test_labels = self._tokens(test)

    @torch.no_grad()
    def _tokens(self, images: Any) -> tuple[Tensor, Tensor]:

        told, tokens, labels = ConditionedImages(self.tokenizer, images), [], []
        for rows in _ranges(len(images)):
            x, y, cond = told.batch(rows)
            tokens.append(encode_batch(self.tokenizer, x, cond, self.tokenizer.spec.length).to(self.device))
            labels.append(y)
        return torch.cat(tokens), torch.cat(labels)

    def vectors(self, tokens: Tensor) -> Tensor:
        """(N, F) rows of numbers: tokens, or what the codebook holds for ids."""
        if self.tokenizer.spec.vocab_size is not None:
            with torch.no_grad():
                tokens = self.tokenizer.bottleneck.embed(tokens)
        return tokens.flatten(1).double().cpu()


def _ranges(count: int, size: int = 250) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def prefix_curve(sample: _Sample) -> Numbers:
    """PSNR of reconstructions, or the denoising loss, from 1, 2, 4, ... tokens; of tokens without order from all."""

    tokenizer, images = sample.tokenizer, subset(sample.test, PREFIX_IMAGES)
    if hasattr(tokenizer, "prediction_error"):
        lengths = prefix_lengths(tokenizer.spec.length)
        points = explained_curve(tokenizer, images, keep=lengths, num_images=len(images), num_times=5)
        return {f"loss@{point.keep}": point.loss for point in points}
    records = evaluate_reconstruction(
        tokenizer, images, Reconstructions(batch_size=100), Measuring(Measures(pad=sample.recipe.data.pad))
    )
    return {f"psnr@{record.keep}": float(record.value or 0) for record in records if record.name == "psnr"}


def probe(sample: _Sample) -> Numbers:
    """Test accuracy of a linear classifier on the tokens."""

    train, test = (sample.vectors(tokens) for tokens in (sample.train_tokens, sample.test_tokens))
    return {"probe": linear_probe(train, sample.train_labels, test, sample.test_labels, seed=0)}


def mixture(sample: _Sample) -> Numbers:
    """Nats an image by which a mixture of Gaussians is likelier than a single one, on standardised components."""

    rows = sample.vectors(sample.train_tokens)
    dims = min(DIMS, *rows.shape)
    one, many = fit_mixtures(rows, [1, min(COMPONENTS, len(rows))], dims=dims).points
    return {"mixture": one.nll - many.nll}


def generator_distance(sample: _Sample) -> Numbers:
    """Fréchet distance of a tiny SiT's (of ids a tiny LlamaGen's) samples after a short training on the tokens."""

    data = sample.recipe.data
    judge = classifier_for(data.name, data, sample.device, pad=data.pad)
    if judge is None and sample.tokenizer.spec.vocab_size is not None:
        raise InputError("ids have no distance of their own, and no judge network is bundled for these images")
    tokens, labels = _draw(sample, _train(sample))
    if judge is None:
        return {"fd@tokens": _token_distance(sample.vectors(sample.train_tokens), sample.vectors(tokens))}
    return {f"fd@{classifier_name(judge).partition('@')[0]}": _image_distance(sample, judge, tokens, labels)}


def _train(sample: _Sample) -> Any:
    """The tiny generator, trained on the tokens of the training images."""

    spec, classes = sample.tokenizer.spec, sample.real.num_classes
    torch.manual_seed(0)
    model: Any = build_model(_config(spec, classes)).to(sample.device)
    tokens, labels = sample.train_tokens, sample.train_labels.to(sample.device)
    if spec.vocab_size is None:
        model.fit_statistics([tokens])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    source = torch.Generator().manual_seed(0)
    model.train()
    with torch.enable_grad():
        for _ in range(GENERATOR_STEPS):
            rows = torch.randint(len(tokens), (GENERATOR_BATCH,), generator=source).to(sample.device)
            losses = model.losses((tokens[rows], labels[rows] if classes else None), 0.0)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
    return model.eval()


def _config(spec: Any, classes: int) -> Any:
    if spec.vocab_size is not None:
        shape: dict[str, Any] = {"num_tokens": spec.length, "vocab_size": spec.vocab_size, "num_classes": classes}
        return LlamaGenConfig(**shape, **SIZE, token_dropout=0.0, dropout=0.0)

    shape = {"num_tokens": spec.length, "token_dim": spec.dim, "num_classes": classes}
    return SiTConfig(**shape, **SIZE, sampler="euler", steps=SAMPLE_STEPS)


@torch.no_grad()
def _draw(sample: _Sample, model: Any) -> tuple[Tensor, Tensor]:
    """Tokens of as many samples as there are training images, at most `SAMPLES`, and their classes in turn."""
    classes, count = sample.real.num_classes, min(SAMPLES, len(sample.real))
    labels = torch.arange(count, device=sample.device) % max(classes, 1)
    source = torch.Generator(sample.device).manual_seed(0)
    parts = [
        model.sample(labels[rows.start : rows.stop] if classes else None, num=len(rows), generator=source)
        for rows in _ranges(count)
    ]
    return torch.cat(parts), labels


def _token_distance(real: Tensor, drawn: Tensor) -> float:
    """Fréchet distance of (N, F) rows on the real ones' standardised principal components."""

    mean = real.mean(0)
    _, scales, axes = torch.linalg.svd(real - mean, full_matrices=False)
    dims = min(DIMS, int((scales > 1e-9 * scales[0]).sum()))
    moments = []
    for rows in (real, drawn):
        moments.append(Moments(dims))
        moments[-1].update((rows - mean) @ axes[:dims].T / scales[:dims] * len(real) ** 0.5)
    return frechet_distance(*moments)


@torch.no_grad()
def _image_distance(sample: _Sample, judge: Any, tokens: Tensor, labels: Tensor) -> float:
    """Fréchet distance of decoded samples to the training images, in the judge's features."""

    tokenizer, pad = sample.tokenizer, sample.recipe.data.pad
    used = choose_condition(tokenizer, sample.real.num_classes)
    options: dict[str, Any] = {}
    if not tokenizer.spec.deterministic:
        options["steps"] = min(DECODER_STEPS, tokenizer.config.steps)
        options["sampler"] = "ddim" if tokenizer.config.objective == "ddpm" else "euler"
    drawn, real = Classified(judge, pad), Classified(judge, pad)
    source = torch.Generator(sample.device).manual_seed(1)
    for rows in _ranges(len(tokens)):
        part = slice(rows.start, rows.stop)
        cond = cond_for(used, labels[part], sample.device)
        drawn.update(tokenizer.decode(tokens[part], cond, generator=source, **options), None)
    for rows in _ranges(len(sample.real)):
        real.update(sample.real.batch(rows)[0].to(sample.device), None)
    return drawn.distance(real)


MEASURES: dict[str, Callable[[_Sample], Numbers]] = {
    "prefix curve": prefix_curve,
    "probe": probe,
    "mixture": mixture,
    "generator": generator_distance,
}

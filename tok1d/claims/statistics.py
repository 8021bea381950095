"""The statistics of claims by name: one number of a finished arm.

To add a statistic, write a function of a `Trained` and a `Measurement` and add it to `STATISTICS`. A statistic without
a function is named so that claims can be listed: they are not run, for the reason that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tok1d.analyze.idle import token_uses
from tok1d.analyze.increments import increments
from tok1d.analyze.judged import has_flow
from tok1d.analyze.mixture import fit_mixtures
from tok1d.analyze.prefix import explained_curve
from tok1d.analyze.request import Spectra
from tok1d.analyze.spectrum import spectrum
from tok1d.analyze.swap import VARIANTS, swap
from tok1d.claims.claim import Claim, Measurement
from tok1d.claims.trained import Trained
from tok1d.data.base import ImageSet
from tok1d.errors import InputError
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Compared, Gathered, Measures, Measuring
from tok1d.evaluate.probe import linear_probe
from tok1d.evaluate.protocol import classifier_for
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.reference import describe_images
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, noise_of
from tok1d.studies.learner import held_out_loss, token_set
from tok1d.studies.modes import mode_error
from tok1d.studies.order import ORDERS, orders_of
from tok1d.studies.request import ModeSettings, Ordering
from tok1d.zoo.record import Record

PROBE_IMAGES = 5  # training images of a probe for each test image
TIMES = 10  # times of a denoising loss
SMALL_STEPS = 1000  # of the small generators of order_loss and mode_error
MODE_SAMPLES = 1024  # synthetic training samples
BATCH = 250
Function = Callable[[Trained, Measurement], float]


@dataclass(frozen=True)
class Statistic:
    """A measurement of a finished arm.

    Args:
        about: what it is, with its range.
        of: kind of the arms that have it.
        unit: of the number; "" if it has none.
        reads: settings that it uses.
        function: None if the library cannot compute it yet; `missing` states what is missing.
    """

    about: str
    of: str
    function: Function | None = None
    unit: str = ""
    reads: tuple[str, ...] = ()
    missing: str = ""


def record(name: str) -> Function:
    """The statistic of a metric of the recipe's evaluation, by the name of its record without the network."""

    def measure(trained: Trained, how: Measurement) -> float:
        found = trained.records(how, how.keep)
        if name not in found:
            raise InputError(
                f"{trained.run}: the evaluation has no {name}, only {', '.join(sorted(found)) or 'nothing'}"
            )
        return found[name]

    return measure


@torch.no_grad()
def encoded(trained: Trained, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Tokens (N, K, D) or ids (N, K) of images, and their labels (N,), on the CPU."""
    conditioned, tokens, classes = ConditionedImages(trained.tokenizer, images), list[Tensor](), list[Tensor]()
    for start in range(0, len(images), BATCH):
        x, labels, cond = conditioned.batch(range(start, min(start + BATCH, len(images))))
        tokens.append(trained.tokenizer.encode(x.to(trained.device), cond).cpu())
        classes.append(labels)
    return torch.cat(tokens), torch.cat(classes)


def probe(trained: Trained, how: Measurement) -> float:
    """Test accuracy, in %, of a logistic regression on the first tokens, concatenated or averaged."""
    features = []
    for split, num in (("train", PROBE_IMAGES * trained.num), ("test", trained.num)):
        tokens, labels = encoded(trained, trained.images(split, num))
        kept = tokens[:, : how.keep]
        features += [kept.mean(1) if how.pooling == "averaged" else kept.flatten(1), labels]
    return 100 * linear_probe(*features, seed=0)


def prefix_share(trained: Trained, how: Measurement) -> float:
    """Share, in %, of the fall of the denoising loss by all tokens that the first `keep` tokens give."""
    keep = 1 if how.keep is None else how.keep
    curve = explained_curve(
        trained.tokenizer, trained.images("test"), keep=[keep], num_images=trained.num, num_times=TIMES, seed=0
    )
    share = next(point.share for point in curve if point.keep == keep)
    if share is None:
        raise InputError(f"{trained.run}: its tokens do not lower the denoising loss, so no token has a share of it")
    return 100 * share


def increment_correlation(trained: Trained, how: Measurement) -> float:
    """Mean absolute correlation in expectation of the tokens' increments, weighted by their energy, in [0, 1]."""
    found = increments(trained.tokenizer, trained.images("test"), num_images=trained.num, num_times=TIMES, seed=0)
    return found.weighted_correlation


def energy_excess(trained: Trained, how: Measurement) -> float:
    """|sum of the increments' energies / fall of the loss - 1|; 0 if variance adds up."""
    found = increments(trained.tokenizer, trained.images("test"), num_images=trained.num, num_times=TIMES, seed=0)
    if found.energy_ratio is None:
        raise InputError(f"{trained.run}: its tokens do not lower the denoising loss, so energies have no ratio to it")
    return abs(found.energy_ratio - 1)


def mixture_nll(trained: Trained, how: Measurement) -> float:
    """Negative log-likelihood, in nats, of the standardised components of training tokens under a Gaussian mixture."""
    tokens, _ = encoded(trained, trained.images("train"))
    found = fit_mixtures(tokens, [how.components or 20], dims=how.dims or 16)
    return found.points[0].nll


def idle_share(trained: Trained, how: Measurement) -> float:
    """Share, in %, of the tokens without which the error is at most 1 % higher."""
    found = token_uses(trained.tokenizer, trained.images("test"), num_images=trained.num)
    return 100 * len(found.idle) / len(found.tokens)


def condition_followed(trained: Trained, how: Measurement) -> float:
    """Share, in %, of images decoded with a class that the classifier puts into that class; see `analyze.swap`."""
    data, variant = trained.recipe.data, how.variant or "swapped"
    if variant not in VARIANTS:
        raise InputError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant}")
    classifier = classifier_for(data.name, data, trained.device, pad=data.pad)
    found = swap(trained.tokenizer, trained.images("test"), classifier, num_images=trained.num, pad=data.pad)
    measured = found.of(variant)
    if measured is None or measured.condition is None:
        raise InputError(
            f"{trained.run}: no share for variant {variant}, which needs a class of the decoder and a classifier "
            "bundled for the images"
        )
    return 100 * measured.condition


def latent_fd(trained: Trained, how: Measurement) -> float:
    """Fréchet distance of samples to reconstructions of training images: the part that is not the decoder's."""
    measures = trained.measures("fd")
    return sampled(trained, how, measures, reconstructions(trained, measures))


@torch.no_grad()
def reconstructions(trained: Trained, measures: Measures) -> list[Compared]:
    """The statistics of reconstructions of training images, from as many tokens as are generated."""
    images, tokenizer, found = trained.images("train"), trained.tokenizer, Gathered(measures)
    conditioned = ConditionedImages(tokenizer, images)
    for start in range(0, len(images), BATCH):
        numbers = range(start, min(start + BATCH, len(images)))
        x, _, cond = conditioned.batch(numbers)
        noise = [noise_of(0, DECODER_NOISE, i) for i in numbers]
        tokens = tokenizer.encode(x.to(trained.device), cond)
        y = tokenizer.decode(tokens, cond, keep=trained.recipe.model.num_tokens, generator=noise)
        found.update(measures.features(y.clamp(0, 1)), numbers)
    return found.compared(describe_images(images))


def score(trained: Trained, how: Measurement) -> float:
    """The Inception Score's formula of reconstructions, with the classifier bundled for the images: at least 1."""
    measuring = Measuring(trained.measures("score"))
    found = evaluate_reconstruction(trained.tokenizer, trained.images("test"), trained.reconstructions(how), measuring)
    return value_of(trained, found[0])


def recall(trained: Trained, how: Measurement) -> float:
    """Share of training images within the manifold of the samples, in [0, 1]."""
    measures = trained.measures("recall")
    images, found = trained.images("train"), Gathered(measures)
    for start in range(0, len(images), BATCH):
        numbers = range(start, min(start + BATCH, len(images)))
        x, _ = images.batch(numbers)
        found.update(measures.features(x.to(trained.device)), numbers)
    return sampled(trained, how, measures, found.compared(describe_images(images)))


def sampled(trained: Trained, how: Measurement, measures: Measures, references: list[Compared]) -> float:
    """The one metric of samples against references."""
    measuring = Measuring(measures, references)
    found = evaluate_generation(trained.generator, trained.tokenizer, None, trained.samples(how), measuring)
    return value_of(trained, found[0])


def value_of(trained: Trained, record: Record) -> float:
    """The value of a record; raises InputError with the record's reason if it has none."""
    if record.value is None:
        raise InputError(f"{trained.run}: {record.name} is not available, {record.note}")
    return record.value


def unconditional_gap(trained: Trained, how: Measurement) -> float:
    """Fréchet distance of samples without classes minus that with them, both without guidance."""
    distances = []
    for unconditional in ("true", "false"):
        overrides = [*how.evaluate, "guidance=1", f"unconditional={unconditional}"]
        found = trained.records(Measurement(name=how.name, evaluate=overrides), how.keep)
        distances.append(next(value for name, value in found.items() if name in ("fd", "gfid")))
    return distances[0] - distances[1]


def heldout_loss(trained: Trained, how: Measurement) -> float:
    """The generator's training loss on test tokens, see `held_out_loss`."""
    tokens, labels = encoded(trained, trained.images("test"))
    return held_out_loss(trained.generator, tokens[:, : trained.recipe.model.num_tokens], labels)


def spectrum_change(trained: Trained, how: Measurement) -> float:
    """Mean over the frequencies of |log10 (power from `keep` tokens / power from all)|; `keep`: 1.

    A flow decoder samples without a shift of the times and with initial noise of its full scale.
    """
    tokenizer = trained.tokenizer
    first, length = 1 if how.keep is None else how.keep, tokenizer.spec.length
    settings = Spectra(keep=(first, length), num=trained.num, batch_size=BATCH)
    if not tokenizer.spec.deterministic:
        settings = replace(settings, **vars(trained.evaluated(how.evaluate).evaluate.decoding(generator=False)))
    if has_flow(tokenizer):
        settings = replace(settings, temperature=1.0, shift=1.0)
    few, many = spectrum(tokenizer, trained.images("test"), settings).points
    return sum(abs(a - b) for a, b in zip(few.log_power, many.log_power, strict=True)) / len(few.log_power)


def order_loss(trained: Trained, how: Measurement) -> float:
    """Held-out loss of a small causal generator that is trained on the tokens in an order, see `analyze order`."""
    variant = how.variant or ORDERS[0]
    if variant not in ORDERS:
        raise InputError(f"variant: expected one of {', '.join(ORDERS)}, got {variant}")
    settings = Ordering(steps=SMALL_STEPS, statistics="position", seed=trained.recipe.seed)
    images = trained.images("train", PROBE_IMAGES * trained.num), trained.images("test")
    tokens = token_set(trained.tokenizer, *images, BATCH)
    return orders_of(tokens, trained.tokenizer.spec, settings, [variant]).points[0].loss


def mode_error_of(trained: Trained, how: Measurement) -> float:
    """Error of the score of a small SiT on synthetic tokens, see `analyze modes`; of the arm only the seed is used."""
    return mode_error(how.components or 16, MODE_SAMPLES, ModeSettings(steps=SMALL_STEPS), trained.recipe.seed)


KEEP = ("keep", "evaluate")
STATISTICS: dict[str, Statistic] = {
    "mse": Statistic("squared error of reconstructions", "tokenizer", record("mse"), reads=KEEP),
    "psnr": Statistic("PSNR of reconstructions", "tokenizer", record("psnr"), "dB", KEEP),
    "reconstruction_fd": Statistic(
        "Fréchet distance of reconstructions to their originals", "tokenizer", record("fd"), reads=KEEP
    ),
    "reconstruction_agreement": Statistic(
        "share of reconstructions that the classifier puts into the class of the original, in [0, 1]",
        "tokenizer",
        record("judge_accuracy"),
        reads=KEEP,
    ),
    "score": Statistic(
        "the Inception Score's formula of reconstructions, with the classifier bundled for the images",
        "tokenizer",
        score,
        reads=KEEP,
    ),
    "semantic_agreement": Statistic(
        "share of reconstructions with the most likely class of their original, in [0, 1]",
        "tokenizer",
        record("semantic_agreement"),
        reads=KEEP,
    ),
    "probe": Statistic(
        "test accuracy of a linear classifier on the first tokens", "tokenizer", probe, "%", ("keep", "pooling")
    ),
    "prefix_share": Statistic(
        "share of the fall of the denoising loss by the first tokens", "tokenizer", prefix_share, "%", ("keep",)
    ),
    "increment_correlation": Statistic(
        "correlation in expectation of the tokens' increments, weighted by energy", "tokenizer", increment_correlation
    ),
    "energy_excess": Statistic(
        "relative difference of the sum of the increments' energies and the fall of the loss",
        "tokenizer",
        energy_excess,
    ),
    "mixture_nll": Statistic(
        "negative log-likelihood of tokens under a Gaussian mixture",
        "tokenizer",
        mixture_nll,
        "nats",
        ("components", "dims"),
    ),
    "idle_share": Statistic("share of the tokens that add at most 1 % of the error", "tokenizer", idle_share, "%"),
    "condition_followed": Statistic(
        "share of images decoded with a class that are classified as it",
        "tokenizer",
        condition_followed,
        "%",
        ("variant",),
    ),
    "sample_fd": Statistic(
        "Fréchet distance of samples to the test images (Fashion-MNIST) or the training images (other data)",
        "generator",
        record("fd"),
        reads=KEEP,
    ),
    "sample_agreement": Statistic(
        "share of samples that the classifier puts into their class, in [0, 1]",
        "generator",
        record("label_agreement"),
        reads=KEEP,
    ),
    "latent_fd": Statistic(
        "Fréchet distance of samples to reconstructions of training images", "generator", latent_fd, reads=KEEP
    ),
    "recall": Statistic("share of training images within the manifold of samples", "generator", recall, reads=KEEP),
    "unconditional_gap": Statistic(
        "Fréchet distance of samples without classes minus that with them", "generator", unconditional_gap, reads=KEEP
    ),
    "heldout_loss": Statistic("the training loss on test tokens", "generator", heldout_loss),
    "spectrum_change": Statistic(
        "change of the radial power spectrum, in log10, from one token to all", "tokenizer", spectrum_change, reads=KEEP
    ),
    "order_loss": Statistic(
        "held-out loss of a small causal generator on tokens in an order: in order, reversed or shuffled",
        "tokenizer",
        order_loss,
        reads=("variant",),
    ),
    "mode_error": Statistic(
        "error of the score of a small SiT on synthetic tokens with a number of modes; the arm gives the seed alone",
        "tokenizer",
        mode_error_of,
        reads=("components",),
    ),
    "generation_speed": Statistic(
        "images a second on a device without other load",
        "generator",
        missing="equally many tokens have the same cost by construction; docs/maetok.md, Speed, has times",
    ),
}


def missing(claim: Claim) -> str:
    """Why a claim cannot be measured yet; "" if it can."""
    return claim.missing or STATISTICS[claim.statistic.name].missing

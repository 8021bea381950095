"""The bundled models at three batch sizes: the same noise for every image, the same images, the same metrics."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tok1d
from tok1d.data.images import ImageSource, open_images
from tok1d.evaluate import generation, reconstruction
from tok1d.evaluate.feature_networks import OwnNetwork
from tok1d.evaluate.features import Features
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.metric_names import METRICS, ON_FEATURES
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.images.framing import padding_of
from tok1d.inference.sampling import noise_of

NUM, BATCH_SIZES = 120, (32, 50, 250)
MEASURED = [name for name in METRICS if name not in ("lpips", "memorised")]  # weights not in the package; of samples


class Mapped(OwnNetwork):
    """The bundled classifier with additional spatial features for sFD: the 4 x 4 means of the images."""

    def __init__(self, pad: int) -> None:
        super().__init__(tok1d.load("fashion-mnist-cnn", device="cpu"), "judge", pad=pad, eight_bit=False)
        self.spatial_dim = 49

    def measure(self, images: Tensor) -> Features:
        found = super().measure(images)
        return Features(found.pooled, F.avg_pool2d(images, 4).flatten(1), found.logits)


class Recorded:
    """The images and the random generators that an evaluation used."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.images: list[Tensor] = []
        self.noise: dict[tuple[int | str, ...], list[torch.Generator]] = {}
        features = Measures.features

        def look(measures: Measures, x: Tensor) -> dict[str, Tensor]:
            self.images.append(x)
            return features(measures, x)

        def source(*key: int | str) -> torch.Generator:
            self.noise.setdefault(key, []).append(noise_of(*key))
            return self.noise[key][-1]

        patch.setattr(Measures, "features", look)
        for module in (generation, reconstruction):
            patch.setattr(module, "noise_of", source)

    def ends(self) -> dict[tuple[int | str, ...], list[bytes]]:
        """The state of the random generator of each image after the evaluation."""
        return {key: [each.get_state().numpy().tobytes() for each in sources] for key, sources in self.noise.items()}


def of_images(tokenizer: str, **options: Any) -> Callable[..., Any]:
    def measure(root: Path, batch_size: int, recorded: Recorded) -> Any:
        model = tok1d.load(tokenizer, device="cpu")
        return reconstruction.evaluate_reconstruction(
            model,
            images_for(model, root),
            Reconstructions(batch_size=batch_size, seed=3, **options),
            measuring(padding_of(model)),
        )

    return measure


def of_samples(generator: str, **options: Any) -> Callable[..., Any]:
    def measure(root: Path, batch_size: int, recorded: Recorded) -> Any:
        model, tokenizer = tok1d.load_pair(generator, device="cpu")
        measured = measuring(padding_of(tokenizer), ON_FEATURES)
        compared = generation.measured_set(images_for(tokenizer, root), measured.measures)
        recorded.images.clear()
        how = Samples(num_samples=NUM, batch_size=batch_size, seed=3, **options)
        return generation.evaluate_generation(model, tokenizer, None, how, replace(measured, references=compared))

    return measure


def images_for(tokenizer: Any, root: Path) -> Any:
    config = tokenizer.config
    source = ImageSource(
        "fashion_mnist",
        root=str(root),
        image_size=config.image_size,
        channels=config.channels,
        pad=padding_of(tokenizer),
        limit=NUM,
    )
    return open_images(source, "test")


def measuring(pad: int, metrics: Sequence[str] = MEASURED) -> Measuring:
    return Measuring(Measures(tuple(metrics), [Mapped(pad)], pad))


# The evaluation, its metrics, and how many sets of images the networks receive (the originals are one).
CASES: dict[str, tuple[Callable[..., Any], list[str], int]] = {
    "deterministic: MAETok": (of_images("fashion-mnist-maetok"), MEASURED, 2),
    "deterministic, with the class: SMAP": (
        of_images(
            "fashion-mnist-smap",
            keep=(
                0,
                3,
                16,
            ),
        ),
        MEASURED,
        4,
    ),
    "diffusion: Semanticist": (
        of_images(
            "fashion-mnist-semanticist",
            keep=(
                1,
                8,
            ),
            steps=3,
        ),
        MEASURED,
        3,
    ),
    "token by token: epsilon-LlamaGen": (
        of_samples(
            "fashion-mnist-epsilon-llamagen",
            keep=(
                2,
                8,
            ),
            guidance=1.5,
            steps=4,
            decoder_steps=2,
        ),
        list(ON_FEATURES),
        2,
    ),
    "all at once: SiT": (
        of_samples("fashion-mnist-sit", guidance=1.5, steps=3, sampler="sde", classes="random"),
        list(ON_FEATURES),
        1,
    ),
    "token by token: CARD": (of_samples("fashion-mnist-card", guidance=1.5, steps=3), list(ON_FEATURES), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_depends_on_the_batch_size(generated_images: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    measure, metrics, times = CASES[name]
    found = []
    for batch_size in BATCH_SIZES:
        with monkeypatch.context() as patch:
            recorded = Recorded(patch)
            records = measure(generated_images, batch_size, recorded)
        found.append((recorded, records))
    first, records = found[0]
    called = [record.name.partition("@")[0] for record in records if record.keep == records[0].keep]
    assert len(called) == len(metrics) and all(record.value is not None for record in records), records
    shapes = {record.name.partition("@")[0]: record.value for record in records}  # of the most tokens
    for metric in ("precision", "recall", "density", "coverage"):
        assert shapes[metric] > 0, f"{metric} of 0 proves nothing"
    ends = first.ends()
    for other, others in found[1:]:
        assert ends == other.ends()
        distance = (by_image(first.images, times) - by_image(other.images, times)).abs()
        assert (distance <= 1 / 255).float().mean() >= 0.999
        assert [record.name for record in others] == [record.name for record in records]
        for a, b in zip(records, others):
            assert b.value == pytest.approx(a.value, rel=1e-3, abs=1e-6), (a.name, a.keep)


def by_image(calls: list[Tensor], times: int) -> Tensor:
    """The images of all calls in order; the batches of `times` sets alternate."""
    return torch.cat([torch.cat(calls[i::times]) for i in range(times)])

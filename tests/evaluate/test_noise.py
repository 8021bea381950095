"""Noise is per image: neither the batch size nor the other images change a sample or a reconstruction."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.load import load_recipe
from tok1d.data.images import ImageSource, open_images
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Measures, Measuring, by_classifier
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.zoo import store

Tiny = Callable[..., str]
CONTINUOUS = "num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, depth: 1, heads: 2"
IDS = "num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, depth: 1, heads: 2"
HEAD = "head: {width: 16, depth: 1, steps: 3}"
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "epsilon_llamagen euler": (f"{{name: epsilon_llamagen, {CONTINUOUS}, {HEAD}}}", {}),
    "epsilon_llamagen sde": (f"{{name: epsilon_llamagen, {CONTINUOUS}, {HEAD}}}", {"sampler": "sde"}),
    "card": (f"{{name: card, {CONTINUOUS}, class_source: independent, class_dim: 8, {HEAD}}}", {}),
    "sit sde": (f"{{name: sit, {CONTINUOUS}, steps: 3}}", {}),
    "sit heun": (f"{{name: sit, {CONTINUOUS}, steps: 3}}", {"sampler": "heun"}),
    "dit": (f"{{name: dit, {CONTINUOUS}, steps: 3}}", {}),
    "llamagen": (f"{{name: llamagen, {IDS}}}", {"top_k": 7}),
    "maskgit": (f"{{name: maskgit, {IDS}, steps: 3}}", {}),
}


def random_model(recipe: str, *overrides: str, std: float = 0.1) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """The images that the feature networks received, by the id of their `Measures`."""
    images: dict[int, list[Tensor]] = {}
    features = Measures.features

    def keep(self: Measures, x: Tensor) -> dict[str, Tensor]:
        images.setdefault(id(self), []).append(x)
        return features(self, x)

    monkeypatch.setattr(Measures, "features", keep)
    return images


def assert_equal(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Images within 1/255 on 99.9 % of pixels, metrics within 0.1 %."""
    assert ((first["images"] - other["images"]).abs() <= 1 / 255).float().mean() >= 0.999
    assert [record.name for record in first["records"]] == [record.name for record in other["records"]]
    for a, b in zip(first["records"], other["records"]):
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-6), a.name


@pytest.mark.parametrize("name", GENERATORS)
def test_samples_do_not_depend_on_their_batch(
    tiny: Tiny, fashion: None, measured: dict[int, list[Tensor]], name: str
) -> None:
    model, options = GENERATORS[name]
    generator = random_model(tiny("sit", tokenizer="x"), f"model={model}")
    ids = ["model.bottleneck={name: vq, size: 16}"] if "vocab_size" in model else []
    tokenizer, classifier = random_model(tiny("maetok"), *ids, std=0.4), random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    found = []
    for batch_size in (11, 4, 1):
        measured.clear()
        records = evaluate_generation(
            generator,
            tokenizer,
            images,
            Samples(num_samples=11, batch_size=batch_size, guidance=1.5, seed=3, **options),
            Measuring(by_classifier(classifier, "generation", 2)),
        )
        calls, reference = next(iter(measured.values())), -(-12 // batch_size)
        generated = calls[:-reference]
        assert len(generated) == -(-11 // batch_size)
        found.append({"images": torch.cat(generated), "records": records})
    assert found[0]["images"].flatten(1).std(0).mean() > 1 / 255, "samples that do not differ prove nothing"
    for other in found[1:]:
        assert_equal(found[0], other)


@pytest.mark.parametrize("overrides", [[], ["model.objective=ddpm"]], ids=["flow", "ddpm"])
def test_reconstructions_do_not_depend_on_their_batch(
    tiny: Tiny, fashion: None, measured: dict[int, list[Tensor]], overrides: list[str]
) -> None:
    tokenizer, classifier = random_model(tiny("tokenizer"), *overrides), random_model(tiny("classifier"))
    images, found = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=11), "test"), []
    for batch_size in (11, 4, 1):
        measured.clear()
        records = evaluate_reconstruction(
            tokenizer,
            images,
            Reconstructions(keep=(4,), steps=3, batch_size=batch_size, seed=3),
            Measuring(by_classifier(classifier, "reconstruction")),
        )
        reconstructed = next(iter(measured.values()))[1::2]  # after the real images of a batch
        found.append({"images": torch.cat(reconstructed), "records": records})
    for other in found[1:]:
        assert_equal(found[0], other)

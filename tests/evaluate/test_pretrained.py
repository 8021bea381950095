"""Distances and semantic agreement with pretrained networks, and networks that trained a model do not measure it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.load import load_recipe, to_yaml
from tok1d.data.images import ImageSource, open_images
from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.feature_networks import open_network
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.metrics import Moments, frechet_distance
from tok1d.evaluate.of_recipe import check_measures, evaluate_model
from tok1d.evaluate.prepare import prepare
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Generation, Reconstruction, Reconstructions
from tok1d.evaluate.training_networks import training_networks, why_not
from tok1d.train.images import open_split
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.networks import NetworkName, open_pretrained
from tok1d.zoo.record import Record

Tiny = Callable[..., str]
LITE0 = "efficientnet-lite0"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def nuclear_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of few features, without their covariances: tr (C1 C2)^(1/2) is a sum of singular values."""
    a, b = a.double(), b.double()
    x, y = a - a.mean(0), b - b.mean(0)
    overlap = torch.linalg.svdvals(x @ y.T).sum() / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    spread = x.square().sum() / (len(a) - 1) + y.square().sum() / (len(b) - 1)
    return float((a.mean(0) - b.mean(0)).square().sum() + spread - 2 * overlap)


def test_the_distance_of_efficientnet_by_hand() -> None:
    network, found = open_network(LITE0), open_pretrained(NetworkName(LITE0))
    assert (network.name, network.dim, network.num_classes, network.classifies) == (LITE0, 1280, 1000, False)

    def features(images: Tensor) -> Tensor:
        """Grey images of 28 pixels, rounded to 8 bits, enlarged to 224, as (value - 127) / 128; pooled features."""
        x = (images * 255).round().expand(-1, 3, -1, -1) / 255
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            return found.trunk.forward_features((x.clamp(0, 1) * 255 - 127) / 128).mean((2, 3))

    sets = [rand(5, 1, 28, 28), 0.5 + rand(4, 1, 28, 28, seed=1) / 2]
    measured = [network(each) for each in sets]
    expected = [features(each) for each in sets]
    for got, direct in zip(measured, expected):
        torch.testing.assert_close(got.pooled, direct, atol=1e-4, rtol=1e-4)
        assert got.logits is not None and found.head is not None
        torch.testing.assert_close(got.logits, direct @ found.head.weight.T + found.head.bias, atol=1e-3, rtol=1e-3)
    moments = [Moments(1280).update(each.pooled) for each in measured]
    assert frechet_distance(*moments) == pytest.approx(nuclear_distance(*expected), rel=1e-3)


class Planted(FrozenNetwork):
    """A network whose logits of an image are the first pixels of its rows; a feature is their number."""

    def __init__(self, classes: int) -> None:
        super().__init__("planted", "0" * 12, device="cpu", dim=1, num_classes=classes, eight_bit=False)

    def measure(self, images: Tensor) -> Features:
        logits = images[:, 0, : self.num_classes, 0]
        return Features(logits.sum(1, keepdim=True), logits=logits)


def planted(*orders: list[int]) -> Tensor:
    """Images whose rows begin with logits in this order: the first class is the most likely one."""
    images = torch.zeros(len(orders), 1, 8, 8)
    for image, order in zip(images, orders):
        for rank, place in enumerate(order):
            image[0, place, 0] = 1 - rank / 10
    return images


def test_agreement_of_planted_classes() -> None:
    measures = Measures(("semantic", "semantic5"), [Planted(7)])
    original = planted([0, 1, 2, 3, 4, 5, 6], [3, 0, 1, 2, 4, 5, 6], [6, 0, 1, 2, 3, 4, 5])
    decoded = planted([0, 6, 5, 4, 3, 2, 1], [0, 1, 2, 4, 3, 5, 6], [0, 1, 2, 3, 4, 6, 5])
    found = measures.agreements(measures.features(decoded), measures.features(original))
    assert found["0 semantic"].tolist() == [1, 0, 0]
    assert found["0 semantic5"].tolist() == [1, 1, 0], "fifth of the second, sixth of the third"
    few = Measures(("semantic5",), [Planted(3)])
    found = few.agreements(few.features(decoded), few.features(original))
    assert found["0 semantic5"].tolist() == [1, 1, 1], "all classes of a network with fewer than five"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of timm with random weights for 50 classes, as text."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=50)
        nn.init.normal_(model.fc.weight)
    path = tmp_path_factory.mktemp("timm") / "resnet.pth"
    torch.save(model.state_dict(), path)
    return f"timm:test_resnet:{path}"


def by_name(records: list[Record], keep: int | None = None) -> dict[str, Record]:
    return {record.name: record for record in records if keep is None or record.keep == keep}


def test_agreement_of_reconstructions_by_number_of_tokens(resnet: str, generated_images: Path) -> None:
    tokenizer, network = store.load("fashion-mnist-semanticist"), open_network(resnet)
    source = ImageSource("fashion_mnist", root=str(generated_images), image_size=28, channels=1, limit=6)
    images = open_images(source, "test")
    measures = Measures(("mse", "semantic", "semantic5", "fd"), [network])
    how = Reconstructions(keep=(1, 8), steps=2, batch_size=4)
    records = evaluate_reconstruction(tokenizer, images, how, Measuring(measures))
    x, _ = images.batch(range(6))
    for keep in (1, 8):
        saved: list[Tensor] = []
        for start in (0, 4):
            rows = range(start, min(start + 4, 6))
            noise = [_noise(i) for i in rows]
            tokens = tokenizer.encode(x[rows.start : rows.stop])
            saved.append(tokenizer.decode(tokens, keep=keep, steps=2, generator=noise))
        wanted, logits = network(x).logits.argmax(1), network(torch.cat(saved)).logits
        first = (logits.argmax(1) == wanted).float().mean()
        five = (logits.argsort(1, descending=True)[:, :5] == wanted[:, None]).any(1).float().mean()
        found = by_name(records, keep)
        assert found["semantic_agreement@test_resnet"].value == pytest.approx(float(first))
        assert found["semantic_agreement_top5@test_resnet"].value == pytest.approx(float(five))
        assert found["fd@test_resnet"].network == found["semantic_agreement@test_resnet"].network == network.label


def _noise(number: int) -> torch.Generator:
    from tok1d.inference.sampling import DECODER_NOISE, noise_of

    return noise_of(0, DECODER_NOISE, number)


def test_what_is_measured_by_default_and_on_request(resnet: str, generated_images: Path) -> None:
    common: dict[str, Any] = {"model": "fashion-mnist-maetok", "data": "fashion_mnist", "num": 4, "device": "cpu"}
    common["data_root"] = str(generated_images)
    assert "semantic" in prepare(Reconstruction(network=(resnet,), **common)).measures.metrics
    bundled = prepare(Reconstruction(**common)).measures.metrics
    assert "semantic" not in bundled and "labels" in bundled, "a classifier of the labels gives label agreement"
    asked = prepare(Reconstruction(metrics=("semantic",), **common)).measure()
    (record,) = [each for each in asked if each.name.startswith("semantic")]
    assert record.name == "semantic_agreement@fashion-mnist-cnn" and record.value is not None and 0 <= record.value <= 1
    common |= {"model": "fashion-mnist-sit", "num_samples": common.pop("num")}
    with pytest.raises(InputError, match="samples have no originals"):
        prepare(Generation(metrics=("semantic",), **common))


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        (LITE0, f"{LITE0}:96", True),
        (LITE0, "timm:tf_efficientnet_lite0:file.pth", True),
        (LITE0, "efficientnet_lite0", False),
        ("timm:resnet18.a1_in1k:96", "resnet18.a1_in1k", True),
        ("timm:resnet18", "timm:resnet18.a1_in1k:file.pth", True),
        ("timm:resnet18.a2_in1k", "timm:resnet18.a1_in1k", False),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k", True),
        ("model:fashion-mnist-cnn", "fashion-mnist-cnn", True),
        ("inception", LITE0, False),
    ],
)
def test_which_networks_are_the_same(text: str, other: str, same: bool) -> None:
    assert bool(why_not(text, {other: "model.alignment.teacher"})) == same
    assert bool(why_not(other, {text: "model.alignment.teacher"})) == same


def test_the_networks_of_a_recipe_and_of_the_models_below_it(tiny: Tiny, tmp_path: Path) -> None:
    def networks(kind: str, *overrides: str) -> dict[str, str]:
        return training_networks(to_yaml(load_recipe(tiny(kind), overrides)))

    target = f"{{target: 'teacher:{LITE0}', dim: 1280, depth: 1}}"
    assert networks("maetok") == {}
    assert networks("maetok", f"model.auxiliary=[{target}]") == {LITE0: "model.auxiliary"}
    assert networks("maetok", f"perceptual.network={LITE0}") == {}, "its weight is 0"
    assert networks("maetok", f"perceptual.network={LITE0}", "perceptual.weight=1") == {LITE0: "perceptual.network"}
    semanticist = ("model.alignment.teacher=resnet18", "model.decoder.align_depth=1")
    assert networks("tokenizer", *semanticist) == {"resnet18": "model.alignment.teacher"}
    dino = networks("maetok", "adversarial.weight=0.1")
    assert dino == {"vit_small_patch16_224.dino": "adversarial.discriminator.backbone"}

    first = load_recipe(tiny("maetok"), [f"model.auxiliary=[{target}]"])
    store.save_model(store.build_model(first.model), tmp_path / "one", Card(recipe=to_yaml(first)))
    second = ("model.auxiliary=[]", "model.stage=finetune", f"init_from={tmp_path / 'one'}")
    assert networks("maetok", *second) == {LITE0: "model.auxiliary"}, "the encoder of stage one is used"
    assert networks("sit", f"tokenizer={tmp_path / 'one'}") == {LITE0: "model.auxiliary"}
    assert networks("sit", f"tokenizer={tmp_path / 'nowhere'}") == {}


def test_a_network_that_trained_a_model_does_not_measure_it(
    tiny: Tiny, resnet: str, tmp_path: Path, generated_images: Path
) -> None:
    overrides = [f"perceptual.network={resnet}", "perceptual.weight=1", f"data.root={generated_images}"]
    recipe = load_recipe(tiny("maetok"), overrides)
    torch.manual_seed(0)
    model = store.build_model(recipe.model).eval()
    store.save_model(model, tmp_path / "model", Card(recipe=to_yaml(recipe)))
    request = Reconstruction(
        model=str(tmp_path / "model"), data="fashion_mnist", data_root=str(generated_images), num=8,
        network=(resnet, "fashion-mnist-cnn"), metrics=("mse", "fd"), device="cpu",
    )  # fmt: skip
    records = by_name(prepare(request).measure())
    left_out, measured = records["fd@test_resnet"], records["fd@fashion-mnist-cnn"]
    assert left_out.value is None and measured.value is not None
    assert "was trained with that network (perceptual.network: timm:test_resnet" in left_out.note

    with pytest.raises(ConfigError, match=r"evaluate.network: .*trained with that network"):
        check_measures(load_recipe(tiny("maetok"), [*overrides, f"evaluate.network={resnet}"]))

    taught = ["model.alignment={teacher: fashion-mnist-cnn, image_size: 28, dim: 64, weight: 0.1}"]
    recipe = load_recipe(tiny("maetok"), [*taught, f"data.root={generated_images}", "evaluate.num_images=8"])
    ended = evaluate_model(recipe, model, open_split(recipe, "test"))
    assert {each.name: each.value is None for each in ended if each.network == "fashion-mnist-cnn"} == {
        "fd@fashion-mnist-cnn": True
    }
    assert any(each.name == "psnr" and each.value for each in ended)

"""Feature networks: their names, their input images, and errors for missing weights."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tok1d.errors import DataError, InputError, WeightsError
from tok1d.evaluate import feature_networks
from tok1d.evaluate.feature_networks import INCEPTION_FILE, OwnNetwork, clean_name, open_network
from tok1d.evaluate.features import Features, FrozenNetwork, default_network, metric_name
from tok1d.evaluate.networks import CNN, CNNConfig
from tok1d.evaluate.request import Generation
from tok1d.evaluate.setup import Place, open_measures
from tok1d.evaluate.tally import Tally
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import Record
from tok1d.zoo.weights import fingerprint

FIDELITY = "pip install torch-fidelity brings the Inception graph"


class Brightness(FrozenNetwork):
    """A network that returns the mean of every channel."""

    def __init__(self, **options: Any) -> None:
        super().__init__("brightness", "0" * 12, device="cpu", dim=1, **options)

    def measure(self, images: torch.Tensor) -> Features:
        return Features(images.mean(dim=(1, 2, 3))[:, None])


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_network_receives_eight_bits_without_the_border() -> None:
    images = torch.full((1, 3, 8, 8), 0.5)
    images[..., :2, :] = 0.9
    whole, inner = Brightness()(images).pooled, Brightness(pad=2)(images).pooled
    assert inner.item() == pytest.approx(128 / 255) and whole.item() > inner.item()
    assert Brightness(pad=2, eight_bit=False)(images).pooled.item() == pytest.approx(0.5)
    wild = torch.tensor([-3.0, 4.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert Brightness(eight_bit=False)(wild).pooled.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8), (1, 3, 4, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected images \(B, 1 or 3, H, W\) larger than a border of 2"):
        Brightness(pad=2)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("metric", "inception", "other"),
    [
        ("fid", "fid", "fd@cnn"),
        ("rfid", "rfid", "fd@cnn"),
        ("gfid", "gfid", "fd@cnn"),
        ("sfid", "sfid", "sfd@cnn"),
        ("kid", "kid", "kd@cnn"),
        ("inception_score", "inception_score", "score@cnn"),
        ("recall", "recall", "recall@cnn"),
    ],
)
def test_only_inception_keeps_the_published_names(metric: str, inception: str, other: str) -> None:
    assert metric_name(metric, "inception@6726825d0af5") == inception
    assert metric_name(metric, "cnn@0123") == metric_name(metric, "cnn") == other
    assert "fid" not in metric_name(metric, "inception-like@0")
    for network in ("inception@6726825d0af5", "inception-like@0", "cnn@0123"):
        name = metric_name(metric, network)
        assert Record(name=name, value=1.0, num_images=2, network=network).name == name
    if metric != "recall":
        with pytest.raises(ValueError, match="measured with the network 'inception'"):
            Record(name=metric, value=1.0, num_images=2, network="inception-like@0")


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """own(folder, channels=1): the folder of a classifier of random weights."""

    def make(folder: str, **options: Any) -> Path:
        torch.manual_seed(0)
        store.save_model(CNN(CNNConfig(width=4, features=8, image_size=16, **options)), tmp_path / folder, Card())
        return tmp_path / folder

    return make


def test_a_classifier_trained_here_gives_its_features_and_logits(own: Callable[..., Path]) -> None:
    folder = own("digits/model")
    network, model = open_network(f"model:{folder}", pad=2), store.load(folder)
    assert isinstance(network, OwnNetwork) and network.name == "digits"
    assert network.label == f"digits@{fingerprint(model)}"
    assert (network.dim, network.num_classes, network.image_size, network.channels) == (8, 10, 16, 1)
    images = rand(5, 1, 20, 20)
    shown = (images[..., 2:-2, 2:-2] * 255).round() / 255
    found = network(images)
    assert torch.equal(found.pooled, model.features(shown)) and found.spatial is None and found.logits is not None
    assert torch.equal(found.logits, model(shown)) and not found.logits.requires_grad
    tally = Tally.of(network).update(found, range(5), found.logits.argmax(dim=1))
    assert tally.agreement == 1 and tally.score.mean >= 1
    with pytest.raises(DataError, match=r"expects images \(B, 1, 16, 16\)"):
        network(rand(1, 3, 20, 20))


def test_grey_becomes_colour_for_a_classifier_of_colours(own: Callable[..., Path]) -> None:
    network, grey = open_network(f"model:{own('colours', channels=3)}"), rand(2, 1, 16, 16)
    assert network.name == "colours"
    assert torch.equal(network(grey).pooled, network(grey.repeat(1, 3, 1, 1)).pooled)


def test_a_run_called_inception_does_not_become_inception(own: Callable[..., Path]) -> None:
    assert open_network(f"model:{own('Inception/model')}").name == "model-Inception"
    assert clean_name("a b@c/d") == "a-b-c-d" and clean_name("@") == "model"


def test_the_bundled_classifier_is_the_default_for_its_data() -> None:
    network = open_network(default_network("fashion_mnist"))
    assert network.name == "fashion-mnist-cnn" and network.classifies
    assert open_network("fashion-mnist-cnn").label == network.label
    texts = ("fashion-mnist-cnn", "model:fashion-mnist-cnn", f"model:{store.BUNDLED / 'fashion-mnist-cnn'}")
    for text in texts:  # detected from its training recipe, whatever its name
        assert [open_network(text, eight_bit=bits).eight_bit for bits in (None, True, False)] == [False, True, False]
    sizes = SimpleNamespace(image_size=28, channels=1)
    for named in ((), *((text,) for text in texts)):
        request = Generation(model="m", metrics=("fd",), network=named)
        opened = open_measures(request, Place("fashion_mnist", sizes, "cpu"))
        assert [each.rounding for each in opened.networks] == [network.rounding]
    assert default_network("photos") == "inception"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("resnet", InputError, "expected inception"),
        ("timm:", InputError, "expected inception"),
        ("timm:no_such_model", InputError, "timm has no such model"),
        ("model:nowhere", WeightsError, "no model 'nowhere'"),
        ("model:fashion-mnist-maetok", WeightsError, "expected a classifier as feature network, got the model maetok"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_network(text)
    assert "\n" not in str(caught.value)


def test_missing_packages_and_weights_are_reported_with_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(WeightsError, match=r"would have to be downloaded; pass timm:vit_tiny_patch16_224:FILE"):
        open_network("timm:vit_tiny_patch16_224", download=False)
    if "torch_fidelity" in sys.modules or _has_fidelity():
        with pytest.raises(WeightsError, match=r"download http.*6726825d\.pth to .*, or pass inception:FILE"):
            open_network("inception", download=False)

        def offline(*args: Any, **options: Any) -> None:
            raise OSError("no network\nhere")

        monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
        with pytest.raises(WeightsError, match=r"could not be downloaded \(no network here\)"):
            open_network("inception")
        with pytest.raises(WeightsError, match="no such file"):
            open_network(f"inception:{tmp_path / 'none.pth'}")
        with pytest.raises(InputError, match="images of 8 bits"):
            open_network("inception", eight_bit=False)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(WeightsError, match=r"pip install 'tok1d\[fidelity\]'"):
        open_network("inception")


def _has_fidelity() -> bool:
    from importlib.util import find_spec

    return find_spec("torch_fidelity") is not None


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of Inception's weights, with random values."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=FIDELITY)
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save(module.FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), path)
    return path


@pytest.mark.slow
def test_inceptions_layout_is_read_and_random_weights_are_not_called_inception(stand_in: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = open_network(f"inception:{stand_in}")
    assert network.name == "inception-like" and network.label.startswith("inception-like@")
    assert (network.dim, network.spatial_dim, network.num_classes, network.classifies) == (2048, 2023, 1008, False)
    with pytest.raises(ValueError, match="measured with the network 'inception'"):
        Record(name="fid", value=1.0, num_images=2, network=network.label)
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(stand_in))
    maps: list[torch.Tensor] = []
    theirs.Mixed_6d.register_forward_hook(lambda module, inputs, output: maps.append(output))
    images = rand(1, 3, 40, 40)
    pixels = (images * 255).round().to(torch.uint8)
    pooled, logits = theirs(pixels)
    found = network(images)
    assert found.spatial is not None and found.logits is not None
    assert torch.equal(found.pooled, pooled) and torch.equal(found.logits, logits)
    # The ADM suite flattens 17 x 17 places of 7 channels, channels last; the first branch's channels come first.
    spatial = maps[0].permute(0, 2, 3, 1)[..., :7].flatten(1)
    assert found.spatial.shape == (1, 2023) and torch.equal(found.spatial, spatial)
    grey = images[:, :1]
    assert torch.equal(network(grey).pooled, network(grey.repeat(1, 3, 1, 1)).pooled)


@pytest.mark.slow
def test_the_published_file_alone_is_called_inception(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real file is not available offline. The hash of a stand-in shows what decides the name.
    monkeypatch.setattr(feature_networks, "INCEPTION_SHA256", feature_networks._sha256(stand_in))
    assert open_network(f"inception:{stand_in}").name == "inception"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(stand_in.parent.parent))
    (stand_in.parent.parent / "checkpoints").mkdir()
    (stand_in.parent.parent / "checkpoints" / INCEPTION_FILE).symlink_to(stand_in)
    assert open_network("inception", download=False).name == "inception"


def test_a_file_of_another_network_is_no_inception(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason=FIDELITY)
    torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="expected weights of Inception") as caught:
        open_network(f"inception:{tmp_path / 'other.pth'}")
    assert "\n" not in str(caught.value)

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("code from a weight file ran",)

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"contains a .*print; a pickle can run code"):
        open_network(f"inception:{tmp_path / 'evil.pth'}")


@pytest.mark.slow
def test_timm_networks_see_their_own_size_mean_and_spread(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    network = open_network(f"timm:vit_tiny_patch16_224:{tmp_path / 'weights.pth'}")
    assert network.name == "vit_tiny_patch16_224" and network.dim == 192 and network.num_classes == 0
    images = rand(2, 1, 32, 32)
    shown = ((images * 255).round() / 255).expand(-1, 3, -1, -1)
    shown = F.interpolate(shown, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        expected = model((shown - 0.5) / 0.5)  # this network's own mean and spread, not ImageNet's
    assert torch.allclose(network(images).pooled, expected, atol=1e-6)
    small = open_network(f"timm:vit_tiny_patch16_224:96:{tmp_path / 'weights.pth'}")
    assert small.name == "vit_tiny_patch16_224-96" and small(images).pooled.shape == (2, 192)

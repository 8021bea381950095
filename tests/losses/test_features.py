"""Teachers: their input, their sources, and errors where they are missing."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError, InputError, WeightsError
from tok1d.losses.features import IMAGENET_MEAN, IMAGENET_STD, Teacher
from tok1d.zoo.pretrained.teachers import give_teachers, load_teacher
from tok1d.zoo.store import build_model, load


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_images_are_standardised_before_they_are_resampled() -> None:
    x = images(2, 3, 8, 8)
    shown = Teacher(nn.Identity(), image_size=6).prepare(x)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(shown, F.interpolate((x - mean) / std, size=6, mode="bicubic"))
    same = Teacher(nn.Identity(), image_size=8).prepare(x)
    assert torch.equal(same, (x - mean) / std)


def test_grey_images_are_repeated_and_other_channels_refused() -> None:
    teacher, grey = Teacher(nn.Identity(), image_size=6), images(2, 1, 8, 8)
    torch.testing.assert_close(teacher.prepare(grey), teacher.prepare(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(InputError, match=r"3 channels, got \(2, 4, 8, 8\)"):
        teacher.prepare(images(2, 4, 8, 8))
    with pytest.raises(InputError, match="1 channels"):
        Teacher(nn.Identity(), image_size=6, mean=[0.0], std=[1.0]).prepare(images(2, 3, 8, 8))


def test_the_bundled_classifier_gives_its_feature_map() -> None:
    torch.manual_seed(5)
    teacher = load_teacher("fashion-mnist-cnn", image_size=28)
    expected_random = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(expected_random, torch.rand(3)), "making a teacher leaves the global rng unchanged"
    x = images(2, 1, 28, 28).requires_grad_()
    features = teacher(x)
    assert features.shape[:2] == (2, 49) and not features.requires_grad
    classifier = load("fashion-mnist-cnn")
    maps = features.transpose(1, 2).reshape(2, -1, 7, 7)
    rest = F.relu(classifier.project(classifier.trunk[-1](maps).flatten(1)))
    torch.testing.assert_close(rest, classifier.features(x))
    with pytest.raises(ConfigError, match="its images have 28 pixels a side, got image_size=224"):
        load_teacher("fashion-mnist-cnn")
    with pytest.raises(ConfigError, match="leave them out"):
        load_teacher("fashion-mnist-cnn", weights="some.pth", image_size=28)
    with pytest.raises(ConfigError, match="got a tokenizer or generator"):
        load_teacher("fashion-mnist-semanticist", image_size=28)


class TinyViT(nn.Module):
    """The part of a timm vision transformer that a teacher uses: two prefix tokens, patches of 4."""

    num_prefix_tokens = 2
    pretrained_cfg: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "url": "there"}  # noqa: RUF012

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, (img_size // 4) ** 2, 6))
        self.patch_embed = nn.Conv2d(3, 6, 4, stride=4)
        self.prefix = nn.Parameter(torch.randn(1, 2, 6))

    def forward_features(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        return torch.cat([self.prefix.expand(len(x), -1, -1), patches], dim=1)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A replacement of timm that provides "tiny", "net" (no transformer) and "unknown-weights"."""
    module, models = ModuleType("timm"), ModuleType("timm_models")

    def create_model(name: str, *, pretrained: bool, img_size: int, num_classes: int) -> nn.Module:
        if name == "net":
            other = nn.Linear(1, 1)
            other.pretrained_cfg = {"url": "there"}  # type: ignore[assignment]
            return other
        if pretrained and name == "tiny":
            raise OSError("cannot reach\nthe hub")
        model = TinyViT(img_size)
        if name == "unknown-weights":
            model.pretrained_cfg = {**model.pretrained_cfg, "url": ""}
        return model

    def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        return {name.replace("embeddings", "patch_embed"): v for name, v in state.items() if name != "mask_token"}

    module.create_model, module.is_model = create_model, {"tiny", "net", "unknown-weights"}.__contains__  # type: ignore[attr-defined]
    models.checkpoint_filter_fn = checkpoint_filter_fn  # type: ignore[attr-defined]
    monkeypatch.setattr(TinyViT, "__module__", "timm_models")
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm_models", models)
    return module


def test_a_transformer_gives_its_patches_and_brings_its_statistics(timm: ModuleType) -> None:
    before = torch.get_rng_state()
    teacher, again = (load_teacher("tiny", weights="random", image_size=8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    x = images(2, 3, 8, 8)
    vit = teacher.network.vit
    standardised = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.equal(teacher(x), vit.forward_features(standardised)[:, 2:])  # type: ignore[operator]
    assert teacher(x).shape == (2, 4, 6) and torch.equal(teacher(x), again(x))


def test_weights_of_a_file_are_renamed_and_loaded_strictly(timm: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = TinyViT(8).state_dict()
    path = tmp_path / "tiny.pth"
    torch.save({"embeddings." + k[12:] if k.startswith("patch_embed.") else k: v for k, v in state.items()}, path)
    loaded = load_teacher("tiny", weights=str(path), image_size=8).network.vit.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(loaded[name], value) for name, value in state.items())

    torch.save({**state, "mask_token": torch.zeros(1), "head.weight": torch.zeros(3, 6)}, path)
    load_teacher("tiny", weights=str(path), image_size=8)
    wrong = [
        ({k: v for k, v in state.items() if k != "prefix"}, r"missing: 1 \(prefix\)"),
        ({**state, "extra": torch.zeros(1)}, r"not part of it: 1 \(extra\)"),
        ({**state, "prefix": torch.zeros(1, 3, 6)}, "another network than tiny"),
    ]
    for content, message in wrong:
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message) as caught:
            load_teacher("tiny", weights=str(path), image_size=8)
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="no such file"):
        load_teacher("tiny", weights=str(tmp_path / "none.pth"), image_size=8)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("typo", ConfigError, "neither timm nor tok1d"),
        ("net", ConfigError, "expected a vision transformer or a convolutional network"),
        ("tiny", WeightsError, r"could not load it \(cannot reach the hub\)"),
        ("unknown-weights", WeightsError, "has no trained weights"),
    ],
)
def test_missing_teachers_are_reported_in_one_line(
    timm: ModuleType, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_teacher(name, image_size=8)
    assert "\n" not in str(caught.value)


def test_without_timm_the_message_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match=r"pip install 'tok1d\[teachers\]'"):
        load_teacher("vit_base_patch14_dinov2.lvd142m")


@pytest.mark.slow
def test_a_file_in_the_layout_of_dinov2_fills_timms_own_network(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    source = timm.create_model("vit_small_patch14_dinov2", img_size=28, num_classes=0, depth=12).eval()
    path = tmp_path / "dinov2.pth"
    torch.save({**source.state_dict(), "mask_token": torch.zeros(1, 384)}, path)
    teacher = load_teacher("vit_small_patch14_dinov2.lvd142m", weights=str(path), image_size=28)
    x = images(1, 3, 28, 28)
    with torch.no_grad():
        expected = source.forward_features(teacher.prepare(x))[:, 1:]
    torch.testing.assert_close(teacher(x), expected)
    assert expected.shape == (1, 4, 384) and teacher.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    larger = load_teacher("vit_small_patch14_dinov2.lvd142m", weights=str(path), image_size=42)
    assert larger(x).shape == (1, 9, 384)


def test_teachers_are_given_without_changing_random_numbers_or_weights() -> None:
    decoder = {"patch": 7, "dim": 16, "depth": 1, "heads": 2, "align_depth": 1, "align_dim": 64}
    keys = {
        "name": "semanticist",
        "image_size": 28,
        "channels": 1,
        "num_tokens": 4,
        "token_dim": 4,
        "encoder": {"patch": 14, "dim": 16, "depth": 1, "heads": 2},
        "decoder": decoder,
        "alignment": {"teacher": "fashion-mnist-cnn", "image_size": 28},
    }
    model, batch = build_model(build_model_config(keys)), (images(2, 1, 28, 28), torch.zeros(2))
    with pytest.raises(
        InputError, match=r"^teacher fashion-mnist-cnn: expected the loaded network, got none; call tok1d"
    ):
        model.losses(batch, 0.5)  # type: ignore[operator]
    names, before = list(model.state_dict()), torch.get_rng_state()
    give_teachers(model)
    given = model.teacher
    assert isinstance(given, Teacher) and torch.equal(torch.get_rng_state(), before)
    assert list(model.state_dict()) == names and model.train() and not given.network.training
    give_teachers(model)
    assert model.teacher is given, "a teacher that is there stays"
    assert "loss_align" in model.losses(batch, 0.5)  # type: ignore[operator]

"""LPIPS: its formula, its layers, its files, and errors where the real weights are missing."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.losses.perceptual import LPIPS, WIDTHS, PerceptualConfig, PerceptualLoss, vgg16
from tok1d.zoo.adapters.lpips import heads_from_published, read_heads
from tok1d.zoo.pretrained import lpips as lpips_files
from tok1d.zoo.pretrained.lpips import find_heads, load_lpips, load_perceptual, lpips_missing


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def lpips() -> LPIPS:
    torch.manual_seed(0)
    widths = (2, 3, 4, 4, 4)
    return LPIPS(vgg16(widths), [torch.rand(width) for width in widths])


def test_features_are_taken_after_the_last_relu_of_a_stage() -> None:
    model = LPIPS(vgg16((1, 1, 1, 1, 1)), [])
    vgg = model.vgg
    convolutions = [i for i, layer in enumerate(vgg) if isinstance(layer, nn.Conv2d)]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28], "torchvision's numbers"
    x = images(1, 3, 32, 32)
    maps = model.maps(x)
    assert [found.shape[-1] for found in maps] == [32, 16, 8, 4, 2]
    for last, found in zip((4, 9, 16, 23, 30), maps):
        assert torch.equal(found, vgg[:last](x)) and isinstance(vgg[last - 1], nn.ReLU)


def test_distance_in_closed_form() -> None:
    model = LPIPS(vgg16((1, 1, 1, 1, 1)), [torch.tensor([1.0, 10.0])] * 5)
    along, across = torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 2, 2)
    along[:, 0], across[:, 1] = 3.0, 0.1  # lengths do not count
    across[1, :, 0] = along[1, :, 0]  # the second image is the same in half of its places
    distance = model.distance([along] * 5, [across] * 5)
    torch.testing.assert_close(distance, torch.tensor([5 * 11.0, 5 * 5.5]))
    assert torch.equal(model.distance([0 * along], [0 * along]), torch.zeros(2))


def test_a_distance_and_its_gradient() -> None:
    model, (x, y) = lpips(), images(2, 3, 3, 16, 16)
    distance = model(x, y)
    assert (distance > 0).all() and torch.equal(model(x, x), torch.zeros(3))
    torch.testing.assert_close(model(y, x), distance)
    torch.testing.assert_close(model(x[:1], y[:1]), distance[:1])
    torch.testing.assert_close(model.train()(x, y), distance, msg="nothing is dropped in train mode")
    y.requires_grad_()
    model(x, y).sum().backward()
    assert y.grad is not None and y.grad.any() and all(p.grad is None for p in model.parameters())
    grey = images(2, 1, 16, 16)
    assert torch.equal(model.prepare(grey), model.prepare(grey.expand(2, 3, 16, 16)))


def test_the_weight_is_warmed_up_and_the_network_is_in_no_state_dict() -> None:
    real, fake = images(2, 2, 3, 16, 16)
    model = lpips()
    loss = PerceptualLoss(PerceptualConfig(weight=2.0, warmup=10), model)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        torch.testing.assert_close(
            loss.terms(real, fake, step)["loss_perceptual"], 2 * share * model(real, fake).mean()
        )
    holder = nn.Module()
    holder.perceptual = loss
    assert not holder.state_dict() and not list(holder.parameters())
    at_once = PerceptualLoss(PerceptualConfig(weight=1.0), model).terms(real, fake, 1)
    torch.testing.assert_close(at_once["loss_perceptual"], model(real, fake).mean())


def heads(pattern: str) -> dict[str, Tensor]:
    return {pattern.format(i): torch.full((1, width, 1, 1), i + 1.0) for i, width in enumerate(WIDTHS)}


def test_heads_in_their_layouts(tmp_path: Path) -> None:
    for pattern in ("lin{}.model.1.weight", "lins.{}.model.1.weight", "lin{}.model.0.weight"):
        state = {**heads(pattern), "net.slice1.0.bias": torch.zeros(64)}
        torch.save(state, tmp_path / "vgg.pth")
        found = read_heads(tmp_path / "vgg.pth")
        assert [(head.shape, head[0].item()) for head in found] == [((w,), i + 1.0) for i, w in enumerate(WIDTHS)]
    with pytest.raises(WeightsError, match="got 0 of them"):
        heads_from_published({"classifier.weight": torch.zeros(1)}, "file")
    small = {name: value[:, :2] for name, value in state.items() if name.startswith("lin")}
    save_file({name: value.contiguous() for name, value in small.items()}, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match=r"heads of VGG16 for .*got \(2, 2, 2, 2, 2\)"):
        read_heads(tmp_path / "small.safetensors")


def test_the_files_make_the_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = vgg16()
    vgg = {f"features.{name}": torch.zeros(value.shape) for name, value in empty.state_dict().items()}
    vgg["features.28.bias"] = torch.arange(512.0)
    torch.save({**vgg, "classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg16.pth")
    torch.save(heads("lin{}.model.1.weight"), tmp_path / "vgg.pth")
    files = {"vgg": str(tmp_path / "vgg16.pth"), "heads": str(tmp_path / "vgg.pth")}
    assert lpips_missing(**files) is None
    model = load_lpips(**files)
    assert torch.equal(model.vgg[28].bias, torch.arange(512.0)) and model.heads[4][0] == 5
    assert not any(p.requires_grad for p in model.parameters())
    del vgg["features.28.bias"]
    torch.save(vgg, tmp_path / "vgg16.pth")
    with pytest.raises(WeightsError, match=r"missing.*features\.28\.bias"):
        load_lpips(**files)


def test_missing_weights_are_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_files, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("no heads, so no download"))
    with pytest.raises(WeightsError, match=r"expected its linear heads.*pip install lpips"):
        load_perceptual(PerceptualConfig(weight=1.0))
    assert "no file there.pth" in (lpips_missing(heads="there.pth") or "")
    torch.save(heads("lin{}.model.1.weight"), tmp_path / "vgg.pth")
    given = str(tmp_path / "vgg.pth")
    assert "VGG16's weights, got none downloaded" in (lpips_missing(heads=given) or "")
    with pytest.raises(WeightsError, match=r"got no file none\.pth.*into .*checkpoints.*perceptual\.vgg=FILE"):
        load_lpips("none.pth", given)

    def offline(*args: object, **options: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"could not be fetched.*no route") as caught:
        load_lpips(heads=given)
    assert "\n" not in str(caught.value)


def test_heads_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lpips"
    (package / "weights" / "v0.1").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('not imported, only looked into')")
    torch.save(heads("lin{}.model.1.weight"), package / "weights" / "v0.1" / "vgg.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_heads() == package / "weights" / "v0.1" / "vgg.pth"

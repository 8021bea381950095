"""The distance of a classifier's logits: its formula, the input of the network, and errors for a missing network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.classifier import LogitsDistance
from tok1d.losses.perceptual import PerceptualConfig, PerceptualLoss
from tok1d.zoo.pretrained.classifier import load_classifier


class Means(nn.Module):
    """A classifier whose logits are the channel means, and that stores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.weight = nn.Dropout(0.5), nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        self.received = images
        return self.drop(images.mean((2, 3)) * self.weight)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_distance_in_closed_form() -> None:
    distance = LogitsDistance(Means(), side=8, mean=(0, 0, 0), std=(1, 0.5, 0.25)).train()
    a, b = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    b[0] += 0.1
    torch.testing.assert_close(distance(a, b), torch.tensor([(0.1**2 + 0.2**2 + 0.4**2) / 3, 0.0]))
    grey = images(1, 1, 8, 8)
    torch.testing.assert_close(distance.logits(grey), distance.logits(grey.expand(1, 3, 8, 8)))


def test_images_are_standardised_and_resized() -> None:
    network = Means()
    distance, flat = (
        LogitsDistance(network, side=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        torch.ones(1, 3, 20, 24),
    )
    distance.logits(flat)
    torch.testing.assert_close(network.received, torch.ones(1, 3, 8, 8))
    x = images(1, 3, 8, 8)
    distance.logits(x)
    torch.testing.assert_close(network.received, 2 * x - 1)


def test_it_is_frozen_and_its_gradient_reaches_the_images() -> None:
    distance, (a, b) = LogitsDistance(Means(), side=8), images(2, 2, 3, 8, 8)
    assert not distance.train().training and not any(p.requires_grad for p in distance.parameters())
    distance(a, b.requires_grad_()).sum().backward()
    assert b.grad is not None and b.grad.any()


def test_terms_are_those_with_weight() -> None:
    a, b = images(2, 2, 3, 8, 8)
    first, second = (lambda x, y: (x - y).abs().mean((1, 2, 3))), LogitsDistance(Means(), side=8)
    both = PerceptualLoss(PerceptualConfig(weight=1.0, logits=0.1, warmup=10), first, second).terms(a, b, 5)
    torch.testing.assert_close(both["loss_logits"], 0.1 * second(a, b).mean())
    torch.testing.assert_close(both["loss_perceptual"], 0.5 * first(a, b).mean())
    alone = PerceptualLoss(PerceptualConfig(logits=0.1), logits=second)
    assert alone.terms(a, b, 1).keys() == {"loss_logits"}
    assert [PerceptualConfig(weight=w, logits=v).used for w, v in ((0, 0), (1, 0), (0, 1))] == [False, True, True]


def test_a_classifier_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    for name, weights, kind, message in (
        ("convnext_smal", None, ConfigError, "timm has no such model; expected a name such as convnext_small"),
        ("test_convnext", str(tmp_path / "none.pth"), WeightsError, "no such file"),
    ):
        with pytest.raises(kind, match=message) as error:
            load_classifier(name, weights)
        assert "\n" not in str(error.value)


def test_a_classifier_from_a_file(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    network, path = timm.create_model("test_convnext", pretrained=False).eval(), tmp_path / "classifier.pth"
    torch.save(network.state_dict(), path)
    torch.manual_seed(3)
    expected_random = torch.rand(2)
    torch.manual_seed(3)
    found = load_classifier("test_convnext", str(path))
    assert torch.equal(expected_random, torch.rand(2)), "the global generator is not touched"
    x = images(1, 3, 224, 224)
    expected = network((x - found.mean) / found.std)
    torch.testing.assert_close(found.logits(x), expected)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="weights missing"):
        load_classifier("test_convnext", str(path))
